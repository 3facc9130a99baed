"""What belongs to the data is taken from the data, and what is doubtful about them is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from raw_data import boxes, make_data, save
from spec_text import parse

from training.data.prepared import preparation
from training.errors import DatasetError
from tuner.cli.main import main
from tuner.errors import StudyError, TunerError
from tuner.spec.study_spec import StudySpec
from tuner.study.data import check_data, prepare_data, shown_warnings

SIDED = ("background", "left kidney", "right kidney")
NETWORK = "model_params: {embed_dim: 8, depths: [1, 1], num_heads: [2, 4]}"
SPACE = "space: {learning_rate: {loguniform: [1e-4, 1e-2]}}\n"


def text(folder: Path, more: str = "", space: str = SPACE) -> str:
    return f"config: {{data_dir: {folder}, {NETWORK}{more}}}\n{space}"


def data(folder: Path, classes: int) -> Path:
    names = ("background", *(f"organ {value}" for value in range(1, classes)))
    labels = {f"c{index}": np.minimum(boxes(1, 2), classes - 1) for index in range(5)}
    for index, label in enumerate(labels.values()):
        label[8:11, 8:10, :classes] = np.arange(classes)
        label[8, 8, 0] = index % classes
    return make_data(folder, labels, names=names)


@pytest.mark.parametrize(
    ("classes", "more", "space"),
    [
        (2, ", class_weights: [1, 5]", SPACE),
        (6, ", target_label: 5", SPACE),
        (6, ", class_weights: [1, 1, 1, 1, 1, 9], target_label: 5", SPACE),
        (6, "", "space: {class_weights.5: {uniform: [1, 9]}}\n"),
        (2, "", "space: {class_weights: {choice: [uniform, [1, 5], [1, 9]]}}\n"),
        (4, "", "space: {class_weights: {choice: {plain: uniform, last: [1, 1, 1, 9]}}}\n"),
    ],
)
def test_the_number_of_classes_is_the_data_s(
    tmp_path: Path, classes: int, more: str, space: str
) -> None:
    spec = parse(text(data(tmp_path / "data", classes), more, space))
    found = prepare_data(spec)
    assert found.spec.config["num_classes"] == classes
    assert found.spec.config["input_channels"] == 1
    values = found.spec.default_point()
    assert found.spec.trial_config(values).num_classes == classes
    # as a trial reads it, and as `tune resume` does
    again = parse(found.spec.to_yaml())
    assert again.trial_config(values).num_classes == classes
    assert parse(spec.to_yaml()).to_yaml() == spec.to_yaml()


@pytest.mark.parametrize(
    ("more", "space", "named"),
    [
        (", target_label: 4", SPACE, {"target_label": 4}),
        ("", "space: {class_weights.4: {uniform: [1, 9]}}\n", {}),
        ("", f"metric: val_dice_4\n{SPACE}", {}),
        (", label_values: [0, 1, 4]", SPACE, {}),
    ],
)
def test_labels_with_gaps_are_named_by_their_values(
    tmp_path: Path, more: str, space: str, named: dict[str, Any]
) -> None:
    cases = {f"c{index}": boxes(1, 4) for index in range(5)}
    labels = {"background": 0, "organ": 1, "lesion": 4}
    spec = parse(text(make_data(tmp_path / "data", cases, labels=labels), more, space))
    completed, lines = check_data(spec)
    assert any("labels background (0), organ (1), lesion (4)" in line for line in lines)
    found = prepare_data(spec).spec
    assert found.config == completed.config
    config = found.trial_config(found.default_point())
    assert (config.num_classes, config.label_values) == (3, [0, 1, 4])
    assert {name: getattr(config, name) for name in named} == named
    if "class_weights.4" in space:
        assert config.class_weights == [1.0, 1.0, found.default_point()["class_weights.4"]]
    again = parse(found.to_yaml())
    assert again.trial_config(found.default_point()) == config


@pytest.mark.parametrize(
    ("more", "space", "message"),
    [
        (", target_label: 2", SPACE, r"target_label=2, but the labels of .* are 0, 1, 4 \(back"),
        ("", "space: {class_weights.2: {uniform: [1, 9]}}\n", r"class_weights.2 .* 0, 1, 4 \(the"),
        ("", f"metric: val_dice_2\n{SPACE}", "val_dice_2 names no foreground class: they are 1, 4"),
        (", label_values: [0, 1, 2]", SPACE, r"label_values=\[0, 1, 2\], but those of the data in"),
    ],
)
def test_a_number_that_is_no_value_of_the_files_is_refused(
    tmp_path: Path, more: str, space: str, message: str
) -> None:
    cases = {f"c{index}": boxes(1, 4) for index in range(5)}
    labels = {"background": 0, "organ": 1, "lesion": 4}
    spec = parse(text(make_data(tmp_path / "data", cases, labels=labels), more, space))
    with pytest.raises((TunerError, DatasetError), match=message):
        check_data(spec)


REGIONS = {"background": 0, "whole": [1, 4], "core": 4}
GLIOMA = {"0": "background", "1": "necrosis", "2": "edema", "4": "enhancing tumor"}
NNUNET = {"labels": REGIONS, "regions_class_order": [1, 4]}


def glioma(folder: Path, *labels: int, **description: Any) -> Path:
    return make_data(folder, {f"c{index}": boxes(*labels) for index in range(5)}, **description)


@pytest.mark.parametrize(
    ("description", "more", "space", "expected"),
    [
        (NNUNET, "", SPACE, ({"whole": [1, 4], "core": [4]}, [1, 4])),
        (NNUNET, ", regions: {all: [1, 4]}", SPACE, ({"all": [1, 4]}, [1])),
        (NNUNET, "", f"metric: val_dice_core\n{SPACE}", ({"whole": [1, 4], "core": [4]}, [1, 4])),
        (
            NNUNET,
            ", regions: {whole: [1, 4], core: [4]}",
            "space: {class_weights.core: {uniform: [1, 9]}}\n",
            ({"whole": [1, 4], "core": [4]}, [1, 4]),
        ),
        (
            {"labels": GLIOMA},
            ", regions: brats",
            f"metric: val_nsd_tumour_core\n{SPACE}",
            (
                {
                    "whole_tumour": [2, 1, 4],
                    "tumour_core": [1, 4],
                    "enhancing_tumour": [4],
                },
                [2, 1, 4],
            ),
        ),
        (
            {"labels": GLIOMA},
            ", regions: brats, class_weights: [1, 2, 3]",
            "space: {loss: {choice: [dice_bce, bce, sigmoid_focal]}}\n",
            (
                {
                    "whole_tumour": [2, 1, 4],
                    "tumour_core": [1, 4],
                    "enhancing_tumour": [4],
                },
                [2, 1, 4],
            ),
        ),
    ],
)
def test_regions_are_part_of_the_study_s_config(
    tmp_path: Path, description: dict[str, Any], more: str, space: str, expected: tuple[Any, Any]
) -> None:
    labels = (1, 4) if description is NNUNET else (1, 2, 4)
    folder = glioma(tmp_path / "data", *labels, **description)
    spec = parse(text(folder, more, space))
    completed, lines = check_data(spec)
    assert any(line.strip().startswith("regions ") for line in lines)
    config = completed.trial_config(completed.default_point())
    assert (config.regions, config.regions_class_order) == expected
    assert config.loss == "dice_bce"
    kept = parse(completed.to_yaml()).base_config().regions
    assert isinstance(kept, dict)
    assert list(kept) == list(expected[0])
    # as a trial reads it, and as `tune resume` does
    again = parse(completed.to_yaml())
    assert again.trial_config(completed.default_point()) == config
    assert prepare_data(spec).spec.config == completed.config


@pytest.mark.parametrize(
    ("more", "space", "message"),
    [
        (", loss: dice_ce", SPACE, "loss=dice_ce has a softmax, .* choose dice_bce"),
        ("", "space: {loss: {choice: [dice_bce, focal]}}\n", "loss=focal has a softmax"),
        (", target_label: 4", SPACE, "target_label=4 and regions"),
        ("", f"metric: val_dice_1\n{SPACE}", "names no region: they are whole, core"),
        ("", f"metric: val_dice_cor\n{SPACE}", "names no region: they are whole, core"),
        (", class_weights: [1, 2, 3]", SPACE, "3 entries .* 2 regions"),
        (", regions: brats", SPACE, "regions=brats does not fit the labels of the data"),
        (", regions: {a: [2]}", SPACE, r"region 'a' has the label 2, but the labels of .* 0, 1, 4"),
    ],
)
def test_what_does_not_go_with_the_regions_of_the_data_is_refused(
    tmp_path: Path, more: str, space: str, message: str
) -> None:
    folder = glioma(tmp_path / "data", 1, 4, **NNUNET)
    with pytest.raises((TunerError, DatasetError), match=message):
        check_data(parse(text(folder, more, space)))


def test_a_region_s_loss_without_regions_is_refused(tmp_path: Path) -> None:
    folder = data(tmp_path / "data", 3)
    for more, space in ((", loss: bce", SPACE), ("", "space: {loss: {choice: [dice_ce, bce]}}\n")):
        with pytest.raises((TunerError, DatasetError), match="loss=bce is for regions, and there"):
            check_data(parse(text(folder, more, space)))


CONTRADICTIONS = [
    (", class_weights: [1, 5]", SPACE, r"class_weights has 2 entries .*data in .*data have 4 lab"),
    (", target_label: 4", SPACE, r"target_label=4, but the labels of the data in .* are 0 to 3"),
    (", num_classes: 3", SPACE, r"num_classes=3, but the data in .*data have 4 \(background, or"),
    (", input_channels: 2", SPACE, r"input_channels=2, but the data in .* have 1 \(MRI\)"),
    ("", "space: {class_weights: {choice: [[1, 5]]}}\n", r"class_weights has 2 .*have 4 labels"),
    ("", "space: {class_weights.7: {uniform: [1, 2]}}\n", r"class_weights.7 names no .*have 4 la"),
    ("", f"metric: val_dice_4\n{SPACE}", r"val_dice_4 names no foreground class.*have 4 labels"),
    (", fold: 3, num_folds: 9", SPACE, "5 cases are too few for 9 folds"),
    (", groups: (.)_", SPACE, r"groups='\(\.\)_' give no group to c0"),
]


@pytest.mark.parametrize(("more", "space", "message"), CONTRADICTIONS)
def test_a_contradiction_is_refused_before_any_volume_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, space: str, message: str
) -> None:
    folder = data(tmp_path / "data", 4)
    monkeypatch.setattr(preparation, "scan_case", lambda *case: pytest.fail("a volume was read"))
    with pytest.raises((StudyError, DatasetError)) as error:
        prepare_data(parse(text(folder, more, space)))
    assert re.search(message, " ".join(str(error.value).split()))


@pytest.mark.parametrize("tested", [[], ["c4"]])
def test_a_confirmation_needs_test_cases_of_a_split_file(tmp_path: Path, tested: list[str]) -> None:
    folder = data(tmp_path / "data", 3)
    folds = tmp_path / "splits_final.json"
    rest = [case for case in ("c2", "c3", "c4") if case not in tested]
    folds.write_text(json.dumps([{"train": rest, "val": ["c0", "c1"], "test": tested}]))
    rules = f", splits_file: {folds}, fold: 0"
    spec = parse(text(folder, rules, f"confirm: {{top: 1, seeds: 2}}\n{SPACE}"))
    if tested:
        assert "2 validation and 1 test cases" in prepare_data(spec).summary
    else:
        with pytest.raises(StudyError, match=r"fold 0 of .*splits_final\.json has none"):
            prepare_data(spec)


def write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("more", "code"), [(", class_weights: [1, 5]", 0), (", class_weights: [1, 5, 5]", 2)]
)
def test_check_reads_the_data_folder_where_it_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str, code: int
) -> None:
    folder = data(tmp_path / "data", 2)
    path = write(tmp_path / "s.yaml", text(folder, more))
    assert main(["check", str(path)]) == code
    printed = capsys.readouterr()
    if code == 0:
        assert "5 cases of MRI; labels background, organ 1" in printed.out
        assert "median 10 x 11 x 12 voxels of 1 x 1 x 1 mm" in printed.out
    else:
        assert "class_weights has 3 entries" in printed.err
        assert "have 2 labels (background, organ 1)" in printed.err
        assert "Traceback" not in printed.err


def test_check_says_that_the_folder_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "s.yaml", text(tmp_path / "nowhere", ", class_weights: [1, 5]"))
    assert main(["check", str(path)]) == 0
    assert f"{tmp_path / 'nowhere'} is not there" in " ".join(capsys.readouterr().out.split())


def test_check_names_a_broken_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = data(tmp_path / "data", 2)
    (folder / "dataset.json").unlink()
    (folder / "dataset.json").mkdir()
    assert main(["check", str(write(tmp_path / "s.yaml", text(folder)))]) == 2
    assert "dataset.json: is a folder, but must be a file" in capsys.readouterr().err


def test_check_reads_headers_and_says_what_is_doubtful(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {f"c{index}": boxes(1, 2) for index in range(5)}
    folder = make_data(tmp_path / "data", labels, names=SIDED, numTraining=9)
    path = str(write(tmp_path / "s.yaml", text(folder)))
    assert main(["check", path]) == 0
    printed = capsys.readouterr().out
    assert "warning: dataset.json says numTraining: 9, but there are 5 cases" in printed
    assert "not from left to right: labels name sides" in printed
    save(folder / "labelsTr" / "c2.nii.gz", boxes(1, 2), np.diag([1, 1, 2, 1]))
    save(folder / "imagesTr" / "c4.nii.gz", boxes(1, 2), np.diag([1, 150, 1, 1]))
    assert main(["check", path]) == 2
    refused = capsys.readouterr().err
    assert "c2.nii.gz: its affine differs from that of imagesTr/c2.nii.gz" in refused
    assert "c4.nii.gz: a spacing of 1 x 150 x 1 mm is implausible" in refused


def prepared(spec: StudySpec) -> tuple[list[str], str]:
    lines: list[str] = []
    return lines, prepare_data(spec, lines.append).summary


def test_doubts_about_the_data_are_said_in_every_run(tmp_path: Path) -> None:
    folder = data(tmp_path / "data", 3)
    image = nib.load(folder / "imagesTr" / "c0.nii.gz")
    image.set_qform(np.diag([1, 1, 3, 1]), code=1)
    doubtful = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
    nib.save(doubtful, folder / "imagesTr" / "c0.nii.gz")
    spec = parse(text(folder))
    first, again = prepared(spec)[0], prepared(spec)[0]
    warnings = [line for line in first if line.startswith("warning: ")]
    assert any("sform and qform of its header disagree" in line for line in warnings)
    assert [line for line in again if line.startswith("warning: ")] == warnings


def test_a_long_list_of_warnings_is_cut_and_says_where_the_rest_is(tmp_path: Path) -> None:
    folder = make_data(
        tmp_path / "data", {f"c{index:02}": boxes(1) for index in range(25)}, names=("bg", "organ")
    )
    for index in range(25):
        path = folder / "imagesTr" / f"c{index:02}.nii.gz"
        image = nib.load(path)
        image.set_qform(np.diag([1, 1, 3, 1]), code=1)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    lines, _ = prepared(parse(text(folder)))
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert len(warnings) == 21
    assert "5 more, see `warnings` in" in warnings[-1]
    where = Path(warnings[-1].rpartition(" in ")[2])
    assert len(json.loads(where.read_text())["warnings"]) == 25


def test_no_kind_of_warning_is_hidden_by_many_of_another() -> None:
    many = [
        f"/d/labelsTr/c{index}.nii.gz: its sform and qform disagree by up to {index} voxels"
        for index in range(50)
    ]
    lost = "/d/labelsTr/c7.nii.gz: 4 voxels of label 1 are lost by resampling"
    rare = "no validation case has label 2 (cyst), 1 other has: it is not judged"
    shown = shown_warnings([*many, lost, rare], ", see there")
    assert shown == [
        *(f"warning: {line}" for line in [*many[:18], lost, rare]),
        "warning: 32 more, see there",
    ]
    assert shown_warnings([lost, rare]) == [f"warning: {lost}", f"warning: {rare}"]


@pytest.mark.parametrize(
    ("names", "more", "expected"),
    [
        (SIDED, "", "mirrored along depth and height alone, not from left to right: labels name"),
        (SIDED, ", mirror_axes: [width]", "warning: labels name sides (left kidney, right kidney)"),
        (SIDED, ", mirror_axes: [1]", "mirrored along height alone"),
        (SIDED, ", mirror_axes: []", "patches are not mirrored (mirror_axes=[])"),
        (SIDED, ", augmentation: none", ""),
        (("background", "kidney", "spleen"), "", ""),
    ],
)
def test_what_is_done_about_left_and_right_is_said(
    tmp_path: Path, names: Any, more: str, expected: str
) -> None:
    folder = make_data(tmp_path / "d", {f"c{i}": boxes(1, 2) for i in range(5)}, names=names)
    spec = parse(text(folder, more))
    for _ in range(2):
        lines, summary = prepared(spec)
        said = [line for line in lines if "mirror" in line]
        assert len(said) == bool(expected)
        if expected:
            assert expected in said[0]
            assert expected in summary


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ("[[0], [2]]", "warning: labels name sides (left kidney, right kidney), and mirror_axes="),
        ("[auto, [0]]", "patches are not mirrored from left to right: labels name sides"),
    ],
)
def test_axes_that_vary_are_looked_at_as_well(tmp_path: Path, choices: str, expected: str) -> None:
    folder = make_data(tmp_path / "d", {f"c{i}": boxes(1, 2) for i in range(5)}, names=SIDED)
    varied = text(folder).replace("space: {", f"space: {{mirror_axes: {{choice: {choices}}}, ")
    (said,) = [line for line in prepared(parse(varied))[0] if "mirror" in line]
    assert said.startswith(expected)


def test_relative_files_of_split_rules_are_fixed_to_where_they_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = text(tmp_path)
    spec = parse(good, groups="scans.csv", splits_file="splits.json", fold="1")
    assert spec.config["groups"] == str(tmp_path / "scans.csv")
    assert spec.config["splits_file"] == str(tmp_path / "splits.json")
    assert parse(good, groups=r"(p\d+)_").config["groups"] == r"(p\d+)_"
    with pytest.raises(TunerError, match="has 0 groups in parentheses"):
        parse(good, groups="patient")
