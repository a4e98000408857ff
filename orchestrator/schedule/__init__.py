"""The driver: what is left to do, where it runs, what is tried again. Only here is ray imported."""
