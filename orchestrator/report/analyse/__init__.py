"""What a sweep's attempts add up to, as values: nothing here draws."""
