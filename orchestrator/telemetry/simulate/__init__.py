"""Plays NVIDIA GPUs that are not there, for every kind of device and what can go wrong with it.

A shared library answers in the place of the driver's, loaded by the unmodified ``pynvml``. Attempts
measured under it say so (``simulated``) and compare with nothing real.
"""
