"""Models of RayCluster and RayJob, because no package contains KubeRay's schema.

Fields, types and enumerations are those of the API reference of KubeRay 1.7.0 (`ray.io/v1`). Only the fields in our
manifests are modelled. All others are refused until they are added here. `pods` returns pod templates, to be validated
by Kubernetes' own schema.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["RayCluster", "RayJob", "pods"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    # The operator derives names of services and pods from it, and refuses longer ones.
    name: str = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=47)


class AuthOptions(Strict):
    mode: Literal["disabled", "token"]
    secretName: str


class AutoscalerOptions(Strict):
    version: Literal["v1", "v2"]
    idleTimeoutSeconds: int = Field(ge=0)
    resources: dict[str, Any]
    securityContext: dict[str, Any]


class HeadGroupSpec(Strict):
    rayStartParams: dict[str, str]
    template: dict[str, Any]


class WorkerGroupSpec(Strict):
    groupName: str
    minReplicas: int = Field(ge=0)
    maxReplicas: int = Field(ge=0)
    rayStartParams: dict[str, str]
    template: dict[str, Any]


class RayClusterSpec(Strict):
    rayVersion: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool
    autoscalerOptions: AutoscalerOptions
    headGroupSpec: HeadGroupSpec
    workerGroupSpecs: list[WorkerGroupSpec] = Field(min_length=1)


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: RayClusterSpec


class RayJobSpec(Strict):
    entrypoint: str = Field(min_length=1)
    metadata: dict[str, str]
    runtimeEnvYAML: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    backoffLimit: int = Field(ge=0)
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int = Field(ge=0)
    rayClusterSpec: RayClusterSpec


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


def pods(document: RayCluster | RayJob) -> dict[str, dict[str, Any]]:
    """The pods that the operator creates, as Pod documents by group; the head's includes the autoscaler."""
    spec = document.spec if isinstance(document, RayCluster) else document.spec.rayClusterSpec
    templates = {"head": spec.headGroupSpec.template}
    templates |= {group.groupName: group.template for group in spec.workerGroupSpecs}
    made = {
        group: {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": group, **template["metadata"]}}
        for group, template in templates.items()
    }
    options = spec.autoscalerOptions
    head = made["head"]["spec"]
    autoscaler = {
        "name": "autoscaler",
        "image": head["containers"][0]["image"],
        "resources": options.resources,
        "securityContext": options.securityContext,
    }
    made["head"]["spec"] = {**head, "containers": [*head["containers"], autoscaler]}
    return made
