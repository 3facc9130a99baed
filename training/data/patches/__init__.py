"""Patches and whole cases: drawn, augmented, loaded."""
