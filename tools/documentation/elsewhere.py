"""Commands of the pages that are not run where the others are: which tests run them, or why no test can.

What is not in here is run by `test_pages.py`; what stands in here and in no page, or names no test, fails there. A new
command of docs/cluster.md therefore needs a test, or a reason that somebody has read.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["ELSEWHERE", "typed_in"]

MAKE = "its target is looked up by test_pages.py, and what it calls has tests of its own"
SHELL = "sets up a person's shell, as every test's is"
MACHINES = "needs machines of one's own; the file that it names is held against its schema by tests/infra"
KUBERNETES = "needs a Kubernetes; the manifests are held against their schemas by tests/infra"
DOCKER = "needs Docker; the file that it names is read by tests/infra"
HOURS = "takes hours, and published images; the file is validated instead"

PAGE = ("tests/cluster/test_the_page.py::test_a_rehearsal_runs_from_the_first_to_the_last_line",)
WATCHED = "tests/cluster/test_jobs.py::test_a_sweep_is_submitted_watched_and_found_finished"
STOPPED = "tests/cluster/test_jobs.py::test_a_sweep_is_stopped_in_good_order_and_resumed"
FAILED = "tests/cluster/test_jobs.py::test_a_sweep_that_fails_says_why"
SHIPPED = "tests/cluster/test_jobs.py::test_code_travels_where_it_is_asked_to"
SECRETS = ("tests/infra/test_mlflow.py::test_secrets_are_made_once_and_only_their_owner_gets_to_them",)
USERS = (
    "tests/infra/test_mlflow.py::test_a_user_is_added_without_a_password_on_the_command_line",
    "tests/infra/test_mlflow.py::test_a_server_that_comes_up_is_waited_for",
)
RAY_UP = ("tests/infra/test_ray_cluster.py::test_commands_are_ones_that_ray_takes",)

HERE = "--address http://127.0.0.1:8265"
LOGIN = "--env MLFLOW_TRACKING_USERNAME=sweeps --secret-file MLFLOW_TRACKING_PASSWORD="

ELSEWHERE: dict[str, dict[str, str | tuple[str, ...]]] = {
    "README.md": {
        "make demo": ("tests/documentation/test_demo.py::test_it_runs_and_prints_what_the_front_page_shows",),
        **{f"make {target}": MAKE for target in ("test", "test-cluster", "lint", "bench", "docs")},
    },
    "docs/tutorial.md": {"make env": MAKE, 'export PATH="$PWD/.venv/bin:$PATH"': SHELL},
    "docs/frozen.md": {
        "python benchmarks/frozen.py": ("tests/benchmarks/test_frozen.py::test_a_tiny_measurement_is_whole",)
    },
    "docs/mlflow.md": {
        "LT_SCREENSHOTS=docs/images python -m pytest tests/sweeps/tracking/test_mlflow_in_a_browser.py": (
            "tests/sweeps/tracking/test_mlflow_in_a_browser.py::test_the_runs_table_shows_what_matters_best_first",
        )
    },
    "docs/report.md": {"make bench BENCH=--parts=f": MAKE},
    "docs/paper.md": {"lt-sweep run sweeps/specs/table4.yaml": HOURS},
    "docs/results.md": {
        "lt-sweep run short.yaml --backend inline": HOURS,
        "lt-sweep run half.yaml --backend inline": HOURS,
        "lt-sweep table half.yaml --markdown": "shows what the run before found; docs/paper.md has it of another",
    },
    "docs/cluster.md": {
        "make env": MAKE,
        'export PATH="$PWD/.venv/bin:$PATH"': SHELL,
        "python infra/local/cluster.py up --workers 2 --cpus 4": PAGE,
        "source .local-cluster/env.sh": PAGE,
        f'lt-sweep submit .local-cluster/demo.yaml --watch {LOGIN}"$PWD/.local-cluster/sweeps.password"': PAGE,
        "lt-sweep logs demo": PAGE,
        "python infra/local/cluster.py down": PAGE,
        'ssh-keygen -t ed25519 -N "" -f ~/.ssh/longtail-sweeps': MACHINES,
        "for host in head.example worker-1.example worker-2.example; do ssh-copy-id -i ~/.ssh/longtail-sweeps "
        "sweeps@$host; done": MACHINES,
        "ray get-auth-token --generate >/dev/null": MACHINES,
        "ray up infra/ray/cluster.yaml": RAY_UP,
        "ssh -f -N -o ExitOnForwardFailure=yes -o ServerAliveInterval=15 "
        "-i ~/.ssh/longtail-sweeps -L 8265:127.0.0.1:8265 -L 5000:127.0.0.1:5000 "
        "sweeps@head.example": MACHINES,
        "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=~/.ray/auth_token": SHELL,
        "infra/mlflow/new_secrets.sh infra/mlflow/secrets postgres-password admin-password session-key "
        "sweeps-password": SECRETS,
        "docker compose -f infra/mlflow/compose.yaml up --detach --wait": DOCKER,
        "python3 infra/mlflow/add_user.py sweeps infra/mlflow/secrets/sweeps-password": USERS,
        "install -m 600 infra/mlflow/secrets/sweeps-password ~/mlflow-password": MACHINES,
        f"lt-sweep submit mine.yaml {HERE} --watch {LOGIN}/home/sweeps/mlflow-password": (STOPPED, SHIPPED),
        "ray down infra/ray/cluster.yaml": MACHINES,
        "helm install kuberay-operator kuberay/kuberay-operator --version 1.7.0 --namespace kuberay-system "
        "--create-namespace": KUBERNETES,
        "docker build -f infra/docker/Dockerfile -t longtail-sweeps:0.1.0 .": DOCKER,
        "docker tag longtail-sweeps:0.1.0 REGISTRY/longtail-sweeps:0.1.0": DOCKER,
        "docker push REGISTRY/longtail-sweeps:0.1.0": DOCKER,
        "infra/mlflow/new_secrets.sh infra/mlflow/secrets postgres-password admin-password session-key": SECRETS,
        "infra/mlflow/new_secrets.sh infra/kuberay/secrets auth_token mlflow-password": SECRETS,
        "kubectl apply -k infra/mlflow": KUBERNETES,
        "kubectl --namespace mlflow rollout status deployment/mlflow": KUBERNETES,
        "kubectl --namespace mlflow port-forward service/mlflow 5000 &": KUBERNETES,
        "python infra/mlflow/add_user.py sweeps infra/kuberay/secrets/mlflow-password --wait 60": USERS,
        "kubectl apply -k infra/kuberay": KUBERNETES,
        "kubectl --namespace sweeps wait --for=condition=HeadPodReady raycluster/sweeps --timeout=15m": KUBERNETES,
        "kubectl --namespace sweeps port-forward service/sweeps-head-svc 8265 &": KUBERNETES,
        "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=infra/kuberay/secrets/auth_token": SHELL,
        f"lt-sweep submit mine.yaml {HERE} --watch": (SHIPPED,),
        "kubectl apply -k infra/kuberay/job": KUBERNETES,
        "kubectl --namespace sweeps get rayjob demo --watch": KUBERNETES,
        "kubectl label namespace TEAM longtail-sweeps/job-api=allowed longtail-sweeps/mlflow=allowed": KUBERNETES,
        f"lt-sweep list {HERE}": (WATCHED,),
        f"lt-sweep status mine {HERE} --watch": (WATCHED,),
        f"lt-sweep logs mine {HERE} --follow": (FAILED,),
        f"lt-sweep stop mine {HERE}": (STOPPED,),
        f"lt-sweep resume mine {HERE}": (STOPPED,),
    },
}
"""By page, by command: the tests that run it, or a sentence that says why none does."""


def typed_in(page: str) -> Callable[[str], str | None]:
    """What is typed for a command of this page where the others are run: of a run of hours, a check of its file."""
    elsewhere = ELSEWHERE.get(page, {})

    def typed(command: str) -> str | None:
        if elsewhere.get(command) == HOURS:
            return command.replace("lt-sweep run", "lt-sweep validate").removesuffix(" --backend inline")
        return None if command in elsewhere else command

    return typed
