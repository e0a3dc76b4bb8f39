"""All manifests conform to their schemas, and the schemas detect errors in them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from infra.manifests import INFRA, documents, problems, read

import sweeps

pytestmark = pytest.mark.slow

FREE = {
    # Kubernetes
    "annotations", "data", "labels", "limits", "matchLabels", "requests", "selector",
    # KubeRay
    "rayStartParams",
    # Compose
    "environment",
    # Ray's launcher
    "file_mounts",
}  # fmt: skip
"""Mappings with arbitrary keys."""

NAMES_OF = {"services", "networks", "volumes", "secrets", "depends_on"}
"""Mappings of Compose whose keys are arbitrary names, and whose values have a schema."""

REQUIRED = {
    "Deployment": ["apiVersion", "kind", "spec.selector", "spec.template", "spec.template.spec.containers.0.name"],
    "Kustomization": ["apiVersion", "kind", "namespace", "resources"],
    "Namespace": ["apiVersion", "kind"],
    "NetworkPolicy": ["apiVersion", "kind", "spec.podSelector"],
    "PersistentVolumeClaim": ["apiVersion", "kind"],
    "RayCluster": [
        "apiVersion",
        "metadata",
        "spec.authOptions",
        "spec.headGroupSpec",
        "spec.headGroupSpec.rayStartParams",
        "spec.headGroupSpec.template",
        "spec.headGroupSpec.template.spec.containers",
        "spec.headGroupSpec.template.spec.containers.0.name",
        "spec.rayVersion",
        "spec.workerGroupSpecs.0.groupName",
        "spec.workerGroupSpecs.1.template.spec.containers",
        "spec.workerGroupSpecs.1.template.spec.containers.0.volumeMounts.0.mountPath",
    ],
    "RayJob": ["apiVersion", "spec.entrypoint", "spec.rayClusterSpec", "spec.rayClusterSpec.headGroupSpec"],
    "Service": ["apiVersion", "kind", "spec.ports.0.port"],
    "StatefulSet": ["apiVersion", "kind", "spec.selector", "spec.template", "spec.template.spec.containers"],
    "compose": ["services.mlflow.depends_on.postgres.condition"],
    "launcher": ["cluster_name", "provider", "provider.type", "provider.head_ip", "provider.worker_ips"],
}
"""Required fields by kind."""

NAMES = sorted(documents())


def kind(name: str) -> str:
    document = documents()[name]
    return str(document.get("kind") or ("compose" if "services" in document else "launcher"))


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all mappings in a document whose keys have a schema."""
    if isinstance(value, dict):
        if not at or not (at[-1] in FREE or at == ("spec", "metadata")):
            yield at
        for key, inner in value.items():
            yield from places(inner, (*at, key))
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*at, index))


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        document = document[step]
    return document


def test_all_manifests_are_checked() -> None:
    assert {kind(name) for name in NAMES} == {*REQUIRED}
    yaml_files = {path for path in INFRA.rglob("*") if path.suffix in (".yaml", ".yml")}
    checked = {INFRA / name.split(".yaml")[0] for name in NAMES}
    assert {path.with_suffix("") for path in yaml_files if path.name != "sweep.yaml"} == checked


@pytest.mark.parametrize("name", NAMES)
def test_manifests_conform_to_their_schemas(name: str) -> None:
    assert problems(documents()[name]) == []


@pytest.mark.parametrize("name", NAMES)
def test_unknown_fields_are_refused(name: str) -> None:
    passed = []
    for path in places(documents()[name]):
        broken = copy.deepcopy(documents()[name])
        at(broken, path)["unknownField"] = "x"
        if not problems(broken):
            passed.append(path)
    assert passed == []


@pytest.mark.parametrize("name", NAMES)
def test_misspelt_fields_are_refused(name: str) -> None:
    passed = []
    for path in places(documents()[name]):
        if path and path[-1] in NAMES_OF and kind(name) == "compose":
            continue
        for key in at(documents()[name], path):
            broken = copy.deepcopy(documents()[name])
            mapping = at(broken, path)
            mapping[f"{key}x"] = mapping.pop(key)
            if not problems(broken):
                passed.append((*path, key))
    assert passed == []


@pytest.mark.parametrize(("name", "field"), [(name, field) for name in NAMES for field in REQUIRED[kind(name)]])
def test_missing_required_fields_are_refused(name: str, field: str) -> None:
    broken = copy.deepcopy(documents()[name])
    *path, last = (int(step) if step.isdigit() else step for step in field.split("."))
    del at(broken, tuple(path))[last]
    assert problems(broken)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("kuberay/raycluster.yaml/RayCluster/sweeps", "spec.authOptions.mode", "tokens"),
        ("kuberay/raycluster.yaml/RayCluster/sweeps", "spec.autoscalerOptions.version", 2),
        ("kuberay/raycluster.yaml/RayCluster/sweeps", "spec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("kuberay/raycluster.yaml/RayCluster/sweeps", "spec.workerGroupSpecs.0.maxReplicas", "8"),
        ("kuberay/raycluster.yaml/RayCluster/sweeps", "metadata.name", "Sweeps"),
        ("kuberay/job/rayjob.yaml/RayJob/demo", "spec.submissionMode", "HTTP"),
        ("mlflow/kubernetes/mlflow.yaml/Deployment/mlflow", "spec.replicas", "1"),
        ("mlflow/compose.yaml", "services.mlflow.ports", "5000"),
        ("ray/cluster.yaml", "provider.worker_ips", "worker.example"),
    ],
)
def test_invalid_values_are_refused(name: str, field: str, value: Any) -> None:
    broken = copy.deepcopy(documents()[name])
    *path, last = (int(step) if step.isdigit() else step for step in field.split("."))
    at(broken, tuple(path))[last] = value
    assert problems(broken)


def test_duplicate_keys_are_refused(tmp_path: Any) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("kind: Pod\nkind: Service\n")
    with pytest.raises(Exception, match="duplicate key kind"):
        read(file)


def test_the_jobs_sweep_is_valid() -> None:
    assert sweeps.load_sweep(INFRA / "kuberay" / "job" / "sweep.yaml").name == "demo"
