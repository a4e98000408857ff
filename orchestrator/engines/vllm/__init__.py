"""vLLM on the CPU, its engine inside the measured process."""
