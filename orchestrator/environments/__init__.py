"""Locked sets of packages that attempts run in: resolved once, built once a node, with uv."""
