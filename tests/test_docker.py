from __future__ import annotations

import json
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
GUIDE = (DOCKER / "README.md").read_text()
SHARED_PATHS = ["/cache", "/data", "/studies"]
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}")


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return content


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def with_defaults(text: str) -> str:
    """Text of the compose file as it reads where no variable is set."""
    return VARIABLE.sub(lambda match: match[2] or "", text)


def ray_cluster() -> dict[str, Any]:
    documents = list(yaml.safe_load_all((DOCKER / "kuberay.yaml").read_text()))
    (cluster,) = (document for document in documents if document["kind"] == "RayCluster")
    spec: dict[str, Any] = cluster["spec"]
    return spec


def pods() -> list[dict[str, Any]]:
    spec = ray_cluster()
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def instructions() -> list[str]:
    """The Dockerfile's instructions, each on one line and without its comments."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line]


def copied_from_the_repository() -> list[str]:
    sources = []
    for line in instructions():
        if line.startswith("COPY ") and "--from" not in line:
            words = [word for word in line.split()[1:] if not word.startswith("--")]
            sources += words[:-1]
    return sources


def final_stage() -> list[str]:
    lines = instructions()
    start = max(number for number, line in enumerate(lines) if line.startswith("FROM "))
    return lines[start:]


def guide_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


@pytest.mark.parametrize("source", copied_from_the_repository())
def test_everything_copied_into_the_image_exists_and_reaches_the_builder(source: str) -> None:
    assert (ROOT / source).exists()
    ignore_rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert f"!{source}" in ignore_rules


def test_only_listed_files_reach_the_builder() -> None:
    rules = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert rules[0] == "*"
    let_in = [rule[1:] for rule in rules if rule.startswith("!")]
    assert sorted(let_in) == sorted(set(copied_from_the_repository()))


def test_our_package_is_installed_after_its_dependencies() -> None:
    installs = [line for line in final_stage() if "pip install" in line]
    assert len(installs) == 2
    dependencies, package = installs
    assert "--constraint" in dependencies
    assert "requirements.txt" in dependencies
    assert "--no-deps /wheels/*.whl" in package
    assert "tune --version | grep --quiet '^segtune '" in package


def test_dependencies_are_cached_apart_from_the_code() -> None:
    stage = final_stage()
    (install,) = (n for n, line in enumerate(stage) if "requirements.txt" in line)
    copied_before = [line for line in stage[:install] if line.startswith("COPY ")]
    assert copied_before == ["COPY pyproject.toml constraints.txt /tmp/build/"]


def test_the_image_does_not_run_as_root() -> None:
    assert [line for line in final_stage() if line.startswith("USER ")] == ["USER segtune"]
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True


def test_the_base_image_is_an_argument() -> None:
    assert instructions()[0].startswith("ARG BASE_IMAGE=")
    assert instructions()[1].startswith("FROM ${BASE_IMAGE} ")


def test_every_port_is_published_on_loopback_by_default() -> None:
    published = [port for service in services().values() for port in service.get("ports", [])]
    assert sorted(map(with_defaults, published)) == [
        "127.0.0.1:3000:3000",
        "127.0.0.1:6006:6006",
        "127.0.0.1:8265:8265",
        "127.0.0.1:9090:9090",
    ]


def test_kubernetes_publishes_no_port() -> None:
    assert ray_cluster()["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "hostPort" not in (DOCKER / "kuberay.yaml").read_text()


def test_all_containers_share_studies_data_and_cache() -> None:
    ours = [service for service in services().values() if "SEGTUNE_IMAGE" in service["image"]]
    assert len(ours) == 3
    mounts = [service["volumes"] for service in ours]
    assert all(mount == mounts[0] for mount in mounts)
    targets = [with_defaults(mount).split(":")[1] for mount in mounts[0]]
    assert sorted(targets) == SHARED_PATHS
    names = [with_defaults(mount).split(":")[0] for mount in mounts[0]]
    assert sorted([*names, "prometheus"]) == sorted(compose()["volumes"])


def test_all_pods_share_studies_data_and_cache() -> None:
    for pod in pods():
        (container,) = pod["containers"]
        assert sorted(mount["mountPath"] for mount in container["volumeMounts"]) == SHARED_PATHS
        assert pod["volumes"] == pods()[0]["volumes"]


def test_the_image_has_the_shared_paths_and_the_cache() -> None:
    stage = "\n".join(final_stage())
    (owned,) = re.findall(r"install --directory --owner=segtune --group=segtune (.*)", stage)
    assert set(SHARED_PATHS) <= set(owned.split())
    assert "SEGTUNE_CACHE=/cache" in stage


def test_the_workers_wait_for_a_healthy_head() -> None:
    assert services()["head"]["healthcheck"]["test"][0] == "CMD"
    assert services()["worker"]["depends_on"] == {"head": {"condition": "service_healthy"}}


def test_a_worker_can_be_scaled() -> None:
    assert not {"container_name", "ports", "hostname"} & set(services()["worker"])


def test_trials_run_on_workers_alone() -> None:
    assert "--num-cpus=0" in services()["head"]["command"]
    assert ray_cluster()["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("name", ["head", "worker"])
def test_ray_asks_for_a_token_that_must_be_given(name: str) -> None:
    environment = services()[name]["environment"]
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")


def test_kubernetes_takes_the_token_from_a_secret() -> None:
    for pod in pods():
        environment = {entry["name"]: entry for entry in pod["containers"][0]["env"]}
        assert environment["RAY_AUTH_MODE"]["value"] == "token"
        assert "secretKeyRef" in environment["RAY_AUTH_TOKEN"]["valueFrom"]


def test_no_secret_is_stored() -> None:
    assert (DOCKER / ".gitignore").read_text().splitlines() == [".env"]
    assert not any(fnmatch(source, "*.env*") for source in copied_from_the_repository())
    for path in sorted(DOCKER.glob("*.yaml")):
        kinds = [document.get("kind") for document in yaml.safe_load_all(path.read_text())]
        assert "Secret" not in kinds
    for path in (DOCKER / "Dockerfile", *DOCKER.glob("*.yaml"), DOCKER / "README.md"):
        # a literal value: neither a variable nor a command's output nor an ellipsis
        assert not re.findall(r"TOKEN\s*[=:]\s*[\"']?[A-Za-z0-9]\S*", path.read_text()), path


def test_the_gpu_file_only_adds_devices_to_the_worker() -> None:
    content = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())
    (device,) = content["services"].pop("worker")["deploy"]["resources"]["reservations"]["devices"]
    assert content == {"services": {}}
    assert device["capabilities"] == ["gpu"]


def test_metrics_are_asked_for_and_read_where_the_nodes_export_them() -> None:
    scraped = yaml.safe_load((DOCKER / "prometheus.yaml").read_text())["scrape_configs"]
    (found,) = scraped[0]["dns_sd_configs"]
    for name in found["names"]:
        assert f"--metrics-export-port={found['port']}" in services()[name]["command"]
    for name in ("prometheus", "grafana"):
        assert services()[name]["profiles"] == ["metrics"]
        for mount in services()[name]["volumes"]:
            source = mount.split(":")[0]
            assert source in compose()["volumes"] or (DOCKER / source).is_file()
    source = yaml.safe_load((DOCKER / "grafana/datasource.yaml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    board = json.loads((DOCKER / "grafana/segtune.json").read_text())
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"]}


def test_kubernetes_runs_the_ray_version_of_the_image() -> None:
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    version = ray_cluster()["rayVersion"]
    assert f"ray=={version}" in constraints
    assert f'pip install "ray[default]=={version}"' in guide_commands()


def test_the_guide_lists_every_setting() -> None:
    used = {name for name, _ in VARIABLE.findall((DOCKER / "compose.yaml").read_text())}
    rows = [line.split("|")[1] for line in GUIDE.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == used


@pytest.mark.parametrize(
    "command", [line for line in guide_commands() if re.search(r"(head|--) tune ", line)]
)
def test_every_tune_command_of_the_guide_is_one(command: str) -> None:
    from tuner.cli.main import build_parser

    words = shlex.split(command)
    options = build_parser().parse_args(words[words.index("tune") + 1 :])
    assert options.studies_dir == Path("/studies")
    space = getattr(options, "space", None)
    if space is not None and space.parent.name == "search_spaces":
        assert (ROOT / space).is_file()
