"""A sweep file: its fields, how it is read, and what of it decides results.

Every default is visible here, in `sweeps.config.sections` or in the spec of a kind. Reading a file tells all its
problems at once, each with file and line; nothing starts before the whole of it is sound.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from lt_train.backbones.base import BACKBONES, BackboneSpec
from lt_train.core.errors import SpecError
from lt_train.core.io import fingerprint
from lt_train.core.registry import Spec
from lt_train.core.shorthand import Shorthand, expand
from lt_train.core.validation import Problem, dotted, explain
from lt_train.datasets.base import DATASETS, DatasetSpec
from lt_train.features.extract import FeaturesSpec
from lt_train.methods.base import METHODS, MethodSpec, TrainingSpec
from lt_train.methods.ce import PlainCrossEntropy
from lt_train.methods.vanilla import Vanilla
from lt_train.pretrain.base import RECIPES, RecipeSpec
from sweeps.config.backend import BACKENDS, BackendSpec
from sweeps.config.methods import Candidate, Methods, candidates
from sweeps.config.partial import valid_parts
from sweeps.config.rules import broken_rules
from sweeps.config.sections import PAPER_PROTOCOL, ResourcesSpec, SearchSpec, SelectionSpec
from sweeps.config.tracking import TRACKERS, TrackingSpec
from sweeps.config.yaml_source import Source, load_yaml

__all__ = ["MATRIX_KEY", "NAME", "SHARED", "SweepSpec", "checked", "load_resolved", "load_sweep", "schema", "told"]

if TYPE_CHECKING:
    Dataset = DatasetSpec
    Backbone = BackboneSpec | None
    Recipe = RecipeSpec | None
    Method = MethodSpec | None
    Baselines = list[MethodSpec]
    Selection = SelectionSpec
    Backend = BackendSpec
    Tracking = TrackingSpec
else:
    Dataset = Annotated[DATASETS.union(), Shorthand(tuple(DATASETS.kinds()))]
    Backbone = Annotated[BACKBONES.union() | None, Shorthand(tuple(BACKBONES.kinds()))]
    Recipe = Annotated[RECIPES.union() | None, Shorthand(tuple(RECIPES.kinds()))]
    Method = Annotated[METHODS.union() | None, Shorthand(tuple(METHODS.kinds()))]
    Baselines = Annotated[list[METHODS.union()], Shorthand(tuple(METHODS.kinds()), each=True)]
    Selection = Annotated[SelectionSpec, Shorthand(("paper",), meanings={"paper": PAPER_PROTOCOL})]
    Backend = Annotated[BACKENDS.union(), Shorthand(tuple(BACKENDS.kinds()))]
    Tracking = Annotated[TRACKERS.union(), Shorthand(tuple(TRACKERS.kinds()), default_kind="mlflow")]


MATRIX_KEY = "matrix"
"""The key that makes a file one of several sweeps; `sweeps.config.matrix` reads it."""

SHARED = ("version", "name", "backend", "tracking", "storage")
"""What all sweeps of a matrix have in common: nothing of it decides results."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What a sweep may be called."""

FILES = (("dataset", "root"), ("dataset", "path"), ("backbone", "checkpoint"))
"""Section and field of every file or directory that a sweep reads."""


class SweepSpec(Spec):
    """One sweep. Wherever a kind is asked for, its bare name stands for the kind with its defaults."""

    model_config = ConfigDict(serialize_by_alias=True)

    version: Literal[1] = Field(description="version of this format; 1")
    name: str = Field(
        pattern=NAME,
        description="at most 64 letters, digits, dots, dashes or underscores, the first a letter or digit",
    )
    dataset: Dataset = Field(description="the long-tailed data")
    backbone: Backbone = Field(
        default=None, description="the frozen network; left out where the dataset brings features"
    )
    stage1: Recipe = Field(
        default=None, description="how to train the backbone first; left out where backbone.checkpoint is given"
    )
    features: FeaturesSpec = Field(default=FeaturesSpec(), description="how the backbone's features are taken")
    method: Method = Field(
        default=None, description="how the classifier is re-trained; its fields are the values not searched"
    )
    methods: Methods = Field(
        default=None,
        min_length=1,
        description="instead of method: several, each searched with the same number of trials, compared side by side",
    )
    training: TrainingSpec = Field(default=TrainingSpec(), description="how long and in what batches to re-train")
    search: SearchSpec = Field(description="which hyperparameter settings are tried")
    selection: Selection = Field(
        default=SelectionSpec(), description="on which number the winner is chosen; paper stands for the paper's way"
    )
    baselines: Baselines = Field(
        default=[Vanilla(), PlainCrossEntropy()],
        description="methods to run beside the search with the same seeds, for comparison; if not given: vanilla, and "
        "ce where there is one method",
    )
    backend: Backend = Field(
        default=BACKENDS.kinds()["ray"](kind="ray"),
        description="where packs are trained; ray, or inline in this process",
    )
    resources: ResourcesSpec = Field(default=ResourcesSpec(), description="what one pack gets of a machine")
    tracking: Tracking = Field(
        default=TRACKERS.kinds()["mlflow"](kind="mlflow"),
        description="where finished trials are shown; a mapping without kind is MLflow's; none switches it off",
    )
    storage: str = Field(
        default="runs", min_length=1, description="directory for this sweep's ledger and results, under its name"
    )

    @model_validator(mode="after")
    def _keep_the_rules(self) -> SweepSpec:
        problems = list(broken_rules(dict(self)))
        if problems:
            raise PydanticCustomError("broken_rules", "rules between parts are broken", {"problems": problems})
        return self

    def resolved(self) -> dict[str, Any]:
        """The sweep with every default written out, as JSON holds it; `load_resolved` reads it back."""
        return self.model_dump(mode="json", exclude={"methods" if self.methods is None else "method"})

    def candidates(self) -> list[Candidate]:
        """The method, or the methods, that are searched."""
        return candidates(self.method, self.methods, self.training, self.search)

    def fingerprint(self) -> str:
        """sha256 (hex) of everything that decides results.

        Left out: the name, where data lies (what it holds is in the bank's fingerprint), where results are kept and
        shown, where packs run and on what device. Left in: threads and lanes a pack, since sums are taken in another
        order when they change.
        """
        document = self.resolved()
        document["dataset"] = self.dataset.identity()
        if document["backbone"] is not None:
            del document["backbone"]["checkpoint"]
        for part in ("name", "tracking", "storage", "backend"):
            del document[part]
        document["features"] = self.features.identity()
        if self.stage1 is not None:
            document["stage1"] = self.stage1.identity()
        # How many train the backbone is in its address, and so in the fingerprint of its features.
        for free in ("gpus_per_pack", "stage1_workers", "extract_workers"):
            del document["resources"][free]
        if self.resources.lanes_per_pack != "auto":
            del document["resources"]["memory_per_pack"]
        for once_the_only_way in self.selection.at_default("extended_training"):
            del document["selection"][once_the_only_way]
        # A grid is walked in the file's order, which a mapping's fingerprint would not see.
        for searched in (document["search"], *document.get("methods", ())):
            searched["space"] = list(searched["space"].items())
        return fingerprint(document)

    def files(self) -> dict[str, str]:
        """The files and directories that are read, as the file gives them, by dotted path of the field."""
        document = self.resolved()
        named = {f"{part}.{name}": (document[part] or {}).get(name) for part, name in FILES}
        return {field: path for field, path in named.items() if path}

    def anchored(self, place: Path) -> SweepSpec:
        """The same sweep with `~` and paths relative to `place` written out: good from any directory.

        Paths are `storage`, `backbone.checkpoint`, a SQLite `tracking.uri`, a `backend.bank_store` that is no URL, and
        `root` or `path` of a dataset.
        """

        def absolute(text: str) -> str:
            return str(place / Path(text).expanduser())

        document = self.resolved()
        document["storage"] = absolute(self.storage)
        for part, name in FILES:
            if (document[part] or {}).get(name):
                document[part][name] = absolute(document[part][name])
        store = document["backend"].get("bank_store")
        if store and "://" not in store:
            document["backend"]["bank_store"] = absolute(store)
        sqlite, uri = "sqlite:///", document["tracking"].get("uri") or ""
        if uri.startswith(sqlite) and uri != sqlite:
            document["tracking"]["uri"] = sqlite + absolute(uri.removeprefix(sqlite))
        if "experiment" in document["tracking"]:
            # The default is the sweep's name, and must stay what it was when a directory is renamed.
            document["tracking"]["experiment"] = document["tracking"]["experiment"] or self.name
        return load_resolved(document)


def load_sweep(path: str | Path) -> SweepSpec:
    """Read and check the file of one sweep.

    Raises:
        SpecError: `problems` holds every problem as `file:line: dotted.path: what is wrong; did you mean ...`; a file
            with `matrix` is of several sweeps, and for `sweeps.config.matrix` to read.
    """
    source = load_yaml(path)
    if MATRIX_KEY in source.document:
        why = "matrix: makes several sweeps, and one is wanted; sweeps.load_matrix reads them"
        raise SpecError(source.complaint((MATRIX_KEY,), why))
    sweep = checked(source.document)
    if isinstance(sweep, SweepSpec):
        return sweep
    raise SpecError(told(sweep, source))


def load_resolved(document: Mapping[str, Any]) -> SweepSpec:
    """The sweep that `SweepSpec.resolved` (or a program) wrote; shorthands are understood too.

    Raises:
        SpecError: as `load_sweep`, without file and line.
    """
    sweep = checked(document)
    if isinstance(sweep, SweepSpec):
        return sweep
    raise SpecError([f"{dotted(loc)}: {message}" for loc, message in sweep])


def schema() -> dict[str, Any]:
    """The JSON schema of a sweep file, for editors. It knows fields and ranges; `load_sweep` knows the rest."""
    document = SweepSpec.model_json_schema()
    optional = {"mlflow", "pad_crop"}  # the kinds of a mapping in `tracking` and `augmentation` that names none
    for definition in document["$defs"].values():
        kind = definition.get("properties", {}).get("kind", {}).get("const")
        if kind is not None and kind not in optional:
            definition["required"] = sorted({"kind", *definition.get("required", [])})
    every = document["properties"]
    own = {name: field for name, field in every.items() if name not in SHARED}
    # A matrix's file may leave to `matrix` what a sweep's must have.
    alone = {
        "required": document.pop("required"),
        "oneOf": [{"required": ["method"]}, {"required": ["methods"]}],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **document,
        "properties": {**every, MATRIX_KEY: _matrix_schema(own)},
        "required": ["version", "name"],
        "if": {"required": [MATRIX_KEY]},
        "else": alone,
    }


def _matrix_schema(sections: Mapping[str, Any]) -> dict[str, Any]:
    def values(one: Mapping[str, Any]) -> dict[str, Any]:
        # What is said of a section is said where it stands by itself.
        short = {key: word for key, word in one.items() if key not in ("default", "description", "title")}
        listed = {"type": "array", "minItems": 2, "items": short}
        return {"anyOf": [listed, {"type": "object", "minProperties": 2, "additionalProperties": short}]}

    return {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "description": "makes the file a matrix of sweeps, one for each value: a section, or a dotted field such as "
        "dataset.imbalance_ratio, with a list of values, or with a mapping of names to values",
        "properties": {name: values(section) for name, section in sections.items()},
        "patternProperties": {r"^[a-z0-9_]+\.": values({})},
        "additionalProperties": False,
    }


def checked(document: Mapping[str, Any]) -> SweepSpec | list[Problem]:
    """The sweep that a document stands for, shorthands and all, or everything that is wrong with it."""
    written: dict[str, Any] = expand(SweepSpec, dict(document))
    if written.get("methods") is not None:
        # Any other rival may be listed, and is then tuned as the others are.
        written.setdefault("baselines", [{"kind": "vanilla"}])
    try:
        return SweepSpec.model_validate_json(json.dumps(written))
    except ValidationError as error:
        problems = explain(error, SweepSpec)
        if all(entry["type"] != "broken_rules" for entry in error.errors()):
            problems += broken_rules(valid_parts(SweepSpec, written))
        return problems


def told(problems: Iterable[Problem], source: Source) -> list[str]:
    """Problems as messages, in the order of the lines of their file."""
    in_order = sorted(problems, key=lambda problem: source.position(problem.loc))
    return [source.complaint(loc, f"{dotted(loc)}: {message}") for loc, message in in_order]
