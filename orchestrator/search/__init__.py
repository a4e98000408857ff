"""Searches that ask for trials and end with an answer: pure, and ignorant of where trials run."""
