"""Facts of the machine, each read in one place. Needs nothing but the standard library.

Every function takes ``root``, where ``/proc`` and ``/sys`` are: a test gives a tree of its own.
"""
