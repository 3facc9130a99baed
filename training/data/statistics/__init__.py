"""Measures of a dataset as it is in its files, and what is wrong or doubtful about it."""
