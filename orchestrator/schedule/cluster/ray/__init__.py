"""Ray: start it or join it, run attempts on it, leave nothing behind."""
