"""Completion in bash, zsh and fish: the words, the shells' scripts, and putting them in place."""
