"""Hyperparameter search for 3D medical image segmentation on Ray Tune."""
