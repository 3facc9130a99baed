"""Pictures as volumes of one slice, written by Pillow and SimpleITK."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from training.bundle.label_file import write_label_map
from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, prepare_dataset
from training.data.raw.header import open_volume
from training.data.raw.volume import read_image, read_label
from training.errors import DatasetError

ROWS, COLUMNS = 5, 6


def pixels(dtype: str = "u1", channels: int = 1, top: int = 250) -> np.ndarray:
    shape = (ROWS, COLUMNS) if channels == 1 else (ROWS, COLUMNS, channels)
    return np.random.default_rng(0).integers(0, top, shape).astype(dtype)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("ending", "dtype"),
    [
        *((".png", "u1"), (".PNG", "u2"), (".tif", "u1"), (".tif", "u2"), (".TIFF", "u1")),
        # it has 8 bits
        (".bmp", "u1"),
    ],
)
def test_a_picture_is_one_slice_of_columns_and_rows(
    tmp_path: Path, ending: str, dtype: str, channels: int
) -> None:
    written = pixels(dtype, channels, 60000 if dtype == "u2" else 250)
    path = tmp_path / f"a{ending}"
    image = sitk.GetImageFromArray(written, isVector=channels > 1)
    sitk.WriteImage(image, str(tmp_path / f"b{ending.lower()}"))
    (tmp_path / f"b{ending.lower()}").rename(path)
    opened, header = open_volume(path)
    assert (header.shape, header.channels) == ((COLUMNS, ROWS, 1), channels)
    assert opened.dtype == np.dtype(dtype)
    volume = read_image([path])
    expected = written[None] if channels == 1 else np.moveaxis(written, -1, 0)
    np.testing.assert_array_equal(volume.data[..., 0], np.swapaxes(expected, 1, 2))
    # as ITK places it, and so the same as a NIfTI file that ITK makes of it
    sitk.WriteImage(image, str(tmp_path / "c.nii.gz"))
    np.testing.assert_allclose(read_image([tmp_path / "c.nii.gz"]).affine, volume.affine, atol=1e-6)
    np.testing.assert_array_equal(read_image([tmp_path / "c.nii.gz"]).data, volume.data)


def palette(path: Path, colours: list[int]) -> np.ndarray:
    index = pixels(top=3)
    picture = Image.fromarray(index, "L").convert("L")
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette(colours)
    picture.save(path)
    return index


@pytest.mark.parametrize("ending", ["png", "bmp", "tif"])
def test_a_palette_is_colours_of_an_image_and_values_of_a_label_map(
    tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"a.{ending}"
    colours = [0, 0, 0, 255, 10, 20, 3, 250, 7]
    index = palette(path, colours)
    np.testing.assert_array_equal(read_label(path, range(3)).data[..., 0], index.T)
    rgb = np.array(colours).reshape(3, 3)[index]
    np.testing.assert_array_equal(read_image([path]).data[..., 0], rgb.transpose(2, 1, 0))


def test_a_palette_of_greys_is_one_channel(tmp_path: Path) -> None:
    index = palette(tmp_path / "a.png", [0, 0, 0, 100, 100, 100, 200, 200, 200])
    np.testing.assert_array_equal(read_image([tmp_path / "a.png"]).data[0, ..., 0], 100.0 * index.T)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_left_out_and_said(tmp_path: Path, mode: str) -> None:
    written = pixels(channels=len(mode))
    Image.fromarray(written, mode).save(tmp_path / "a.png")
    volume = read_image([tmp_path / "a.png"])
    np.testing.assert_array_equal(
        volume.data[..., 0], written[..., :-1].transpose(2, 1, 0).astype(np.float32)
    )
    assert volume.warnings == (
        f"{tmp_path / 'a.png'}: it has transparency (an alpha channel), which is not used",
    )


def test_sixteen_bits_with_transparency(tmp_path: Path) -> None:
    written = pixels("u2", 4, 60000)
    sitk.WriteImage(sitk.GetImageFromArray(written, isVector=True), str(tmp_path / "a.png"))
    np.testing.assert_array_equal(
        read_image([tmp_path / "a.png"]).data[..., 0], written[..., :3].transpose(2, 1, 0)
    )


def test_jpeg_is_read_as_pillow_reads_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(channels=3)).save(tmp_path / "a.jpg", exif=exif)
    volume = read_image([tmp_path / "a.jpg"])
    expected = np.array(Image.open(tmp_path / "a.jpg"))
    np.testing.assert_array_equal(volume.data[..., 0], expected.transpose(2, 1, 0))
    assert "EXIF data say that it is turned" in volume.warnings[0]


@pytest.mark.parametrize(("mode", "top"), [("1", 2), ("L", 3), ("I;16", 3), ("grey RGB", 3)])
def test_grey_label_maps(tmp_path: Path, mode: str, top: int) -> None:
    label = pixels(top=top)
    given: Any = label
    if mode == "1":
        given = label.astype(bool)
    if mode == "I;16":
        given = label.astype(np.uint16)
    if mode == "grey RGB":
        given = np.stack([label] * 3, axis=-1)
    Image.fromarray(given).save(tmp_path / "a.png")
    found = read_label(tmp_path / "a.png", range(3))
    np.testing.assert_array_equal(found.data[..., 0], label.T)


def pages(path: Path) -> None:
    first, *others = (Image.fromarray(pixels()) for _ in range(3))
    first.save(path.with_suffix(".tif"), save_all=True, append_images=others)


def cut(path: Path) -> None:
    Image.fromarray(pixels(top=3)).save(path)
    path.write_bytes(path.read_bytes()[:-30])


def text(path: Path) -> None:
    path.write_bytes(b"no picture")


WRONG: list[tuple[Callable[[Path], None], str, str, bool]] = [
    (pages, "a.tif", r"it has 3 pages.*NIfTI or NRRD", False),
    (cut, "a.png", r"not a readable PNG file \(.*truncated", False),
    (text, "a.png", r"not a readable PNG file \(cannot identify", False),
    (
        lambda path: Image.fromarray(pixels(channels=4), "CMYK").save(path.with_suffix(".tif")),
        "a.tif",
        "its pixels are CMYK, neither grey nor RGB: save it as one",
        False,
    ),
    (
        lambda path: Image.fromarray(pixels(channels=3)).save(path),
        "a.png",
        "its pixels are colours of 3 channels, but a label map has one number a pixel: save it as",
        True,
    ),
    (
        lambda path: Image.fromarray(pixels(top=3)).save(path.with_suffix(".jpg")),
        "a.jpg",
        "a label map cannot be JPEG, whose compression changes values: save it as PNG",
        True,
    ),
]


@pytest.mark.parametrize(("make", "name", "message", "as_label"), WRONG)
def test_pictures_that_cannot_be_used_are_named(
    tmp_path: Path, make: Callable[[Path], None], name: str, message: str, as_label: bool
) -> None:
    make(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=message) as error:
        read_label(tmp_path / name, range(3)) if as_label else read_image([tmp_path / name])
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("ending", [".png", ".tif", ".tiff"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_a_label_map_is_a_grey_picture_of_its_values(
    tmp_path: Path, ending: str, dtype: str
) -> None:
    Image.fromarray(pixels(channels=3)).save(tmp_path / "image.png")
    label = pixels(dtype, top=250 if dtype == "u1" else 60000).T[..., None]
    output = tmp_path / f"label{ending}"
    write_label_map(label, tmp_path / "image.png", output)
    found = Image.open(output)
    assert found.mode in {"L", "I;16"}
    np.testing.assert_array_equal(np.array(found), label[..., 0].T)
    # and for ITK
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(str(output))), label[..., 0].T
    )
    np.testing.assert_array_equal(read_label(output, range(60000)).data, label)


def test_what_a_picture_cannot_hold_is_refused(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.zeros((4, ROWS, COLUMNS), np.int16))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    with pytest.raises(DatasetError, match=r"has 4 slices, but a picture is one.*nifti"):
        write_label_map(
            np.zeros((COLUMNS, ROWS, 4), np.uint8), tmp_path / "a.nrrd", tmp_path / "b.png"
        )
    Image.fromarray(pixels()).save(tmp_path / "c.png")
    with pytest.raises(DatasetError, match="values up to 70000, but a picture holds 65535"):
        write_label_map(
            np.full((COLUMNS, ROWS, 1), 70000, np.uint32), tmp_path / "c.png", tmp_path / "d.png"
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nrrd", "c.png"]


def test_a_folder_of_pictures_is_prepared(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("imagesTr", "labelsTr"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    labels = {}
    for index in range(5):
        label = np.zeros((16, 20), np.uint8)
        label[3:8, 4:9], label[10:13, 12:18] = 1, 2
        colours = rng.integers(1, 255, (16, 20, 3)).astype(np.uint8)
        Image.fromarray(colours).save(tmp_path / "data" / "imagesTr" / f"cell_{index}.png")
        Image.fromarray(label).save(tmp_path / "data" / "labelsTr" / f"cell_{index}.png")
        labels[f"cell_{index}"] = label
    description = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "nucleus": 1, "border": 2},
        "file_ending": ".png",
    }
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(description))
    split = prepare_dataset(
        tmp_path / "data", ModelTrainingConfig(input_channels=3), cache_dir=tmp_path / "cache"
    )
    dataset = PreprocessedDataset.load(split)
    for case, label in labels.items():
        assert dataset.image(case).shape == (3, 1, 16, 20)
        # superior, anterior, right: rows grow to the back, columns to the left
        np.testing.assert_array_equal(dataset.label(case)[0], label[::-1, ::-1])
