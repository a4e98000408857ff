"""What numbers mean: pure functions over samples."""
