"""Sends studies to a cluster that this machine is no part of: Ray's job server, or SLURM."""
