"""Reads the files in infra/ and validates them by the schema of their kind.

The schemas of Kubernetes and Compose come from packages, that of the launcher from Ray, those of KubeRay are in
`kuberay_models`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import jsonschema
import kubernetes_validate
import yaml
from infra.kuberay_models import RayCluster, RayJob, pods
from pydantic import BaseModel, ConfigDict, ValidationError

__all__ = ["INFRA", "Document", "documents", "pods_of", "problems", "read"]

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
KUBERNETES = "1.32"
"""Version of the schema, the oldest that is supported."""

Document = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


def read(path: Path) -> list[Document]:
    """The documents of one file."""
    return list(yaml.load_all(path.read_text(), _Loader))


@functools.cache
def documents() -> dict[str, Document]:
    """All documents of YAML files in infra/ except sweep files, by path, kind and name."""
    found: dict[str, Document] = {}
    for path in sorted(INFRA.rglob("*.yaml")):
        if path.name == "sweep.yaml":
            continue
        for document in read(path):
            kind, name = document.get("kind", ""), document.get("metadata", {}).get("name", "")
            found["/".join(filter(None, (str(path.relative_to(INFRA)), kind, name)))] = document
    return found


def problems(document: Document) -> list[str]:
    """Errors of a document by the schema of its kind."""
    if "services" in document:
        return _json_schema_problems(document, _compose_schema())
    if "cluster_name" in document:
        return _launcher_problems(document)
    if document.get("kind") in MODELS:
        return _model_problems(document, MODELS[document["kind"]])
    return _kubernetes_problems(document)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Generator(Strict):
    name: str
    files: list[str]


class GeneratorOptions(Strict):
    disableNameSuffixHash: bool


class Kustomization(Strict):
    """The fields of a kustomization that our files use."""

    apiVersion: Literal["kustomize.config.k8s.io/v1beta1"]
    kind: Literal["Kustomization"]
    namespace: str
    resources: list[str]
    configMapGenerator: list[Generator] = []
    secretGenerator: list[Generator] = []
    generatorOptions: GeneratorOptions | None = None


MODELS: dict[str, type[BaseModel]] = {"Kustomization": Kustomization, "RayCluster": RayCluster, "RayJob": RayJob}


def _model_problems(document: Document, model: type[BaseModel]) -> list[str]:
    try:
        found = model.model_validate(document)
    except ValidationError as error:
        return [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    if isinstance(found, RayCluster | RayJob):
        try:
            found_pods = pods(found)
        except KeyError as missing:
            return [f"{missing} is required"]
        return [f"{group}: {problem}" for group, pod in found_pods.items() for problem in _kubernetes_problems(pod)]
    return []


def _kubernetes_problems(document: Document) -> list[str]:
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [error.message]
    except KeyError as missing:
        return [f"{missing} is required"]
    return []


@functools.cache
def _compose_schema() -> dict[str, Any]:
    text = (files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json").read_text()
    schema: dict[str, Any] = json.loads(text)
    return schema


def _json_schema_problems(document: Document, schema: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.validators.validator_for(schema)(schema).iter_errors(document)]


def _launcher_problems(document: Document) -> list[str]:
    """Errors by Ray's schema, after filling in defaults like `ray up`, and unknown fields that the schema allows."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        unknown = {*document["provider"]} - {"type", "head_ip", "worker_ips"}
        validate_config(prepare_config(document))
    except (jsonschema.ValidationError, KeyError, SystemExit, Exception) as error:
        return [str(error)]
    return [f"provider: {name} is unknown" for name in unknown]


def pods_of(document: Document) -> Iterator[tuple[str, Document]]:
    """Name and template of every pod that a document creates."""
    kind = document.get("kind")
    if kind in ("Deployment", "StatefulSet"):
        yield document["metadata"]["name"], document["spec"]["template"]
    if kind in ("RayCluster", "RayJob"):
        yield from pods(MODELS[kind].model_validate(document)).items()  # type: ignore[arg-type]
