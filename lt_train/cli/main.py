"""`lt-train`: the steps of classifier re-training one by one, from the command line.

Owns the flags and the exit codes: 0 done, 1 failed, 2 the user's input, 130 interrupted. What a command does is in
`lt_train.cli.commands`, which is imported when one runs: `--help` does not wait for torch.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lt_train.core.errors import LongtailError

__all__ = ["build_parser", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if arguments.allow_import:
            from lt_train.core.registry import ALLOWED_VARIABLE

            os.environ[ALLOWED_VARIABLE] = ",".join(arguments.allow_import)
            sys.path.append(os.getcwd())  # a package that lies here, last: no file here stands in for a library
        from lt_train.cli import commands

        command: Callable[[argparse.Namespace], None] = getattr(commands, arguments.command)
        command(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("lt-train: interrupted", file=sys.stderr)
        return 130
    except LongtailError as error:
        print(f"lt-train: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output is gone (`| head`): nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _minutes(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return number


def _path(text: str) -> Path:
    return Path(text).expanduser()


def build_parser() -> argparse.ArgumentParser:
    """The parser of `lt-train`."""
    parser = argparse.ArgumentParser(
        prog="lt-train", description="Classifier re-training for long-tailed data, step by step."
    )
    subparsers = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, summary: str, example: str, device: bool = True) -> argparse.ArgumentParser:
        # `name` is also the function in `lt_train.cli.commands`, with _ between its words.
        group, _, last = name.rpartition(" ")
        added = (groups[group] if group else subparsers).add_parser(
            last,
            help=summary,
            description=summary,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(command=name.replace(" ", "_"))
        added.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
        if device:
            added.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
        added.add_argument(
            "--allow-import",
            metavar="PACKAGE",
            action="append",
            default=[],
            help="kinds and models of this package are there too; its code runs",
        )
        return added

    data = subparsers.add_parser("data", help="look at a dataset", description="Look at a dataset.")
    groups = {"data": data.add_subparsers(required=True, metavar="command")}

    kind: dict[str, Any] = {"nargs": "+", "metavar": ("KIND", "NAME=VALUE")}

    check = command(
        "data check",
        "class counts, splits, an image of the tail, and what is wrong with the data; looks at every image",
        "lt-train data check --dataset image_folder root=~/birds size=224 --plot birds.png",
        device=False,
    )
    check.add_argument("--dataset", required=True, **kind, help="a dataset kind and its parameters")
    check.add_argument("--plot", type=_path, help="draw the class sizes into this PNG too")

    backbone = command(
        "backbone",
        "train a backbone (stage 1); a training that was killed goes on where it stopped",
        "lt-train backbone --dataset digits_lt imbalance_ratio=20 --backbone small_cnn --out digits.safetensors",
    )
    backbone.add_argument("--dataset", required=True, **kind, help="a dataset kind and its parameters")
    backbone.add_argument(
        "--backbone", default=["small_cnn"], **kind, help="a backbone kind and its parameters (default: small_cnn)"
    )
    backbone.add_argument("--recipe", default=["ce"], **kind, help="a stage-1 recipe and its parameters (default: ce)")
    backbone.add_argument("--out", type=_path, required=True, help="the checkpoint to write")
    backbone.add_argument("--seed", type=int, default=0, help="of initialisation, order and augmentation (default: 0)")

    backbone.add_argument(
        "--save-every",
        metavar="MINUTES",
        type=_minutes,
        default=10.0,
        help="keep the state within an epoch too, this often (default: 10); an epoch's end and Ctrl-C always do",
    )

    features = command(
        "features",
        "extract a feature bank and print its path; one that exists is not made again, one half made is gone on with",
        "lt-train features --dataset digits_lt --checkpoint digits.safetensors --views 20",
    )
    features.add_argument("--dataset", required=True, **kind, help="a dataset kind and its parameters")
    source = features.add_mutually_exclusive_group()
    source.add_argument(
        "--checkpoint", type=_path, help="of lt-train backbone; none for a dataset that brings features"
    )
    source.add_argument(
        "--backbone", **kind, help="a backbone with a checkpoint of its own, such as imported; instead of --checkpoint"
    )
    features.add_argument("--views", type=_positive, default=1, help="augmented views; 1: images as they are (default)")
    features.add_argument("--no-test-flip", action="store_true", help="test on images alone, without their mirrors")
    features.add_argument(
        "--dtype", choices=["float32", "float16"], default="float32", help="of features on disk (default: float32)"
    )
    features.add_argument(
        "--unreadable",
        choices=["fail", "skip"],
        default="fail",
        help="give up at an image that cannot be decoded, or leave it out and say so (default: fail)",
    )
    features.add_argument("--store", type=_path, default=Path("banks"), help="folder that holds banks (default: banks)")

    retrain = command(
        "retrain",
        "re-train the classifier on a bank with one method and several seeds",
        "lt-train retrain --bank banks/FINGERPRINT --method los smooth_factor=0.9 lr=5e-3 --out head.safetensors",
    )
    retrain.add_argument("--bank", type=_path, required=True, help="a bank of lt-train features")
    retrain.add_argument("--method", required=True, **kind, help="a method kind and its hyperparameters")
    retrain.add_argument("--epochs", type=_positive, default=20, help="passes over the training set (default: 20)")
    retrain.add_argument("--batch-size", type=_positive, default=64, help="images a step (default: 64)")
    retrain.add_argument("--seeds", type=_positive, default=5, help="how many seeds, from 0 (default: 5)")
    retrain.add_argument(
        "--engine",
        choices=["fused", "reference"],
        default="fused",
        help="fused trains all seeds at once; reference is the plain loop it is held against (default: fused)",
    )
    retrain.add_argument(
        "--select", choices=["val", "test"], default="val", help="what the best is chosen on (default: val)"
    )
    retrain.add_argument("--epoch", choices=["last", "best"], default="last", help="whose head counts (default: last)")
    retrain.add_argument("--out", type=_path, help="write the head of the best seed here")

    evaluate = command(
        "evaluate",
        "accuracy, LoMa and regularised std of a head on a bank's test set, by class split",
        "lt-train evaluate --bank banks/FINGERPRINT --head head.safetensors",
    )
    evaluate.add_argument("--bank", type=_path, required=True, help="a bank of lt-train features")
    evaluate.add_argument("--head", type=_path, help="of lt-train retrain --out; default: the bank's stage-1 head")
    return parser


if __name__ == "__main__":
    sys.exit(main())
