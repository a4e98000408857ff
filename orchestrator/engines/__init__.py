"""What runs a model inside a task: a folder for each engine, and what they share."""
