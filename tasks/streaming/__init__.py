"""Runs a decoder larger than its memory: each layer is read from disk when its turn comes."""
