"""Writes a search space for data: what `tune init` does."""
