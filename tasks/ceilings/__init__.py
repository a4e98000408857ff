"""What this device can do at most, operation by operation."""
