"""Data in other layouts than those that a study reads, and their conversion to nnU-Net's."""
