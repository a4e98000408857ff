"""Quality on tasks of others: who makes the requests of a task, and counts the answers."""
