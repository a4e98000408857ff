"""What runs in a worker: takes the slot, follows the attempt, judges and reports."""
