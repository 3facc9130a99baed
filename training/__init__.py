"""Lightning segmentation library: networks, losses, metrics, data and training."""
