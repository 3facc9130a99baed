from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from training.config import ModelTrainingConfig
from training.data import (
    AUGMENTATIONS,
    PreprocessedDataset,
    generate_phantom,
    get_dataloader,
    get_dataloaders,
    prepare_dataset,
)
from training.data.patches.loaders import resolve_num_workers
from training.errors import DatasetError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("loaders")
    raw = generate_phantom(base / "raw", num_cases=6, seed=0)
    return prepare_dataset(raw, ModelTrainingConfig(), cache_dir=base / "cache")


def batches(folder: Path, epoch: int = 0, **options: Any) -> list[dict[str, torch.Tensor]]:
    settings = {"patch_size": (8, 16, 16), "steps_per_epoch": 3, **options}
    loader = get_dataloader(
        folder,
        "train",
        settings.pop("batch_size", 2),
        settings.pop("num_workers", 0),
        settings.pop("shuffle", True),
        **settings,
    )
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return list(loader)


def equal(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a[name], b[name])
        for a, b in zip(one, other, strict=True)
        for name in ("image", "label")
    )


@pytest.mark.parametrize("augmentation", sorted(AUGMENTATIONS))
def test_training_batches(folder: Path, augmentation: str) -> None:
    found = batches(folder, augmentation=augmentation)
    assert len(found) == 3
    for batch in found:
        assert type(batch["image"]) is torch.Tensor
        assert (batch["image"].shape, batch["image"].dtype) == ((2, 1, 8, 16, 16), torch.float32)
        assert (batch["label"].shape, batch["label"].dtype) == ((2, 8, 16, 16), torch.int64)
        assert torch.isfinite(batch["image"]).all()


def test_patches_depend_on_seed_and_epoch_alone(folder: Path) -> None:
    reference = batches(folder, epoch=1, seed=5)
    assert equal(reference, batches(folder, epoch=1, seed=5))
    assert equal(reference, batches(folder, epoch=1, seed=5, num_workers=2))
    assert not equal(reference, batches(folder, epoch=2, seed=5))
    assert not equal(reference, batches(folder, epoch=1, seed=6))


def test_patches_do_not_depend_on_threads_or_processes(folder: Path) -> None:
    options = {"augmentation": "nnunet", "patch_size": (40, 64, 64), "augmentation_strength": 2}
    threads = torch.get_num_threads()
    reference = batches(folder, **options)
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            assert equal(reference, batches(folder, **options))
    finally:
        torch.set_num_threads(threads)
    assert equal(reference, batches(folder, num_workers=2, **options))


class Spy(np.ndarray[Any, Any]):
    """A volume that notes how many voxels are taken from it."""

    taken: ClassVar[list[int]] = []

    def __getitem__(self, key: Any) -> Any:
        found = np.asarray(self)[key]
        self.taken.append(found.size)
        return found


@pytest.mark.parametrize("augmentation", ["none", "nnunet"])
def test_only_the_patch_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, augmentation: str
) -> None:
    whole = PreprocessedDataset.image
    monkeypatch.setattr(
        PreprocessedDataset, "image", lambda self, case: whole(self, case).view(Spy)
    )
    size = (6, 10, 12)
    Spy.taken.clear()
    batches(folder, patch_size=size, batch_size=1, steps_per_epoch=200, augmentation=augmentation)
    patch = int(np.prod(size))
    assert len(Spy.taken) == 200
    if augmentation == "none":
        assert set(Spy.taken) == {patch}
        return
    # only what is turned or scaled takes more, and no more than the box around it
    assert Spy.taken.count(patch) / 200 == pytest.approx(0.64, abs=0.1)
    diagonal = np.sqrt(np.square(size).sum()) * 1.4 + 2
    assert max(Spy.taken) <= diagonal**3
    assert patch < np.mean(Spy.taken) < 2.5 * patch


def test_an_epoch_that_is_left_early_leaves_no_thread(folder: Path) -> None:
    before = threading.active_count()
    loader = get_dataloader(folder, "train", 1, 0, True, patch_size=(8, 8, 8), steps_per_epoch=50)
    for _ in loader:
        break
    gc.collect()
    assert threading.active_count() == before


def test_drawing_ahead_leaves_the_cores_to_the_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: set[int] = set()
    whole = PreprocessedDataset.image

    def image(self: PreprocessedDataset, case_id: str) -> Any:
        inside.add(torch.get_num_threads())
        return whole(self, case_id)

    monkeypatch.setattr(PreprocessedDataset, "image", image)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        batches(folder)
        assert inside == {1}
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_a_damaged_case_ends_the_epoch_with_its_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(self: PreprocessedDataset, case_id: str) -> Any:
        raise DatasetError(f"{case_id} is damaged")

    monkeypatch.setattr(PreprocessedDataset, "image", damaged)
    with pytest.raises(DatasetError, match="is damaged"):
        batches(folder)


def test_workers_are_chosen_where_a_gpu_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_num_workers(ModelTrainingConfig()) == 0
    assert resolve_num_workers(ModelTrainingConfig(num_workers=3)) == 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_num_workers(ModelTrainingConfig()) == 6
    assert resolve_num_workers(ModelTrainingConfig(gpus=0)) == 0
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert resolve_num_workers(ModelTrainingConfig()) == 8


def test_an_epoch_takes_every_case_once(folder: Path) -> None:
    dataset = PreprocessedDataset.load(folder)
    loader = get_dataloader(folder, "train", 1, 0, True, patch_size=(40, 80, 80))
    cases = dataset.splits["train"]
    assert len(loader) == len(cases)
    tumours = sorted(int((batch["label"] == 2).sum()) for batch in loader)
    assert tumours == sorted(dataset.cases[case].voxel_counts[2] for case in cases)


def test_a_small_case_is_padded_with_0_around_it(folder: Path) -> None:
    dataset = PreprocessedDataset.load(folder)
    case = dataset.splits["train"][0]
    size = (48, 80, 80)
    batch = batches(
        folder, patch_size=size, batch_size=1, shuffle=False, augmentation="none", steps_per_epoch=1
    )[0]
    shape = dataset.cases[case].shape[1:]
    first = [(big - small) // 2 for big, small in zip(size, shape, strict=True)]
    box = tuple(slice(f, f + s) for f, s in zip(first, shape, strict=True))
    np.testing.assert_array_equal(batch["image"][0, 0][box], dataset.image(case)[0])
    assert batch["image"].double().sum() == pytest.approx(
        float(dataset.image(case).astype(np.float64).sum())
    )
    assert torch.equal(
        torch.bincount(batch["label"].flatten(), minlength=3)[1:],
        torch.tensor(dataset.cases[case].voxel_counts[1:]),
    )


def test_foreground_fraction_centres_patches_on_each_class(folder: Path) -> None:
    def share(fraction: float, label: int) -> float:
        found = batches(
            folder,
            foreground_fraction=fraction,
            patch_size=(4, 6, 6),
            steps_per_epoch=60,
            augmentation="none",
        )
        labels = torch.cat([batch["label"] for batch in found])
        return float((labels == label).flatten(1).any(dim=1).float().mean())

    assert share(1.0, 2) > 0.3 > share(0.0, 2)
    assert share(1.0, 1) > 0.6 > share(0.0, 1)


def test_augmentation_moves_image_and_label_together(folder: Path) -> None:
    plain = batches(folder, augmentation="none", steps_per_epoch=6, foreground_fraction=1.0)
    flipped = batches(folder, augmentation="flip", steps_per_epoch=6, foreground_fraction=1.0)
    changed = 0
    for one, other in zip(plain, flipped, strict=True):
        for index in range(2):
            image, label = one["image"][index], one["label"][index]
            options = [
                axes
                for axes in ([], [0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2])
                if torch.equal(torch.flip(image, [a + 1 for a in axes]), other["image"][index])
            ]
            assert len(options) == 1
            assert torch.equal(torch.flip(label, options[0]), other["label"][index])
            changed += bool(options[0])
    assert changed > 0


def test_evaluation_gives_whole_cases(folder: Path) -> None:
    dataset = PreprocessedDataset.load(folder)
    for split in ("val", "test"):
        found = [case for batch in get_dataloader(folder, split, 1, 0, False) for case in batch]
        assert [case["case_id"] for case in found] == dataset.splits[split]
        for case in found:
            np.testing.assert_array_equal(case["image"][0], dataset.image(case["case_id"]))
            np.testing.assert_array_equal(case["label"][0], dataset.label(case["case_id"]))


def test_ranks_share_the_patches_and_cases(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = batches(folder, batch_size=1, steps_per_epoch=4)
    labels = []
    cases = []
    for rank in range(2):
        monkeypatch.setattr("training.data.patches.sampling._world", lambda rank=rank: (rank, 2))
        labels.append(batches(folder, batch_size=1, steps_per_epoch=4))
        loader = get_dataloader(folder, "val", 1, 0, False)
        cases.append([batch[0]["case_id"] for batch in loader])
    assert equal(whole, [labels[0][0], labels[1][0], labels[0][1], labels[1][1]])
    assert sorted(cases[0] + cases[1]) == PreprocessedDataset.load(folder).splits["val"]


def test_loaders_of_a_config(folder: Path) -> None:
    config = ModelTrainingConfig(data_dir=folder, patch_size=(8, 16, 16), steps_per_epoch=5)
    train, val, test = get_dataloaders(config)
    assert (len(train), len(val)) == (5, 1)
    assert test is not None
    assert len(test) == 1


def test_wrong_splits_and_folders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no split 'validation': choose train, val, test"):
        get_dataloader(folder, "validation", 1, 0, False)
    with pytest.raises(DatasetError, match="not a preprocessed folder"):
        get_dataloader(tmp_path, "train", 1, 0, False)
