"""A sweep file: its fields, how it is read, and what of it decides results.

Every default is visible here, in `sweeps.sections` or in the spec of a kind. Reading a file tells all its problems at
once, each with file and line; nothing starts before the whole of it is sound. Knows the specs of every room, and runs
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from lt_train.backbones.base import BackboneSpec, backbone_kinds, backbone_union
from lt_train.datasets.base import DatasetSpec, dataset_kinds, dataset_union
from lt_train.errors import SpecError
from lt_train.explain import Problem, dotted, explain
from lt_train.features.extract import FeaturesSpec
from lt_train.methods.base import MethodSpec, TrainingSpec, method_kinds, method_union
from lt_train.methods.ce import CrossEntropy
from lt_train.methods.vanilla import Vanilla
from lt_train.registry import Spec
from lt_train.stage1.base import RecipeSpec, recipe_kinds, recipe_union
from lt_train.storage import fingerprint
from sweeps.backends.base import BackendSpec, backend_kinds, backend_union
from sweeps.backends.ray import RayBackend
from sweeps.rules import SEARCHABLE, broken_rules, substitute
from sweeps.sections import PAPER_PROTOCOL, ResourcesSpec, SearchSpec, SelectionSpec, Shorthand, expand
from sweeps.tracking.base import TrackingSpec, tracking_kinds, tracking_union
from sweeps.tracking.mlflow import MlflowTracking
from sweeps.yaml_source import Source, load_yaml

__all__ = ["SweepSpec", "load_resolved", "load_sweep", "schema"]

if TYPE_CHECKING:
    Dataset = DatasetSpec
    Backbone = BackboneSpec | None
    Recipe = RecipeSpec | None
    Method = MethodSpec
    Baselines = list[MethodSpec]
    Selection = SelectionSpec
    Backend = BackendSpec
    Tracking = TrackingSpec
else:
    Dataset = Annotated[dataset_union(), Shorthand(tuple(dataset_kinds()))]
    Backbone = Annotated[backbone_union() | None, Shorthand(tuple(backbone_kinds()))]
    Recipe = Annotated[recipe_union() | None, Shorthand(tuple(recipe_kinds()))]
    Method = Annotated[method_union(), Shorthand(tuple(method_kinds()))]
    Baselines = Annotated[list[method_union()], Shorthand(tuple(method_kinds()), each=True)]
    Selection = Annotated[SelectionSpec, Shorthand(("paper",), meanings={"paper": PAPER_PROTOCOL})]
    Backend = Annotated[backend_union(), Shorthand(tuple(backend_kinds()))]
    Tracking = Annotated[tracking_union(), Shorthand(tuple(tracking_kinds()), default_kind="mlflow")]


class SweepSpec(Spec):
    """One sweep. Wherever a kind is asked for, its bare name stands for the kind with its defaults."""

    model_config = ConfigDict(serialize_by_alias=True)

    version: Literal[1] = Field(description="version of this format; 1")
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
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
    method: Method = Field(description="how the classifier is re-trained; its fields are the values not searched")
    training: TrainingSpec = Field(default=TrainingSpec(), description="how long and in what batches to re-train")
    search: SearchSpec = Field(description="which hyperparameter settings are tried")
    selection: Selection = Field(
        default=SelectionSpec(), description="on which number the winner is chosen; paper stands for the paper's way"
    )
    baselines: Baselines = Field(
        default=[Vanilla(), CrossEntropy()],
        description="methods to run beside the search with the same seeds, for comparison",
    )
    backend: Backend = Field(
        default=RayBackend(), description="where packs are trained; ray, or inline in this process"
    )
    resources: ResourcesSpec = Field(default=ResourcesSpec(), description="what one pack gets of a machine")
    tracking: Tracking = Field(
        default=MlflowTracking(),
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
        return self.model_dump(mode="json")

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
        del document["resources"]["gpus_per_pack"]
        # A grid is walked in the file's order, which a mapping's fingerprint would not see.
        document["search"]["space"] = list(document["search"]["space"].items())
        return fingerprint(document)

    def anchored(self, place: Path) -> SweepSpec:
        """The same sweep with `~` and paths relative to `place` written out: good from any directory.

        Paths are `storage`, `backbone.checkpoint`, a SQLite `tracking.uri`, and `root` or `path` of a dataset.
        """

        def absolute(text: str) -> str:
            return str(place / Path(text).expanduser())

        document = self.resolved()
        document["storage"] = absolute(self.storage)
        for part, name in (("dataset", "root"), ("dataset", "path"), ("backbone", "checkpoint")):
            if (document[part] or {}).get(name):
                document[part][name] = absolute(document[part][name])
        sqlite, uri = "sqlite:///", document["tracking"].get("uri") or ""
        if uri.startswith(sqlite) and uri != sqlite:
            document["tracking"]["uri"] = sqlite + absolute(uri.removeprefix(sqlite))
        if "experiment" in document["tracking"]:
            # The default is the sweep's name, and must stay what it was when a directory is renamed.
            document["tracking"]["experiment"] = document["tracking"]["experiment"] or self.name
        return load_resolved(document)

    def with_values(self, values: Mapping[str, Any]) -> tuple[MethodSpec, TrainingSpec]:
        """A trial's method and training: this sweep's, with `values` by dotted path in place.

        Raises:
            SpecError: the values, each allowed by itself, are not allowed together.
        """
        by_part: dict[str, dict[str, Any]] = {part: {} for part in SEARCHABLE}
        for path, value in values.items():
            part, _, name = path.partition(".")
            by_part[part][name] = value
        try:
            return substitute(self.method, by_part["method"]), substitute(self.training, by_part["training"])
        except ValidationError as error:
            raise SpecError([f"trial {dict(values)}: {problem['msg']}" for problem in error.errors()]) from None


def load_sweep(path: str | Path) -> SweepSpec:
    """Read and check a sweep file.

    Raises:
        SpecError: `problems` holds every problem as `file:line: dotted.path: what is wrong; did you mean ...`.
    """
    return _validate(load_yaml(path))


def load_resolved(document: Mapping[str, Any]) -> SweepSpec:
    """The sweep that `SweepSpec.resolved` (or a program) wrote; shorthands are understood too.

    Raises:
        SpecError: as `load_sweep`, without file and line.
    """
    return _validate(dict(document))


def schema() -> dict[str, Any]:
    """The JSON schema of a sweep file, for editors. It knows fields and ranges; `load_sweep` knows the rest."""
    document = SweepSpec.model_json_schema()
    optional = {"mlflow"}  # the kind that a mapping in `tracking` has when it names none
    for definition in document["$defs"].values():
        kind = definition.get("properties", {}).get("kind", {}).get("const")
        if kind is not None and kind not in optional:
            definition["required"] = sorted({"kind", *definition.get("required", [])})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}


def _validate(source: Source | dict[str, Any]) -> SweepSpec:
    document = expand(SweepSpec, source.document if isinstance(source, Source) else source)
    try:
        return SweepSpec.model_validate_json(json.dumps(document))
    except ValidationError as error:
        problems = explain(error, SweepSpec)
        if all(entry["type"] != "broken_rules" for entry in error.errors()):
            problems += broken_rules(_valid_parts(document))
    raise SpecError(_told(problems, source)) from None


def _told(problems: Iterable[Problem], source: Source | dict[str, Any]) -> list[str]:
    """Problems as messages; in the order of the lines where there is a file."""
    if not isinstance(source, Source):
        return [f"{dotted(loc)}: {message}" for loc, message in problems]
    in_order = sorted(problems, key=lambda problem: source.position(problem.loc))
    return [source.complaint(loc, f"{dotted(loc)}: {message}") for loc, message in in_order]


def _valid_parts(document: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a wrong file that can be judged by the rules between parts.

    The searched parts and the search are mended first, by leaving out what was complained about, so that one wrong
    value in them does not hide a wrong range; any other wrong part is absent.
    """
    parts: dict[str, Any] = {}
    for name, field in SweepSpec.model_fields.items():
        if name not in document:
            if not field.is_required():
                parts[name] = field.get_default(call_default_factory=True)
            continue
        part_type: Any = Annotated[field.annotation, field]
        adapter: TypeAdapter[Any] = TypeAdapter(part_type)
        value = document[name]
        while value is not _GONE:
            try:
                parts[name] = adapter.validate_json(json.dumps(value))
                break
            except ValidationError as error:
                first = error.errors()[0]
                loc = first["loc"][:-1] if first["type"] == "missing" else first["loc"]
                value = _without(value, loc) if name in (*SEARCHABLE, "search") else _GONE
                if name == "search" and isinstance(value, dict):
                    value["trials"] = 1  # may be what was wrong, and says nothing about a space that lost a dimension
    return parts


_GONE = object()
"""What is left of a value when all of it was wrong."""


def _without(value: Any, loc: tuple[int | str, ...]) -> Any:
    """`value` less what stands at `loc`; elements of `loc` that are not in it (tags of unions) are stepped over."""
    if not isinstance(value, dict):
        return _GONE
    for depth, part in enumerate(loc):
        if part in value:
            inner = _without(value[part], loc[depth + 1 :])
            rest = {key: item for key, item in value.items() if key != part}
            return rest if inner is _GONE else {**rest, part: inner}
    return _GONE
