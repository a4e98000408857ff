"""Where attempts run: Ray, which is imported nowhere else."""
