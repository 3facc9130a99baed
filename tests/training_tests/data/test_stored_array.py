"""Compressed arrays: the same values as others, read in part, by all that reads a cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, generate_phantom, get_dataloaders, prepare_dataset
from training.data.prepared.stored_array import array_file, file_content, open_array
from training.errors import DatasetError

SHAPES = ((2, 40, 33, 150), (1, 5, 7), (1, 1, 300, 7), (200, 3, 3))


@settings(max_examples=20, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    kind=st.sampled_from([np.float32, np.uint8, np.uint16]),
    compressed=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_a_part_of_a_stored_array_is_that_of_the_array(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, ...],
    kind: type,
    compressed: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    array = (rng.normal(size=shape) * 50).astype(kind)
    path = tmp_path_factory.mktemp("stored") / array_file("case", compressed=compressed)
    path.write_bytes(file_content(array, compressed=compressed))
    stored = open_array(path)
    assert stored.shape == shape
    np.testing.assert_array_equal(np.asarray(stored), array)
    first = [int(rng.integers(size)) for size in shape[-3:]]
    part = (..., *(slice(low, low + int(rng.integers(1, 9))) for low in first))
    np.testing.assert_array_equal(stored[part], array[part])


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kept", [0, 100])
def test_a_damaged_array_is_named(tmp_path: Path, compressed: bool, kept: int) -> None:
    path = tmp_path / array_file("case", compressed=compressed)
    whole = file_content(np.ones((30, 30, 30), dtype=np.float32), compressed=compressed)
    path.write_bytes(bytes(whole)[:kept])
    with pytest.raises(DatasetError, match=rf"{path.name} is damaged or missing"):
        open_array(path)
    path.unlink()
    with pytest.raises(DatasetError, match=rf"{path.name} is damaged or missing"):
        open_array(path)


def test_a_compressed_cache_has_the_same_batches_in_less_room(tmp_path: Path) -> None:
    data = generate_phantom(tmp_path / "data", num_cases=5, seed=1)
    batches, sizes, folders = [], [], []
    for compressed in (False, True):
        config = ModelTrainingConfig(
            num_classes=3, patch_size=(8, 32, 32), compress_cache=compressed, steps_per_epoch=3
        )
        split = prepare_dataset(data, config, cache_dir=tmp_path / "cache")
        config.data_dir = split
        train, val, test = get_dataloaders(config)
        assert test is not None
        cases = [case for loader in (val, test) for batch in loader for case in batch]
        batches.append([*train, *cases])
        dataset = PreprocessedDataset.load(split)
        folders.append(dataset.array_folder)
        arrays = [*folders[-1].glob("*.image.*"), *folders[-1].glob("*.label.*")]
        assert len(arrays) == 10
        sizes.append(sum(path.stat().st_size for path in arrays))
    # the one is not taken for the other
    assert folders[0] != folders[1]
    for one, other in zip(*batches, strict=True):
        for key in ("image", "label"):
            np.testing.assert_array_equal(one[key].numpy(), other[key].numpy())
    assert sizes[1] < 0.8 * sizes[0]


def test_a_compressed_case_that_was_cut_off_is_prepared_again(tmp_path: Path) -> None:
    data = generate_phantom(tmp_path / "data", num_cases=5, seed=1)
    config = ModelTrainingConfig(num_classes=3, patch_size=(8, 32, 32), compress_cache=True)
    dataset = PreprocessedDataset.load(prepare_dataset(data, config, cache_dir=tmp_path / "cache"))
    damaged = dataset.array_folder / "liver_002.image.b2nd"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    assert not dataset.is_complete()
    prepare_dataset(data, config, cache_dir=tmp_path / "cache")
    assert dataset.is_complete()
    assert damaged.read_bytes() == whole
