"""A training step, each of its phases timed by itself."""
