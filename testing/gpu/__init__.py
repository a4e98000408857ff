"""What to run first on a machine with an NVIDIA GPU: ``make test-gpu``.

::

    checks.py     each is attempts of the product's own tasks, and what must be true of them
    bench.py      runs an attempt in a process of its own, telemetry beside it
    probe.py      a task for what no task measures: clock, allocator, NVTX, a busy GPU
    __main__.py   one JSON object a check

Needs torch, transformers, numpy and nvidia-ml-py; whatever else a check needs and does not find is
its reason to be skipped.
"""
