"""Executes a study on Ray."""
