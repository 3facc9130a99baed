"""Exports a study's best model as a bundle."""
