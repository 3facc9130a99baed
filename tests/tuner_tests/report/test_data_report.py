"""The web page about data."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from raw_data import SHAPE, boxes, make_data, save

import tuner
from training.data.statistics.planes import Plane, case_planes
from tuner.api import data as api
from tuner.cli.main import main
from tuner.errors import SpecError, StudyError
from tuner.report.data_pictures import SIDE, class_colour, thumbnail
from tuner.report.data_plots import Strip, round_ticks, strip_plot


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve cases of a CT; the lesion of one is much larger, and one has none."""
    labels = {f"case_{number:02}": boxes(1, 2) for number in range(10)}
    large = boxes(1, 2)
    large[4:11, 4:10, 4:9] = 2
    labels |= {"large <lesion>": large, "no_lesion": boxes(1)}
    folder = make_data(tmp_path / "data", labels, modality="CT", name="Liver & <more>")
    rng = np.random.default_rng(0)
    for case, label in labels.items():
        image = rng.normal(-500, 20, SHAPE) + 550 * (label > 0)
        save(folder / "imagesTr" / f"{case}.nii.gz", image.astype(np.float32))
    return folder


class _Page(HTMLParser):
    """What a page loads, its text, and whether its tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "data")]
        if tag not in ("meta", "img", "line", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "data")]

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_has_it_all_and_loads_nothing(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    check = tuner.report_data(data, path, progress=False)
    text = path.read_text()
    page = _Page(text)
    assert page.open == []
    assert all(place.startswith("data:image/png;base64,") for place in page.loaded)
    assert "@import" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert "Liver & <more>" in page.text
    assert "1 x 1 x 1 mm" in page.text
    assert "large <lesion>" in page.text
    assert "volume of lesion 0.237 ml (median 0.027)" in page.text
    assert "organ, lesion11" in page.text
    for finding in check.findings:
        assert finding.message in page.text
    # 4 typical cases and one outlying, in 3 planes
    assert len(page.loaded) == 15


def test_pictures_are_left_out_where_the_page_would_be_too_large(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.html"
    tuner.report_data(data, whole, progress=False)
    monkeypatch.setattr(api, "LARGEST_REPORT", whole.stat().st_size - 10)
    tuner.report_data(data, tmp_path / "less.html", progress=False)
    assert len(_Page((tmp_path / "less.html").read_text()).loaded) == 12


def test_data_with_errors_have_a_report_too(data: Path, tmp_path: Path) -> None:
    save(data / "labelsTr" / "case_00.nii.gz", np.full(SHAPE, 7, np.uint8))
    (data / "imagesTr" / "case_01.nii.gz").write_bytes(b"nothing")
    path = tmp_path / "report.html"
    assert main(["data", "report", str(data), "-o", str(path)]) == 1
    text = _Page(path.read_text()).text
    assert "unknown label 7" in text
    assert "case_01.nii.gz: not a readable" in text
    (data / "dataset.json").write_text("{")
    assert main(["data", "report", str(data), "-o", str(path), "--overwrite"]) == 1
    assert "cannot be read as JSON" in _Page(path.read_text()).text


def test_a_case_with_a_finding_is_never_shown_as_typical(data: Path, tmp_path: Path) -> None:
    """Also where it is the most usual one in all that is measured."""
    image = nib.load(data / "imagesTr" / "case_03.nii.gz")
    save(data / "imagesTr" / "case_05.nii.gz", np.asanyarray(image.dataobj))
    check = tuner.report_data(data, tmp_path / "report.html", progress=False)
    named = {each.case for each in check.findings} - {None}
    assert named == {"case_05", "large <lesion>"}
    text = (tmp_path / "report.html").read_text()
    typical = text.split("<h3>Typical</h3>")[1].split("<h3>Outlying</h3>")
    assert "case_05" not in typical[0]
    assert "<b>case_05</b>: one image in several cases" in typical[1]


def test_what_nobody_labelled_has_no_contour_and_no_volume(data: Path, tmp_path: Path) -> None:
    description = json.loads((data / "dataset.json").read_text())
    description["labels"]["9"] = "ignore"
    (data / "dataset.json").write_text(json.dumps(description))
    for path in (data / "labelsTr").iterdir():
        label = boxes(1, 2)
        label[label == 0] = 9
        save(path, label)
    check = tuner.report_data(data, tmp_path / "report.html", progress=False)
    assert check.errors == ()
    assert check.cases[0].classes[1].voxels == 27
    assert check.dataset is not None
    plane = case_planes(check.dataset.cases[0], check.dataset)[0]
    assert set(np.unique(plane.labels)) <= {0, 1, 2}
    assert (plane.labels > 0).sum() == 9


def test_a_file_that_is_there_is_kept(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(SpecError, match="is there already"):
        tuner.report_data(data, path, progress=False)
    assert path.read_text() == "mine"
    with pytest.raises(SpecError, match="is a folder"):
        tuner.report_data(data, tmp_path, progress=False)
    with pytest.raises(SpecError, match="there is no folder"):
        tuner.report_data(data, tmp_path / "nowhere" / "report.html", progress=False)


def test_a_file_that_cannot_be_written_is_said(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, content: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.durable_write.write_durably", write)
    with pytest.raises(StudyError, match="No space left"):
        tuner.report_data(data, tmp_path / "report.html", progress=False)


def pixels(address: str) -> np.ndarray:
    content = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def test_a_thumbnail_has_the_proportions_of_the_body_and_coloured_contours() -> None:
    image = np.zeros((1, 10, 40), np.float32)
    image[:, :, 20:] = 100
    labels = np.zeros((10, 40), np.uint8)
    labels[3:7, 5:15] = 1
    plane = Plane("axial", 0, image, labels, (5.0, 1.0))
    shown = pixels(thumbnail(plane, 0, (0, 100)))
    # 50 mm x 40 mm
    assert shown.shape == (SIDE, round(SIDE * 0.8), 3)
    assert shown[5, 5].max() < 30
    assert shown[5, -5].min() > 225
    red = np.array(list(bytes.fromhex(class_colour(1).lstrip("#"))))
    coloured = (shown == red).all(axis=-1)
    rows, columns = np.nonzero(coloured)
    assert rows.min() == pytest.approx(0.3 * SIDE, abs=2)
    assert rows.max() == pytest.approx(0.7 * SIDE, abs=2)
    assert columns.min() == pytest.approx(5 / 40 * 0.8 * SIDE, abs=2)
    # a contour, not an area
    assert not coloured[SIDE // 2, round(10 / 40 * 0.8 * SIDE)]


def test_dots_stand_where_their_values_are() -> None:
    svg = strip_plot([Strip("a <b>", [1.0, 10.0, 100.0], ["x", "y", "z"])], "ml", logarithmic=True)
    places = [float(found) for found in re.findall(r"circle class='dot' cx='([\d.]+)'", svg)]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.2)
    assert "a &lt;b&gt;" in svg
    assert "z: 100" in svg
    many = strip_plot([Strip("a", list(range(5000)), ["x"] * 5000)], "mm")
    assert 100 < many.count("<circle") < 500
    assert "x: 4999" in many
    assert "nothing" in strip_plot([Strip("a", [0.0], ["x"])], "ml", logarithmic=True)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 40), (1e-3, 2e-3), (1e5, 7e6), (2.7, 3.3)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    ticks = round_ticks(low, high)
    assert 3 <= len(ticks) <= 7
    assert low - 1e-9 <= ticks[0] <= ticks[-1] <= high + 1e-9
