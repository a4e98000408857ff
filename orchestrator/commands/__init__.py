"""The commands of ``python -m orchestrator``, one a file; each imports what it needs when it is called."""
