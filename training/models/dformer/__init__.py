"""D-Former (Wu et al., 2022; arXiv 2201.00462)."""

from training.models.dformer.network import SegNetwork
from training.models.dformer.published import load_published_weights, published_state_dict

__all__ = ["SegNetwork", "load_published_weights", "published_state_dict"]
