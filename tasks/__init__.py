"""The measured workloads, one file each, found by name in ``orchestrator.measure.registry``."""
