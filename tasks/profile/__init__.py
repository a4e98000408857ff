"""Operator profiles: what a profiler saw, as plain events, and the arithmetic over them."""
