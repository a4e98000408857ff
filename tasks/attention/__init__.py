"""Scaled dot-product attention by itself."""
