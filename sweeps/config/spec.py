"""The sweep file: its fields, how it is read, its fingerprint, and its JSON schema.

Reading a file reports all problems at once, each with file and line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from lt_train.backbones.base import BACKBONES, BackboneSpec
from lt_train.core.errors import SpecError
from lt_train.core.fields import Shorthand, expand
from lt_train.core.io import fingerprint
from lt_train.core.registry import NOT_IDENTITY, PATH, Spec, as_document, marked_fields
from lt_train.core.validation import Problem, dotted, explain
from lt_train.datasets.base import DATASETS, DatasetSpec
from lt_train.features.spec import FeaturesSpec
from lt_train.methods.base import TrainingSpec
from lt_train.metrics import METRICS, MetricSpec, Score, scores
from lt_train.pretrain.recipes import RECIPES, RecipeSpec
from sweeps.config.interfaces import BACKENDS, TRACKERS, BackendSpec, TrackingSpec
from sweeps.config.methods import Candidate, Method, Methods, candidates
from sweeps.config.plugin_groups import (
    BACKEND_DEFAULT,
    BASELINES_DEFAULT,
    DEFAULT_TRACKER,
    KINDS_BY_DEFAULT,
    TRACKING_DEFAULT,
    default_backend,
    default_baselines,
    default_tracking,
)
from sweeps.config.rules import broken_rules, valid_parts
from sweeps.config.sections import PAPER_PROTOCOL, ResourcesSpec, SearchSpec, SelectionSpec
from sweeps.config.yaml_source import Source, load_yaml

__all__ = [
    "MATRIX_KEY",
    "NAME",
    "SHARED",
    "SweepSpec",
    "format_problems",
    "load_resolved",
    "load_sweep",
    "schema",
    "validate_document",
]

Dataset = Annotated[DatasetSpec, DATASETS]
Backbone = Annotated[BackboneSpec, BACKBONES] | None
Recipe = Annotated[RecipeSpec, RECIPES] | None
Baselines = list[Method]
Metrics = list[Annotated[MetricSpec, METRICS]]
Selection = Annotated[SelectionSpec, Shorthand(("paper",), meanings={"paper": PAPER_PROTOCOL})]
Backend = Annotated[BackendSpec, BACKENDS, NOT_IDENTITY]
Tracking = Annotated[TrackingSpec, TRACKERS, Shorthand(default_kind=DEFAULT_TRACKER), NOT_IDENTITY]

MATRIX_KEY = "matrix"
"""The key of a file with several sweeps; `sweeps.config.matrix` reads such a file."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""The pattern of the name of a sweep."""


class SweepSpec(Spec):
    """One sweep. The bare name of a kind stands for the kind with its defaults.

    In Python, sections may have the form of a sweep file (words, lists, mappings) or be instances of specifications:
    `SweepSpec(name="mine", dataset="digits_lt", ..., method=LOS(lr=1e-3), search={"trials": 24, ...})`.

    Raises:
        SpecError: `problems` holds every problem as `dotted.path: message`.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    version: Literal[1] = Field(default=1, description="version of the file format; must be 1")
    name: Annotated[str, NOT_IDENTITY] = Field(
        pattern=NAME,
        description="at most 64 letters, digits, dots, dashes or underscores, the first a letter or digit",
    )
    dataset: Dataset = Field(description="the long-tailed data")
    backbone: Backbone = Field(default=None, description="the frozen network; null: the dataset contains features")
    stage1: Recipe = Field(
        default=None, description="the recipe that trains the backbone; null: backbone.checkpoint is given"
    )
    features: FeaturesSpec = Field(default=FeaturesSpec(), description="how the features are extracted")
    method: Method | None = Field(
        default=None,
        description="how the classifier is re-trained; its fields hold the values that are not searched",
    )
    methods: Methods = Field(
        default=None,
        min_length=1,
        description="several methods, given instead of method; each is searched with the same number of trials, and "
        "they are compared",
    )
    training: TrainingSpec = Field(
        default=TrainingSpec(), description="number of epochs and batch size of the re-training"
    )
    search: SearchSpec = Field(description="which configurations are tried")
    metrics: Metrics = Field(
        default_factory=list,
        description="further metrics of the predictions, which are recorded and shown like the accuracies; each kind "
        "at most once",
    )
    selection: Selection = Field(
        default=SelectionSpec(),
        description="how trials are ranked and the winner is selected; paper: as in the paper",
    )
    baselines: Baselines = Field(
        default_factory=default_baselines,
        description=f"methods that are run without search on the same seeds, for comparison; {BASELINES_DEFAULT}",
    )
    backend: Backend = Field(
        default_factory=default_backend,
        description=f"where packs are trained; {BACKEND_DEFAULT}",
    )
    resources: ResourcesSpec = Field(default=ResourcesSpec(), description="the resources of one pack")
    tracking: Tracking = Field(
        default_factory=default_tracking,
        description=f"where finished trials are shown; {TRACKING_DEFAULT}",
    )
    storage: Annotated[str, PATH, NOT_IDENTITY] = Field(
        default="runs",
        min_length=1,
        description="directory of results; the ledger and results of a sweep are in a subdirectory with its name",
    )

    def __init__(self, **sections: Any) -> None:
        document = _complete(as_document(sections))
        try:
            self.__pydantic_validator__.validate_json(json.dumps(document, default=repr), self_instance=self)
        except ValidationError as error:
            problems = _explain(error, json.loads(json.dumps(document, default=repr)))
            raise SpecError([f"{dotted(loc)}: {message}" for loc, message in problems]) from None

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # JSON is validated without this constructor

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """As the constructor, for a mapping."""
        return cls(**obj) if isinstance(obj, Mapping) else super().model_validate(obj, **options)

    @model_validator(mode="after")
    def _check_rules(self) -> SweepSpec:
        problems = list(broken_rules(dict(self)))
        if problems:
            raise PydanticCustomError("broken_rules", "rules between parts are broken", {"problems": problems})
        return self

    def resolved(self) -> dict[str, Any]:
        """The sweep as JSON with every default written out; `load_resolved` reads it."""
        return self.model_dump(mode="json", exclude={"methods" if self.methods is None else "method"})

    def candidates(self) -> list[Candidate]:
        """The searched methods, one or more."""
        return candidates(self.method, self.methods, self.training, self.search)

    @property
    def scores(self) -> tuple[Score, ...]:
        """The columns of the score arrays of every run: the accuracies and the sweep's metrics."""
        return scores(self.metrics)

    def fingerprint(self) -> str:
        """sha256 (hex) of everything that influences results.

        Fields that are declared `NOT_IDENTITY` are left out, such as the name, the storage and the backend. The
        content of files is part of the fingerprint of the feature bank instead.
        """
        document = self.resolved()
        if not self.metrics:
            del document["metrics"]  # as in the keys of runs
        for name, section in self._identity_sections():
            identity = getattr(section, "identity", None)
            if identity is not None:
                document[name] = identity()
            else:
                for field in marked_fields(type(section), NOT_IDENTITY):
                    document[name].pop(field, None)
        # A grid follows the order of the file, which the fingerprint of a mapping does not contain.
        for searched in (document["search"], *document.get("methods", ())):
            searched["space"] = list(searched["space"].items())
        return fingerprint({name: document[name] for name in document if name not in self._not_identity()})

    def files(self) -> dict[str, str]:
        """The files and directories that the sweep reads, as given, by the dotted path of their field."""
        return {
            f"{name}.{field}": path
            for name, section in self._identity_sections()
            for field in marked_fields(type(section), PATH)
            if (path := getattr(section, field))
        }

    def with_absolute_paths(self, base: str | os.PathLike[str]) -> SweepSpec:
        """The same sweep, independent of the working directory.

        In fields that are declared `PATH`, `~` is expanded and relative paths are resolved against `base`; URLs are
        kept, except those of SQLite files. Defaults that depend on the sweep's name are written out.
        """
        tracking = self.tracking.for_sweep(self.name)
        document = self.model_copy(update={"tracking": tracking}).resolved()
        for field in marked_fields(type(self), PATH):
            document[field] = _absolute(document[field], Path(base))
        for name, section in self:
            if isinstance(section, BaseModel):
                for field in marked_fields(type(section), PATH):
                    if document[name][field]:
                        document[name][field] = _absolute(document[name][field], Path(base))
        return load_resolved(document)

    @classmethod
    def _not_identity(cls) -> tuple[str, ...]:
        return marked_fields(cls, NOT_IDENTITY)

    def _identity_sections(self) -> Iterator[tuple[str, BaseModel]]:
        """The sections that influence results."""
        for name, section in self:
            if isinstance(section, BaseModel) and name not in self._not_identity():
                yield name, section


SHARED = ("version", *marked_fields(SweepSpec, NOT_IDENTITY))
"""The fields that are the same in all sweeps of a matrix: none of them influences results."""

_SQLITE = "sqlite:///"


def _absolute(text: str, base: Path) -> str:
    """A path made absolute; a URL is returned unchanged, except for that of a SQLite file."""
    prefix = _SQLITE if text.startswith(_SQLITE) else ""
    path = text.removeprefix(prefix)
    if "://" in path or not path:
        return text
    return prefix + str(base / Path(path).expanduser())


def load_sweep(path: str | os.PathLike[str]) -> SweepSpec:
    """Read and validate the file of one sweep.

    Raises:
        SpecError: `problems` holds every problem as `file:line: dotted.path: message`. A file with `matrix` holds
            several sweeps; `sweeps.config.matrix.load_matrix` reads it.
    """
    source = load_yaml(path)
    if MATRIX_KEY in source.document:
        message = f"{MATRIX_KEY}: the file holds several sweeps, expected one; read it with sweeps.load_matrix"
        raise SpecError(source.locate((MATRIX_KEY,), message))
    sweep = validate_document(source.document)
    if isinstance(sweep, SweepSpec):
        return sweep
    raise SpecError(format_problems(sweep, source))


def load_resolved(document: Mapping[str, Any]) -> SweepSpec:
    """The sweep of a document from `SweepSpec.resolved`, or of any document in the form of a sweep file.

    Raises:
        SpecError: as `load_sweep`, without file and line.
    """
    return SweepSpec(**document)


def validate_document(document: Mapping[str, Any]) -> SweepSpec | list[Problem]:
    """The sweep of a document in the form of a sweep file, or all problems of the document."""
    complete = _complete(document)
    try:
        return SweepSpec.model_validate_json(json.dumps(complete))
    except ValidationError as error:
        return _explain(error, complete)


def _complete(document: Mapping[str, Any]) -> dict[str, Any]:
    """`document` with shorthands written out, and with the default that depends on another section."""
    complete: dict[str, Any] = expand(SweepSpec, dict(document))
    if complete.get("methods") is not None:
        complete.setdefault("baselines", as_document(default_baselines(several_methods=True)))
    return complete


def _explain(error: ValidationError, document: dict[str, Any]) -> list[Problem]:
    """All problems of an invalid document, including those between its valid parts."""
    problems = explain(error, SweepSpec)
    if all(entry["type"] != "broken_rules" for entry in error.errors()):
        problems += broken_rules(valid_parts(SweepSpec, document))
    return problems


def format_problems(problems: Iterable[Problem], source: Source) -> list[str]:
    """Problems as messages with file and line, in the order of lines."""
    in_order = sorted(problems, key=lambda problem: source.position(problem.loc))
    return [source.locate(loc, f"{dotted(loc)}: {message}") for loc, message in in_order]


def schema() -> dict[str, Any]:
    """The JSON schema of a sweep file, for editors. It covers fields and ranges, not the rules between parts."""
    document = SweepSpec.model_json_schema()
    for definition in document["$defs"].values():
        kind = definition.get("properties", {}).get("kind", {}).get("const")
        if kind is not None and kind not in KINDS_BY_DEFAULT:
            definition["required"] = sorted({"kind", *definition.get("required", [])})
    properties = document["properties"]
    varied = {name: field for name, field in properties.items() if name not in SHARED}
    # The matrix may supply a section that a single sweep requires.
    single = {
        "required": document.pop("required"),
        "oneOf": [{"required": ["method"]}, {"required": ["methods"]}],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **document,
        "properties": {**properties, MATRIX_KEY: _matrix_schema(varied)},
        "required": ["name"],
        "if": {"required": [MATRIX_KEY]},
        "else": single,
    }


def _matrix_schema(sections: Mapping[str, Any]) -> dict[str, Any]:
    def values(section: Mapping[str, Any]) -> dict[str, Any]:
        item = {key: word for key, word in section.items() if key not in ("default", "description", "title")}
        listed = {"type": "array", "minItems": 2, "items": item}
        return {"anyOf": [listed, {"type": "object", "minProperties": 2, "additionalProperties": item}]}

    return {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "description": "makes the file a matrix of sweeps, one per value: a section, or a dotted field such as "
        "dataset.imbalance_ratio, with a list of values or a mapping of names to values",
        "properties": {name: values(section) for name, section in sections.items()},
        "patternProperties": {r"^[a-z0-9_]+\.": values({})},
        "additionalProperties": False,
    }
