"""Trains one trial."""
