"""A study: its folder, its spec and its record."""
