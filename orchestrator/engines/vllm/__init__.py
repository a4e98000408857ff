"""vLLM, its engine inside the measured process."""
