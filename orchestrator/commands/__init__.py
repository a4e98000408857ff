"""The commands of ``python -m orchestrator``, one a file."""
