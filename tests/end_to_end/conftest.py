"""A cluster of two nodes with logical GPUs, started once, and a study small enough for it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster
from s3_server import S3Server, s3_server

from training.data import generate_phantom

SPACE = """\
metric: val_dice
config:
  num_classes: 3
  model_params: {embed_dim: 4, depths: [1, 1], num_heads: [1, 2], patch_size: [2, 4, 4]}
  patch_size: [8, 32, 32]
  steps_per_epoch: 2
  window_overlap: 0
  val_batch_size: 8
  max_epochs: 4
space:
  learning_rate: {loguniform: [1e-4, 1e-1]}
  optimizer: {choice: [adamw, sgd]}
  momentum: {uniform: [0.8, 0.99], when: {optimizer: sgd}}
search: {num_trials: 5}
policy: {name: asha, grace_period: 1, reduction_factor: 2}
resources: {logical_gpus: true}
"""


QUIET = (
    # Ray, Optuna and Lightning warn of each other's versions; sockets close when Ray shuts down
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::ResourceWarning",
    "ignore::UserWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder: they use Ray, and its libraries warn."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ray)
            for warning in QUIET:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="session")
def bucket() -> Iterator[S3Server]:
    """An S3 server that the nodes reach."""
    patch = pytest.MonkeyPatch()
    with s3_server(patch) as server:
        yield server
    patch.undo()


@pytest.fixture(scope="session")
def nodes(private_cache: Path, bucket: S3Server) -> Iterator[Cluster]:
    """A cluster of two nodes with 2 CPU cores and 2 GPUs each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # a trial's libraries shall not start more threads than the machine has cores
    os.environ["OMP_NUM_THREADS"] = "1"
    node = {"num_cpus": 2, "num_gpus": 2, "object_store_memory": 200 * 2**20}
    started = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    started.add_node(**node)
    ray.init(address=started.address, log_to_driver=False, logging_level="error")
    yield started
    ray.shutdown()
    started.shutdown()


@pytest.fixture(scope="session")
def cluster(nodes: Cluster) -> str:
    """Address of that cluster."""
    return str(nodes.address)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module `toy.py`; studies of this process have its trials."""
    if "toy" not in sys.modules:
        spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules["toy"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["toy"])
        # workers do not find it
        cloudpickle.register_pickle_by_value(sys.modules["toy"])
    monkeypatch.setattr("tuner.driver.tune_run.TrialTrainable", sys.modules["toy"].ToyTrainable)
    return sys.modules["toy"]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five phantom cases."""
    return generate_phantom(tmp_path_factory.mktemp("raw") / "phantom", num_cases=5, seed=1)


@pytest.fixture(scope="session")
def space_file(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """The small study's search space."""
    path = tmp_path_factory.mktemp("spaces") / "tiny.yaml"
    path.write_text(SPACE.replace("config:\n", f"config:\n  data_dir: {data_dir}\n"))
    return path
