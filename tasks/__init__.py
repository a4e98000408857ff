"""The measured workloads, one file each; found by name through ``orchestrator.measure.registry``."""
