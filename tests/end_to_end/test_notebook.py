"""A study in a notebook, run without a browser: its progress and its table are in the output."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]

CELLS = [
    f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import tuner

spec = tuner.StudySpec.from_dict({{
    "config": {{
        "data_dir": "phantom",
        "model_params": {{
            "embed_dim": 4, "depths": [1, 1], "num_heads": [1, 2], "patch_size": [2, 4, 4],
        }},
        "patch_size": [8, 32, 32],
        "steps_per_epoch": 1,
        "window_overlap": 0,
        "val_batch_size": 8,
        "max_epochs": 2,
    }},
    "space": {{"learning_rate": {{"loguniform": [1e-4, 1e-1]}}}},
    "search": {{"num_trials": 2}},
    "policy": "none",
    "resources": {{"max_concurrent": 2, "cpu": 1}},
}})
""",
    "study = tuner.run(spec, name='first')",
    "study",
    """
import signal
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
second = tuner.run(spec, name="second", progress=False)
import ray
assert not ray.is_initialized()
assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
len(second.trials), second.finished
""",
    "study.to_dataframe()[['trial', 'state', 'params_learning_rate']]",
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each cell of the notebook shows: HTML where there is some, else text."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in CELLS])
    folder = tmp_path_factory.mktemp("notebook")
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=280, kernel_name="python3", resources=resources)
    address = os.environ.pop("RAY_ADDRESS", None)
    try:
        client.execute()
    finally:
        if address is not None:
            os.environ["RAY_ADDRESS"] = address
    return ["\n".join(map(shown, cell["outputs"])) for cell in notebook["cells"]]


def shown(output: nbformat.NotebookNode) -> str:
    if output["output_type"] == "stream":
        return str(output["text"])
    data = output["data"]
    return str(data.get("text/html", data["text/plain"]))


def without_tags(html: str) -> str:
    return re.sub(r"<[^>]+>", "", html)


def test_progress_is_shown_in_one_picture_that_changes(outputs: list[str]) -> None:
    text = without_tags(outputs[1])
    assert "Ray dashboard" in text
    assert "Warning" not in text
    # the picture was replaced, not repeated, and ends with what became of the trials
    assert text.count("2 completed") == 1
    assert text.count("of 4 that full training would take (100%)") == 1
    for number in (0, 1):
        assert re.search(rf"trial {number}.*completed: trained 2 epochs", text)


def test_a_study_shows_itself_as_a_table(outputs: list[str]) -> None:
    assert "<table>" in outputs[2]
    assert outputs[2].count("<td>completed</td>") == 2
    assert "<th>learning_rate</th>" in outputs[2]
    assert "Study first</b>: best val_dice" in outputs[2]


def test_a_second_study_runs_in_the_same_process_and_shows_nothing(outputs: list[str]) -> None:
    assert without_tags(outputs[3]).strip() == "(2, True)"


def test_the_data_frame_is_a_table_of_the_notebook(outputs: list[str]) -> None:
    assert outputs[4].count("completed") == 2
