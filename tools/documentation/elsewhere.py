"""Commands of the pages that `test_pages.py` does not run: the tests that run them, or the reason why no test does.

`test_pages.py` runs all other commands. It fails if an entry is in no page or names a missing test. A new command of
docs/cluster.md therefore needs a test or a reason.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["ELSEWHERE", "typed_in"]

INSTALL = "tools/check_install.py installs the wheel"
MAKE = "test_pages.py checks that the target exists; the program that it calls has its own tests"
SHELL = "sets up the shell, as the tests do"
MACHINES = "needs several machines; tests/infra checks the file that it names against its schema"
KUBERNETES = "needs Kubernetes; tests/infra checks the manifests against their schemas"
DOCKER = "needs Docker; tests/infra reads the file that it names"
SERVER = "runs until Ctrl-C; test_plots.py stores the study that it shows"
HOURS = "takes hours and needs published images; the file is validated instead"

PAGE = ("tests/cluster/test_the_page.py::test_the_commands_of_the_documentation_run",)
WATCHED = "tests/cluster/test_jobs.py::test_a_sweep_is_submitted_and_watched"
STOPPED = "tests/cluster/test_jobs.py::test_a_sweep_is_stopped_gracefully_and_resumed"
FAILED = "tests/cluster/test_jobs.py::test_the_status_of_a_failed_sweep_has_the_reason"
SHIPPED = "tests/cluster/test_jobs.py::test_code_is_shipped_on_request"
SECRETS = ("tests/infra/test_mlflow.py::test_secrets_are_created_once_in_a_private_directory",)
USERS = (
    "tests/infra/test_mlflow.py::test_a_user_is_added_without_a_password_on_the_command_line",
    "tests/infra/test_mlflow.py::test_add_user_waits_for_the_server",
)
RAY_UP = ("tests/infra/test_ray_cluster.py::test_ray_accepts_the_commands",)

HERE = "--address http://127.0.0.1:8265"
LOGIN = "--env MLFLOW_TRACKING_USERNAME=sweeps --secret-file MLFLOW_TRACKING_PASSWORD="

ELSEWHERE: dict[str, dict[str, str | tuple[str, ...]]] = {
    "README.md": {
        "make demo": ("tests/documentation/test_demo.py::test_the_demo_prints_what_the_readme_shows",),
        "pip install '.[all]'": INSTALL,
    },
    "docs/tutorial.md": {"make env": MAKE, 'export PATH="$PWD/.venv/bin:$PATH"': SHELL},
    "docs/python.md": {"optuna-dashboard sqlite:///study.db": SERVER},
    "docs/frozen.md": {
        "python benchmarks/frozen.py": ("tests/benchmarks/test_frozen.py::test_a_tiny_measurement_is_complete",)
    },
    "docs/mlflow.md": {
        "LT_SCREENSHOTS=docs/images python -m pytest tests/sweeps/tracking/test_mlflow_in_a_browser.py": (
            "tests/sweeps/tracking/test_mlflow_in_a_browser.py::test_the_runs_table_shows_the_best_first",
        )
    },
    "docs/wandb.md": {
        "pip install '.[wandb]'": INSTALL,
        "wandb login": "needs an account",
        "wandb sync runs/wandb/offline-run-*": (
            "tests/sweeps/tracking/test_wandb.py::test_offline_files_can_be_synchronised",
        ),
        f"lt-sweep submit mine.yaml {HERE} --env WANDB_ENTITY=us --secret-file WANDB_API_KEY=/home/sweeps/wandb-key": (
            STOPPED,
        ),
    },
    "docs/report.md": {"make bench BENCH=--parts=f": MAKE},
    "docs/paper.md": {"lt-sweep run sweeps/specs/table4.yaml": HOURS},
    "docs/results.md": {
        "lt-sweep run short.yaml --backend inline": HOURS,
        "lt-sweep run half.yaml --backend inline": HOURS,
        "lt-sweep table half.yaml --markdown": "needs the results of that run; docs/paper.md has the same command",
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
"""By page and command: the tests that run it, or the reason why none does."""


def typed_in(page: str) -> Callable[[str], str | None]:
    """Maps a command of this page to the one that is run: validation instead of a run of hours, None to skip it."""
    elsewhere = ELSEWHERE.get(page, {})

    def typed(command: str) -> str | None:
        if elsewhere.get(command) == HOURS:
            return command.replace("lt-sweep run", "lt-sweep validate").removesuffix(" --backend inline")
        return None if command in elsewhere else command

    return typed
