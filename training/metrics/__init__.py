"""Segmentation metrics of single cases, and their mean over cases, epochs and ranks.

| Score | Function | Accumulated by |
|---|---|---|
| Dice, IoU, accuracy | `dice_coefficient`, `jaccard_index`, `accuracy` | `SegmentationMetrics` |
| boundary F1 | `boundary_f1_score` | `SegmentationMetrics` |
| normalised surface Dice | `normalised_surface_dice` | `SurfaceMetrics` |
| 95 % Hausdorff distance | `hausdorff_distance_95` | `SurfaceMetrics` |
| average symmetric surface distance | `average_symmetric_surface_distance` | `SurfaceMetrics` |

Functions take logits `(b, c, *spatial)` and a label map `(b, *spatial)`, in 2D or 3D; an
accumulator takes predicted and true label maps. The background is class 0; it does not count in
a mean over classes.

# Empty classes

| In the prediction | In the target | Dice, IoU, boundary F1, NSD | HD95, ASSD |
|---|---|---|---|
| no | no | nan: not defined | nan: not defined |
| no | yes (a miss) | 0 | missing |
| yes | no (a false positive) | 0 | missing |

There is no distance to a surface that is not there. A missing distance is never replaced by a
number: it is nan for the case (`surface_scores` says which nan are missing ones), it is left out
of the mean, and `SurfaceMetrics` reports the mean together with the number of cases in which the
distance was missing (`hd95_2` with `hd95_2_missing`). Judge a distance with its count: a model
that misses the hard cases has the better distance. The scores from 0 to 1 need no count.

# Voxels that are left out

Voxels that nobody labelled (`training.ignored_voxels`) are left out on both sides: of counts, as
if they were not in the image, and as voxels of a boundary. A boundary voxel needs a neighbour that
is known to be of another label, and a surface element whose neighbourhood has such a voxel is none.
Where a class is in both prediction and target, and no part of one of its surfaces is known, its
surface scores are nan.

# Means

First a class's mean over the cases in which it is defined, then the mean over the foreground
classes that have one. A class that is defined in no case is nan and does not count. Functions
with `reduction="mean"` and accumulators do the same. (A mean over all (case, class) pairs at
once would weigh a class by how often it occurs.) Accumulators keep sums and counts alone, so the
result does not depend on batches, and ranks add up.

So a class that is in neither prediction nor label of any validation case is left out of the mean
over classes. Where no class is left, the score of the epoch is nan: healthy controls, in which
the network rightly finds nothing, say no more than that. It is not a divergence (the loss and the
weights alone show that), and the epoch is ignored: it is never the best, it is neither
progress nor standstill for early stopping and the plateau scheduler, and a search does not
compare it with others.

# Grids

Validation is on the preprocessed grid, where the network predicts: it is fast, and the same for
all trials of a search. What preprocessing loses costs nothing there; a lesion that no voxel of
that grid shows is in neither label nor prediction. Test metrics of an exported model are against
the label files on their own grids (`training.bundle.case_scores`), with the size of the files'
voxels, and a boundary F1 whose tolerance is in voxels of the file. `trainer.test()` measures what
its loader gives it, which is the preprocessed grid.

# Boundary and surface

*Boundary F1* counts voxels: a boundary voxel has a face neighbour of another label, or lies at
the edge of the image. It is the F1 of boundary voxels within a tolerance, in voxels, or in mm
where the spacing is given.

*Surface* scores follow DeepMind's `surface-distance` (Nikolov et al., 2018; arXiv 1809.04430),
whose numbers the Medical Segmentation Decathlon and nnU-Net's users compare: the surface passes
between voxels. Each 2×2×2 neighbourhood that is neither full nor empty holds a surface element,
which lies at the neighbourhood's centre (a corner of voxels, half a voxel beside their centres)
and has the area of the marching-cubes triangles of its eight voxels, in mm²; beyond the image is
outside. A distance is that from a surface element to the nearest one of the other surface, in mm.
In 2D, elements have the length of the contour in each 2×2 neighbourhood.

- NSD is the area within the tolerance of the other surface, over both surfaces, as a share of
  both areas.
- HD95 is the larger of the two directed 95th percentiles; a percentile is the least distance
  within which 95 % of the *area* lies.
- ASSD is the mean distance over the area of both surfaces together (Heimann et al., 2009). That
  is the mean of `surface-distance`'s two averages, weighted by the surfaces' areas.

# Where other libraries differ

- MONAI's Dice and IoU are nan for every class that the target lacks, unless
  `ignore_empty=False`; then a class that both lack is 1. Ours are 0 and nan.
- torchmetrics' Dice (F1) and Jaccard index are 0 for a class that both lack (`zero_division`).
- MONAI's surface Dice without subvoxels counts boundary voxels: it pools both boundaries where
  boundary F1 takes the harmonic mean of precision and recall.
- MONAI's surface distances count boundary voxels alike, whatever their area, and are infinite or
  nan for missing classes.
- `surface-distance` gives an infinite distance for a class that one side lacks, and for one that
  both lack.
- A distance that equals the tolerance up to rounding (1e-9) is within it; `surface-distance`
  compares the rounded numbers (3 × 0.1 mm is not within 0.3 mm).
"""

from training.metrics.accumulating import SegmentationMetrics, SurfaceMetrics
from training.metrics.boundary import boundary_f1_score
from training.metrics.labels import predict_labels
from training.metrics.overlap import accuracy, dice_coefficient, jaccard_index
from training.metrics.surface import (
    SurfaceScores,
    average_symmetric_surface_distance,
    hausdorff_distance_95,
    normalised_surface_dice,
    surface_scores,
)

__all__ = [
    "SegmentationMetrics",
    "SurfaceMetrics",
    "SurfaceScores",
    "accuracy",
    "average_symmetric_surface_distance",
    "boundary_f1_score",
    "dice_coefficient",
    "hausdorff_distance_95",
    "jaccard_index",
    "normalised_surface_dice",
    "predict_labels",
    "surface_scores",
]
