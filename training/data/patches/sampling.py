"""Training patches and whole cases, drawn from the preprocessed cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed
from torch.utils.data import Dataset, Sampler

from training.data.patches.augmentation import Augmentation, drop_channels
from training.data.patches.spatial import Region
from training.data.prepared.cache import PreprocessedDataset
from training.data.prepared.stored_array import StoredArray
from training.ignored_voxels import IGNORE_INDEX, as_targets
from training.partial_labels import labelled_mask

KEPT_CASES = 64
"""Cases whose centres of patches stay in memory: with 15 classes 1.7 MB each, in each process."""

PatchKey = tuple[int, int]
"""Epoch and index: all that a patch depends on besides the seed."""


class PatchDataset(Dataset[dict[str, Any]]):
    """Random patches of the training cases; only the patch is read from disk.

    A patch depends on (seed, epoch, index) alone, so results do not depend on the number
    of loader processes or ranks.

    Where the data have an `ignore` label, every patch is centred on a labelled voxel, as nnU-Net
    does it: of scribbles, most places of a case have nothing to teach. What is around a case is
    then left out as well.

    Args:
        dataset: The preprocessed data.
        split: Whose cases are used.
        patch_size: Size of a patch; a smaller case is padded with 0, and its label map with
            background, or with voxels that are left out where the data have such.
        foreground_fraction: Share of patches centred on a foreground voxel, of a class that
            is drawn uniformly from those of the case.
        augmentation: What is done to a patch.
        channel_dropout: Probability that a channel of a patch is set to 0, see `drop_channels`.
        shuffle: Whether cases come in a new order every epoch.
        seed: Seed of everything that is random here.
        regions: Classes of each region; foreground is then drawn uniformly from the regions of
            the case, and from the voxels of the region.
    """

    def __init__(
        self,
        dataset: PreprocessedDataset,
        split: str,
        *,
        patch_size: Sequence[int],
        foreground_fraction: float,
        augmentation: Augmentation,
        channel_dropout: float = 0.0,
        shuffle: bool,
        seed: int,
        regions: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self._dataset = dataset
        self._regions = regions
        self._cases = dataset.splits[split]
        self._patch_size = np.asarray(patch_size)
        self._foreground_fraction = foreground_fraction
        self._augmentation = augmentation
        self._channel_dropout = channel_dropout
        self._shuffle = shuffle
        self._seed = seed
        self._around = IGNORE_INDEX if dataset.has_ignored else 0
        self._foreground: dict[str, dict[int, NDArray[np.int32]]] = {}
        self._labelled: dict[str, NDArray[np.int32]] = {}

    def __getitem__(self, key: PatchKey) -> dict[str, Any]:
        """The patch of an epoch and index: `image` float32 `(c, *patch)`, `label` `(*patch)`.

        A voxel that is left out has the label `IGNORE_INDEX`. Where cases are labelled for some
        classes only, `labelled` says for which, see `training.partial_labels`.
        """
        epoch, index = key
        rng = np.random.default_rng([self._seed, epoch, index])
        case = self._case(epoch, index)
        image, label = self._dataset.image(case), self._dataset.label(case)
        corner = self._corner(case, np.asarray(label.shape), rng)
        matrix = self._augmentation.draw_matrix(rng)
        if matrix is None:
            voxels = self._cut(image, corner, torch.float32)
            labels = self._cut(label, corner, torch.int64, self._around)
        else:
            region = Region.of(corner, self._patch_size, matrix, label.shape)
            targets = as_targets(label[region.box], self._dataset.num_classes, np.int32)
            voxels, labels = region.sample(image[:, *region.box], targets, self._around)
        voxels, labels = self._augmentation.change(voxels, labels, rng)
        present = self._dataset.channels_of(case)
        if len(present) < len(voxels):
            # noise, say, does not make a channel of one that is missing
            voxels[[number for number in range(len(voxels)) if number not in present]] = 0
        drop_channels(voxels, present, self._channel_dropout, rng)
        return {"image": voxels, "label": labels, **_labelled(self._dataset, case)}

    def _case(self, epoch: int, index: int) -> str:
        """Each case once before any comes again."""
        round_of_cases, position = divmod(index, len(self._cases))
        if not self._shuffle:
            return self._cases[position]
        order = np.random.default_rng([self._seed, epoch, round_of_cases, 2**31])
        return self._cases[int(order.permutation(len(self._cases))[position])]

    def _corner(
        self, case: str, shape: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """First voxel of the patch; negative where a small case is padded."""
        room = shape - self._patch_size
        corner = rng.integers(0, np.maximum(room, 0) + 1)
        voxels = self._centres(case, rng)
        if voxels is not None:
            centre = voxels[rng.integers(len(voxels))]
            corner = np.clip(centre - self._patch_size // 2, 0, np.maximum(room, 0))
        # half of the padding first, as sliding windows over a small case have it
        centred = -(-room // 2)
        return np.asarray(np.where(room < 0, centred, corner))

    def _centres(self, case: str, rng: np.random.Generator) -> NDArray[np.int32] | None:
        """Voxels of which one is the centre of the next patch; None for a patch anywhere."""
        if rng.random() < self._foreground_fraction:
            by_class = self._foreground.get(case)
            if by_class is None:
                by_class = self._dataset.foreground(case)
                if len(self._foreground) < KEPT_CASES:
                    self._foreground[case] = by_class
            if by_class:
                return by_class[self._drawn_class(case, sorted(by_class), rng)]
        if not self._dataset.has_ignored:
            return None
        labelled = self._labelled.get(case)
        if labelled is None:
            labelled = self._dataset.labelled(case)
            if len(self._labelled) < KEPT_CASES:
                self._labelled[case] = labelled
        return labelled

    def _drawn_class(self, case: str, present: Sequence[int], rng: np.random.Generator) -> int:
        """The class of the voxel that a patch is centred on."""
        if self._regions is None:
            return int(rng.choice(present))
        having = [sorted(set(region) & set(present)) for region in self._regions]
        having = [classes for classes in having if classes] or [list(present)]
        classes = having[int(rng.integers(len(having)))]
        # so that each voxel of the region is as likely
        counts = np.array([self._dataset.cases[case].voxel_counts[one] for one in classes])
        return int(rng.choice(classes, p=counts / counts.sum()))

    def _cut(
        self, volume: StoredArray, corner: NDArray[np.int64], dtype: torch.dtype, around: int = 0
    ) -> torch.Tensor:
        """The patch at `corner` of `(..., d, h, w)`, padded with `around` where it ends."""
        first = np.maximum(corner, 0)
        end = np.minimum(corner + self._patch_size, volume.shape[-3:])
        size = (*volume.shape[:-3], *self._patch_size.tolist())
        patch = torch.full(size, around, dtype=dtype)
        inside = volume[..., *_box(first, end)]
        if dtype == torch.int64:
            inside = as_targets(inside, self._dataset.num_classes)
        place: tuple[Any, ...] = (..., *_box(first - corner, end - corner))
        patch.numpy()[place] = inside
        return patch


def _box(first: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[slice, ...]:
    return tuple(slice(low, high) for low, high in zip(first.tolist(), end.tolist(), strict=True))


class CaseDataset(Dataset[dict[str, Any]]):
    """Whole cases of a split, for evaluation.

    Args:
        dataset: The preprocessed data.
        split: Whose cases.
    """

    def __init__(self, dataset: PreprocessedDataset, split: str) -> None:
        self._dataset = dataset
        self._cases = dataset.splits[split]

    def __len__(self) -> int:
        """Number of cases."""
        return len(self._cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A case: `image` `(1, c, *spatial)`, `label` `(1, *spatial)`, `case_id`.

        A voxel that is left out has the label `IGNORE_INDEX`. `labelled` `(1, classes)` is as in a
        patch.
        """
        case = self._cases[index]
        # copied: a memory-mapped array is read-only, and torch wants to write
        return {
            "image": torch.from_numpy(np.array(self._dataset.image(case)))[None],
            "label": torch.from_numpy(
                as_targets(np.asarray(self._dataset.label(case)), self._dataset.num_classes)
            )[None],
            "case_id": case,
            **{name: mask[None] for name, mask in _labelled(self._dataset, case).items()},
        }


def _labelled(dataset: PreprocessedDataset, case: str) -> dict[str, torch.Tensor]:
    """The classes that a case is labelled for, where that differs from case to case."""
    if not dataset.is_partly_labelled:
        return {}
    return {"labelled": labelled_mask(dataset.cases[case].labelled, dataset.num_classes)}


class PatchSampler(Sampler[PatchKey]):
    """Keys of an epoch's patches; each rank takes every world-size-th.

    Lightning calls `set_epoch` before every epoch.

    Args:
        patches: Patches of an epoch, over all ranks.
    """

    def __init__(self, patches: int) -> None:
        self._patches = patches
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose patches are drawn next."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Patches of this rank; all ranks have as many."""
        return self._patches // _world()[1]

    def __iter__(self) -> Iterator[PatchKey]:
        """The keys of this rank."""
        rank, world = _world()
        for index in range(len(self)):
            yield self._epoch, index * world + rank


class CaseSampler(Sampler[int]):
    """Cases of this rank: none is evaluated twice.

    Args:
        cases: Number of cases, over all ranks.
        shuffle: Whether they come in a random order.
        seed: Seed of the order.
    """

    def __init__(self, cases: int, *, shuffle: bool, seed: int) -> None:
        order = np.random.default_rng(seed).permutation(cases) if shuffle else np.arange(cases)
        self._order = [int(index) for index in order]

    def __len__(self) -> int:
        """Cases of this rank."""
        return len(list(iter(self)))

    def __iter__(self) -> Iterator[int]:
        """The cases of this rank."""
        rank, world = _world()
        return iter(self._order[rank::world])


def _world() -> tuple[int, int]:
    """Rank and number of ranks."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
