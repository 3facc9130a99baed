from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tuner.cli.main import build_parser, main

SPACE = """\
config: {data_dir: phantom}
space: {learning_rate: {loguniform: [1e-5, 1e-2]}}
"""

DYNUNET = ("--set", "model_name=dynunet", "--set", "model_params={strides: 2}")
"""A network at whose settings MONAI fails with a TypeError."""


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path


def test_a_trial_that_went_on_is_not_told_as_one_that_did_not_complete(tmp_path: Path) -> None:
    """Tune counts the trial before a retry as lost, whatever became of it."""
    assert main(["list", "--studies-dir", str(tmp_path)]) == 0
    logger = logging.getLogger("ray.tune.tune")

    def passes(message: str) -> bool:
        record = logger.makeRecord(logger.name, logging.ERROR, "tune.py", 1, message, ([],), None)
        return bool(logger.filter(record))

    assert not passes("Trials did not complete: %s")
    assert passes("Tune failed: %s")


@pytest.mark.parametrize("name", ["tune", "segtune"])
def test_the_installed_script_is_ours(name: str) -> None:
    """Ray's wheel has a script `tune` too; the last one installed wins."""
    script = Path(sys.executable).parent / name
    assert "from tuner.cli.main import main" in script.read_text(), (
        f"{script} is another program; take the name back with "
        "pip install --force-reinstall --no-deps ."
    )
    ours = {point.value for point in entry_points(group="console_scripts", name=name)}
    assert "tuner.cli.main:main" in ours


@pytest.mark.parametrize("program", [["tune"], ["segtune"], ["-m", "tuner"]])
def test_all_three_names_are_one_program(program: list[str], space: Path) -> None:
    folder = Path(sys.executable).parent
    start = [sys.executable, *program] if program[0] == "-m" else [str(folder / program[0])]
    result = subprocess.run(
        [*start, "check", str(space)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "is valid: max val_dice" in result.stdout


@pytest.mark.parametrize("name", ["n" * 300, "../other", "\u00e9" * 130])
def test_a_name_that_no_study_can_have_is_refused_before_ray_and_torch_are_loaded(
    name: str, space: Path, tmp_path: Path
) -> None:
    program = (
        "import sys; from tuner.cli.main import main; code = main(sys.argv[1:]); "
        "print(code, {'ray', 'torch'} & set(sys.modules))"
    )
    start = [sys.executable, "-c", program, "run", str(space), "--name", name]
    where = ["--studies-dir", str(tmp_path / "studies")]
    result = subprocess.run([*start, *where], capture_output=True, text=True, check=False)
    assert result.stdout == "2 set()\n"
    assert result.stderr.startswith("error: the study name ")
    assert not (tmp_path / "studies").exists()


def test_a_reader_that_has_seen_enough_ends_no_command_in_a_traceback(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    start = [sys.executable, "-m", "tuner", "list", "--json", "--studies-dir", str(tmp_path)]
    result = subprocess.run(start, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert result.stderr == ""
    assert result.returncode == 1


def test_a_mistake_in_a_file_is_told_before_torch_is_loaded(space: Path) -> None:
    program = (
        "import sys; from tuner.cli.main import main; code = main(sys.argv[1:]); "
        "print(code, {'ray', 'torch'} & set(sys.modules))"
    )
    start = [sys.executable, "-c", program, "check", str(space), "--max-epochs", "0"]
    result = subprocess.run(start, capture_output=True, text=True, check=False)
    assert result.stdout == "2 set()\n"
    assert result.stderr.startswith("error: --max-epochs 0: ")


def test_check_prints_space_and_budget(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(space), "--max-epochs", "9", "--num-trials", "10"]) == 0
    printed = capsys.readouterr().out
    assert "1e-05 to 0.01, logarithmic" in printed
    assert "compares at epochs 1, 3" in printed
    assert "training every trial to epoch 9 would take 90" in printed
    assert main(["check", str(space), "--set", "policy=none"]) == 0
    assert "every trial trains 100" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "config: {model_name: unetr}",
            r"unetr cannot be built with patch_size=\[32, 24, 64\]: .*multiple of 16",
        ),
        (
            "config: {model_params: {embed_dim: 10}}",
            r"dformer3d cannot be built .*: num_heads\[0\]=3 does not divide",
        ),
        ("config: {model_params: {embed_dims: 12}}", "did you mean embed_dim"),
        (
            "config: {model_name: vnet, input_channels: 3}",
            "vnet cannot be built .*needs 1, 2, 4, 8 or 16",
        ),
        (
            "config: {model_name: dynunet, model_params: {strides: 2}}",
            "dynunet cannot be built",
        ),
    ],
)
def test_check_refuses_networks_that_cannot_be_built(
    tmp_path: Path, lines: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.yaml"
    patch = "space: {patch_size: {choice: [[32, 32, 64], [32, 24, 64]]}}"
    path.write_text(f"{lines}\n{patch}\n")
    assert main(["check", str(path)]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert re.search(message, printed), printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none.yaml"], "there is no search space none.yaml"),
        (["check", "SPACE", "--max-epochs", "0"], "--max-epochs 0: max_epochs=0: input should be"),
        (["check", "SPACE", "--num-trials", "x"], "--num-trials x: num_trials='x'"),
        (["check", "SPACE", "--gpus-per-trial", "1.5"], "--gpus-per-trial 1.5: gpu=1.5: a trial u"),
        (["check", "SPACE", "--time-budget", "soon"], "is not a duration"),
        (["check", "SPACE", "--set", "optimizer"], "write --set KEY=VALUE"),
        (["check", "SPACE", "--set", "optimizr=sgd"], "did you mean 'optimizer'?"),
        (["run", "SPACE", "--data-dir", "nowhere", "STUDIES"], "there is no data folder"),
        (["run", "SPACE", "--name", "../x", "STUDIES"], "must start with a letter or digit"),
        (["run", "SPACE", "--name", "", "STUDIES"], "the study name '' must start with a letter"),
        (["run", "SPACE", "--set", "num_classes=5", "STUDIES"], "have 3 (background, liver, tum"),
        (["run", "SPACE", "--set", "model_params.embed=5", "STUDIES"], "did you mean embed_dim"),
        (["run", "SPACE", *DYNUNET, "STUDIES"], "no network of this space can be built"),
        (["resume", "none", "STUDIES"], "no study 'none'"),
        (["status", "none", "STUDIES"], "there is none yet"),
        (["export", "none", "STUDIES"], "no study 'none'"),
        (["predict", "none", "image.nii.gz", "-o", "out"], "none is not an exported model"),
        (["run", "SPACE", "--studies-dir", "no://b/x"], "--studies-dir no://b/x: nothing here"),
        (["list", "--studies-dir", "s3://"], "--studies-dir s3:// names no bucket"),
        (["status", "s", "--studies-dir", "az://b/x"], "nothing here reaches az:// (Install"),
        (["resume", "s", "--studies-dir", "file:///x"], "--studies-dir file:///x is an address"),
        (["run", "SPACE", "--data-dir", "no://d", "STUDIES"], "data folder no://d: nothing here"),
        (["run", "SPACE", "--set", "data_dir=no://d", "STUDIES"], "no://d: nothing here reach"),
        (
            ["init", "no://d", "-o", "new.yaml"],
            "the data folder no://d: nothing here reaches no://",
        ),
        (["run", "SPACE", "--export", "s3://e", "STUDIES"], "--export s3://e is an address"),
        (["run", "SPACE", "--export", "SPACE", "STUDIES"], "is not a folder: choose another with"),
        (["run", "SPACE", "--export", "SPACE/b", "STUDIES"], "cannot be written (Not a dir"),
        (["run", "SPACE", "--export", ".", "STUDIES"], "is where the study itself is kept"),
        (["run", "SPACE", "--name", "n", "--export", "studies/n", "STUDIES"], "itself is kept"),
        (["run", "SPACE", "--export", "studies", "STUDIES"], "is where the study itself is kept"),
        (["predict", "s3://b", "i.nii.gz", "-o", "out"], "s3://b is an address"),
        (["predict", "none", "s3://i.nii.gz", "-o", "out"], "s3://i.nii.gz is an address"),
        (["convert", "none", "-o", "s3://n.onnx"], "--output s3://n.onnx is an address"),
        (["convert", "none", "-o", "SPACE"], "is not one of .pt2, .ts, .onnx"),
        (["run", "SPACE", "--name", "n" * 300, "STUDIES"], "has 300 characters"),
        (["status", "n" * 300, "STUDIES"], "has 300 characters"),
        (["run", "SPACE", "--name", "n", "--studies-dir", "/proc/x"], "/proc/x/n cannot be writt"),
        (["run", "SPACE", "--name", "n", "--studies-dir", "SPACE"], "is a file, not a folder"),
    ],
)
def test_a_mistake_gets_one_clear_message(
    space: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [word.replace("SPACE", str(space)) for word in arguments]
    if arguments[-1] == "STUDIES":
        arguments[-1:] = ["--studies-dir", str(tmp_path / "studies")]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err
    # nothing is left behind: no folder `s3:`, no folder of studies that this call made
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


def test_list_without_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--studies-dir", str(tmp_path)]) == 0
    assert "no studies" in capsys.readouterr().out


def test_wrong_commands_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["fly"], ["run"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
    assert "usage: tune" in capsys.readouterr().err


def test_every_command_has_help() -> None:
    for command in ("run", "resume", "list", "status", "check", "export", "predict"):
        with pytest.raises(SystemExit) as end:
            build_parser().parse_args([command, "--help"])
        assert end.value.code == 0
