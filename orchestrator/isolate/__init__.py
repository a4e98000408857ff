"""A fresh process per attempt: warm fork server, limits from outside, every ending named."""
