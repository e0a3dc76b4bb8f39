"""Properties of the manifests that no schema checks: restricted pods, valid references, network policies."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from infra.manifests import INFRA, Document, documents, pods_of

import sweeps
import sweeps.cli.app
from sweeps.cluster.environment import SECRET_FILE_PREFIX, SECRET_NAME
from sweeps.cluster.jobs import STORAGE, SWEEP
from sweeps.store.progress import JOB_VARIABLE

PODS = {f"{name}: {pod}": spec for name, document in documents().items() for pod, spec in pods_of(document)}
CLUSTER = documents()["kuberay/raycluster.yaml/RayCluster/sweeps"]
JOB = documents()["kuberay/job/rayjob.yaml/RayJob/demo"]
FOLDERS = {
    "kuberay": ["kuberay"],
    "kuberay/job": ["kuberay", "kuberay/job"],  # applied after `kuberay`, to the same namespace
    "mlflow": ["mlflow"],
}
"""Folders with a kustomization, and the folders whose objects they may refer to."""


def kustomization(folder: str) -> Document:
    return documents()[f"{folder}/kustomization.yaml/Kustomization"]


def applied(folder: str) -> list[Document]:
    """The documents that a kustomization lists."""
    names = [f"{folder}/{resource}" for resource in kustomization(folder)["resources"]]
    return [document for name, document in documents().items() if any(name.startswith(f"{one}/") for one in names)]


@pytest.mark.parametrize("pod", PODS)
def test_pods_conform_to_the_restricted_standard(pod: str) -> None:
    """The labels of their namespaces enforce it."""
    spec = PODS[pod]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & {*spec}
    kinds = {kind for volume in spec["volumes"] for kind in {*volume} - {"name"}}
    assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not {"privileged", "runAsUser"} & {*container["securityContext"]}
        assert all("hostPort" not in port for port in container.get("ports", ()))


@pytest.mark.parametrize("pod", PODS)
def test_pods_declare_their_resources(pod: str) -> None:
    for container in PODS[pod]["spec"]["containers"]:
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= {*container["resources"][kind]}, (container["name"], kind)


@pytest.mark.parametrize("pod", PODS)
def test_only_the_head_has_a_service_account(pod: str) -> None:
    assert PODS[pod]["spec"].get("automountServiceAccountToken", pod.endswith(": head")) is pod.endswith(": head")


@pytest.mark.parametrize("pod", PODS)
def test_secrets_are_mounted_as_files(pod: str) -> None:
    for container in PODS[pod]["spec"]["containers"]:
        for variable in container.get("env", ()):
            assert "value" in variable, f"{variable['name']} has no value"
            path = variable["name"].startswith(SECRET_FILE_PREFIX) or variable["name"].endswith(
                ("_FILE", "_PATH", "_SECRETS")
            )
            assert path or not SECRET_NAME.search(variable["name"]), variable["name"]


def test_namespaces_enforce_the_restricted_standard() -> None:
    namespaces = [document for document in documents().values() if document.get("kind") == "Namespace"]
    assert {one["metadata"]["name"] for one in namespaces} == {"mlflow", "sweeps"}
    for one in namespaces:
        assert one["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("folder", FOLDERS)
def test_kustomizations_list_all_existing_files(folder: str) -> None:
    listed = {INFRA / folder / resource for resource in kustomization(folder)["resources"]}
    assert all(path.is_file() for path in listed)
    own = {
        INFRA / name.partition(".yaml")[0]
        for name, document in documents().items()
        if "apiVersion" in document and document["kind"] != "Kustomization" and owner(name) == folder
    }
    assert own == {path.with_suffix("") for path in listed}
    for generator in kustomization(folder).get("configMapGenerator", ()):
        assert all((INFRA / folder / file).is_file() for file in generator["files"])
    for generator in kustomization(folder).get("secretGenerator", ()):
        assert all(file.startswith("secrets/") for file in generator["files"])
        assert (INFRA / folder / ".gitignore").read_text().splitlines()[-1] == "secrets/"


def owner(name: str) -> str:
    """The innermost folder with a kustomization that contains a file."""
    return max((folder for folder in FOLDERS if name.startswith(f"{folder}/")), key=len, default="")


@pytest.mark.parametrize("folder", FOLDERS)
def test_volumes_of_pods_exist(folder: str) -> None:
    made: set[tuple[str, str]] = set()
    for place in FOLDERS[folder]:
        for kind in ("configMap", "secret"):
            made |= {(kind, one["name"]) for one in kustomization(place).get(f"{kind}Generator", ())}
        claims = [one for one in applied(place) if one["kind"] == "PersistentVolumeClaim"]
        made |= {("persistentVolumeClaim", one["metadata"]["name"]) for one in claims}
    for document in applied(folder):
        for pod, template in pods_of(document):
            templates = document["spec"].get("volumeClaimTemplates", ())
            volumes = {one["metadata"]["name"] for one in templates}
            for volume in template["spec"]["volumes"]:
                volumes.add(volume["name"])
                (kind,) = {*volume} - {"name"}
                named = volume[kind].get("secretName") or volume[kind].get("claimName") or volume[kind].get("name")
                assert (kind, named) in made, (pod, volume)
            for container in template["spec"]["containers"]:
                assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes


def test_ray_uses_the_generated_token() -> None:
    assert CLUSTER["spec"]["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    made = {one["name"]: one["files"] for one in kustomization("kuberay")["secretGenerator"]}
    assert made["ray-token"] == ["secrets/auth_token"]  # the key that the operator reads
    assert kustomization("kuberay")["generatorOptions"] == {"disableNameSuffixHash": True}


def test_the_head_trains_no_packs_and_workers_are_scaled() -> None:
    spec = CLUSTER["spec"]
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert {*groups} == {"cpu", "gpu"}
    gpus = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in groups.values()]
    assert [one.get("nvidia.com/gpu") for one in gpus] == [None, "1"]


def test_the_cluster_of_a_job_equals_the_permanent_cluster() -> None:
    """Except for the sweep file, which all pods mount, because the driver may run on any of them."""
    job = copy.deepcopy(JOB["spec"]["rayClusterSpec"])
    for template in [job["headGroupSpec"]["template"], *(group["template"] for group in job["workerGroupSpecs"])]:
        volumes = template["spec"]["volumes"]
        assert {"name": "sweep", "configMap": {"name": "sweep"}} in volumes
        template["spec"]["volumes"] = [volume for volume in volumes if volume["name"] != "sweep"]
        mounts = template["spec"]["containers"][0]["volumeMounts"]
        mounts[:] = [mount for mount in mounts if mount["name"] != "sweep"]
    assert job == CLUSTER["spec"]


def test_a_job_has_the_metadata_of_lt_sweep_submit() -> None:
    spec = JOB["spec"]
    program, *arguments = shlex.split(spec["entrypoint"])
    assert program == "lt-sweep"
    given = sweeps.cli.app.parse(arguments)
    mounts = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    (mount,) = [mount["mountPath"] for mount in mounts if mount["name"] == "sweep"]
    assert given["spec"].parent == Path(mount)
    assert kustomization("kuberay/job")["configMapGenerator"] == [{"name": "sweep", "files": [given["spec"].name]}]

    sweep = sweeps.load_sweep(INFRA / "kuberay" / "job" / given["spec"].name)
    assert spec["metadata"] == {SWEEP: sweep.name, STORAGE: sweep.storage}
    assert any(Path(sweep.storage).is_relative_to(one["mountPath"]) for one in mounts if one["name"] == "storage")
    environment = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert environment[JOB_VARIABLE] == JOB["metadata"]["name"] == sweep.name
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) >= 30
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True


@pytest.mark.parametrize("pod", [name for name in PODS if name.startswith("kuberay")])
def test_drivers_have_their_mlflow_login(pod: str) -> None:
    container = PODS[pod]["spec"]["containers"][0]
    environment = {one["name"]: one["value"] for one in container["env"]}
    path = environment[f"{SECRET_FILE_PREFIX}MLFLOW_TRACKING_PASSWORD"]
    assert environment["MLFLOW_TRACKING_USERNAME"] == "sweeps"
    (mount,) = [one for one in container["volumeMounts"] if Path(path).is_relative_to(one["mountPath"])]
    (volume,) = [one for one in PODS[pod]["spec"]["volumes"] if one["name"] == mount["name"]]
    made = {one["name"]: one["files"] for one in kustomization("kuberay")["secretGenerator"]}
    assert made[volume["secret"]["secretName"]] == [f"secrets/{Path(path).name}"]


def test_the_jobs_sweep_uses_the_mlflow_service() -> None:
    uri = sweeps.load_sweep(INFRA / "kuberay" / "job" / "sweep.yaml").tracking.uri
    host = re.fullmatch(r"http://(\S+)", uri)[1]
    (pod,) = [spec for name, spec in PODS.items() if name.startswith("mlflow/kubernetes/mlflow.yaml")]
    environment = {one["name"]: one["value"] for one in pod["spec"]["containers"][0]["env"]}
    assert host in environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    name, namespace = host.partition(":")[0].split(".")
    assert documents()["mlflow/kubernetes/mlflow.yaml/Service/mlflow"]["metadata"]["name"] == name
    assert kustomization("mlflow")["namespace"] == namespace


POLICIES = {
    name.split("/networkpolicy.yaml/NetworkPolicy/")[0] + " " + document["metadata"]["name"]: document["spec"]
    for name, document in documents().items()
    if document.get("kind") == "NetworkPolicy"
}


def callers(policy: dict[str, Any]) -> list[tuple[list[int], list[Any]]]:
    return [([one["port"] for one in rule.get("ports", ())], rule["from"]) for rule in policy["ingress"]]


def test_connections_are_denied_by_default() -> None:
    for place in ("kuberay", "mlflow/kubernetes"):
        assert POLICIES[f"{place} deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert {*POLICIES} == {
        "kuberay deny-all",
        "kuberay ray-nodes",
        "kuberay job-api",
        "mlflow/kubernetes deny-all",
        "mlflow/kubernetes mlflow",
        "mlflow/kubernetes postgres",
    }


def test_policies_allow_the_documented_clients_only() -> None:
    ray = {"app.kubernetes.io/name": "longtail-sweeps"}
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    sweeping = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "sweeps"}},
        "podSelector": {"matchLabels": ray},
    }
    assert callers(POLICIES["kuberay ray-nodes"]) == [([], [{"podSelector": {"matchLabels": ray}}])]
    assert callers(POLICIES["kuberay job-api"]) == [([8265], [operator, labelled("job-api")])]
    assert callers(POLICIES["mlflow/kubernetes mlflow"]) == [([5000], [sweeping, labelled("mlflow")])]
    mlflow = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "mlflow"}}}
    assert callers(POLICIES["mlflow/kubernetes postgres"]) == [([5432], [mlflow])]


def labelled(what: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {f"longtail-sweeps/{what}": "allowed"}}}


@pytest.mark.parametrize("policy", [name for name in POLICIES if not name.endswith("deny-all")])
def test_policies_select_existing_pods(policy: str) -> None:
    wanted = POLICIES[policy]["podSelector"]["matchLabels"]
    wanted = {key: value for key, value in wanted.items() if not key.startswith("ray.io/")}  # set by the operator
    folder = policy.split("/")[0].split(" ")[0]
    labels = [spec["metadata"]["labels"] for name, spec in PODS.items() if name.startswith(folder)]
    assert any(wanted.items() <= one.items() for one in labels)


@pytest.mark.parametrize("name", [name for name, document in documents().items() if document.get("kind") == "Service"])
def test_services_select_a_pod_and_one_of_its_ports(name: str) -> None:
    service = documents()[name]["spec"]
    (pod,) = [
        spec
        for other, spec in PODS.items()
        if other.startswith("mlflow") and service["selector"].items() <= spec["metadata"]["labels"].items()
    ]
    there = {port["containerPort"] for container in pod["spec"]["containers"] for port in container["ports"]}
    assert {port["port"] for port in service["ports"]} <= there
