"""Cases that are labelled for some classes only.

What a case is not labelled for costs nothing in it and teaches nothing. The loss is the marginal
loss (Fang and Yan, 2020, arXiv 2001.00208; Shi et al., 2021, arXiv 2007.03868): in that case the
probabilities of the missing classes are added to that of the background, since a voxel that is
labelled as background may be of any of them. Scores of a missing class are not defined.

A mask `(b, c)` says for each case of a batch and each class whether the case is labelled for it;
the background, class 0, is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NONE = -1e4
"""Logit of a class that is not there: its probability is 0, in half precision as well."""


def labelled_mask(classes: Sequence[int] | None, num_classes: int) -> Bool[Tensor, " c"]:
    """Whether a case is labelled for each class.

    Args:
        classes: The foreground classes that it is labelled for; None for all.
        num_classes: Classes, background included.
    """
    if classes is None:
        return torch.ones(num_classes, dtype=torch.bool)
    mask = torch.zeros(num_classes, dtype=torch.bool)
    mask[[0, *classes]] = True
    return mask


def marginal_logits(
    logits: Float[Tensor, "b c *spatial"], labelled: Bool[Tensor, "b c"]
) -> Float[Tensor, "b c *spatial"]:
    """Logits whose softmax has the missing classes' probabilities added to the background.

    Args:
        logits: Scores of exclusive classes, background first.
        labelled: Which classes each item is labelled for.
    """
    missing = ~labelled.to(logits.device)
    missing[:, 0] = False
    if not missing.any():
        return logits
    missing = missing.reshape(*missing.shape, *[1] * (logits.ndim - 2))
    merged = missing.clone()
    merged[:, 0] = True
    background = torch.logsumexp(logits.masked_fill(~merged, -torch.inf), dim=1, keepdim=True)
    return torch.cat([background, logits.masked_fill(missing, NONE)[:, 1:]], dim=1)


def hide_missing(
    prediction: Int[Tensor, "b *spatial"], labelled: Bool[Tensor, "b c"]
) -> Int[Tensor, "b *spatial"]:
    """Predicted classes, background in place of those that an item is not labelled for."""
    classes = torch.arange(labelled.shape[1], device=prediction.device, dtype=prediction.dtype)
    tables = classes * labelled.to(prediction.device)
    pairs = zip(tables, prediction.long(), strict=True)
    return torch.stack([table[item] for table, item in pairs])
