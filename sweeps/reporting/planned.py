"""What `lt-sweep plan` prints: one sweep in full, or a line a sweep and their sum. Knows plans; counts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from sweeps.analysis.plan import Plan
from sweeps.analysis.selection import seeds_told
from sweeps.config.sizes import shown_size
from sweeps.config.spec import SweepSpec
from sweeps.store.moments import shown_duration

__all__ = ["plan_table", "plans_document", "plans_table"]


def plan_table(spec: SweepSpec, planned: Plan) -> Table:
    """All that is known of one sweep."""
    rows = [
        ("trials", f"{planned.trials} in {planned.batches} proposal batches of {spec.search.proposal_batch}"),
        (
            "runs",
            f"{planned.runs}: search {planned.search_runs} ({seeds_told(planned.seeds)}), "
            f"baselines {planned.baseline_runs}, finalists {planned.finalist_runs}",
        ),
        (
            "packs",
            f"{planned.packs}, {2 * planned.packs_per_batch} can train at once (two proposal batches); "
            f"{planned.pack_sizes}",
        ),
        ("data", f"{planned.train_images} train, {planned.val_images} val, {planned.test_images} test images"),
        ("head", f"{planned.classes} classes x {planned.feature_dim} features"),
        ("bank", f"{shown_size(planned.bank_bytes)}, {planned.views} training view{'s' * (planned.views > 1)}"),
        ("memory a pack", f"{shown_size(planned.pack_bytes)} beside the bank, for the largest"),
        *_times(spec, planned),
        ("result", f"{Path(spec.storage).expanduser() / spec.name / 'result.json'}"),
    ]
    if planned.epochs_saved:
        saved = f"{spec.search.early_stopping.kind} saves {planned.epochs_saved:.0%} of the search's epochs"
        rows.insert(3, ("early_stopping", saved))
    if planned.extended_runs:
        extended = f"and {planned.extended_runs} of the winner, {planned.extended_factor} times as long: does it last?"
        rows.insert(2, ("", extended))
    if len(planned.methods) > 1:
        rows.insert(0, ("methods", ", ".join(f"{name} ({trials})" for name, trials in planned.methods.items())))
    table = Table(title=f"plan of {spec.name}", title_justify="left", show_header=False)
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def _times(spec: SweepSpec, planned: Plan) -> list[tuple[str, str]]:
    cpus = "" if planned.device.startswith("GPU") else f" ({spec.resources.cpus_per_pack} CPU a pack)"
    rows = [("re-training", f"about {shown_duration(planned.train_seconds)} on one {planned.device}{cpus}")]
    if planned.feature_seconds is not None:
        rows.insert(0, ("features", f"about {shown_duration(planned.feature_seconds)}, where they are not there"))
    if planned.stage1_seconds is not None:
        rows.insert(0, ("stage 1", f"about {shown_duration(planned.stage1_seconds)}, where it is not done"))
    return rows


def plans_table(plans: Sequence[tuple[SweepSpec, Plan]]) -> Group:
    """A line a sweep, with the time of its phases, and the sum, in which what sweeps share counts once."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("sweep", no_wrap=True)
    for name in ("runs", "stage 1", "features", "heads", "all", "bank"):
        table.add_column(name, justify="right", no_wrap=True)
    for spec, planned in plans:
        phases = (planned.stage1_seconds, planned.feature_seconds, planned.train_seconds, planned.seconds)
        table.add_row(spec.name, str(planned.runs), *map(_short, phases), shown_size(planned.bank_bytes))
    total = _sum(plans)
    phases = (total["stage1_seconds"], total["feature_seconds"], total["train_seconds"], total["seconds"])
    table.add_row("sum", str(total["runs"]), *map(_short, phases), shown_size(total["bank_bytes"]))
    devices = " or ".join(dict.fromkeys(planned.device for _, planned in plans))
    return Group(Text(f"time of one {devices}, estimated from operations"), table)


def plans_document(plans: Sequence[tuple[SweepSpec, Plan]]) -> dict[str, Any]:
    """Several plans as JSON holds them."""
    return {"sweeps": {spec.name: planned.document() for spec, planned in plans}, "sum": _sum(plans)}


def _sum(plans: Sequence[tuple[SweepSpec, Plan]]) -> dict[str, float]:
    backbones = {planned.backbone: planned for _, planned in plans}.values()
    banks = {planned.bank: planned for _, planned in plans}.values()
    seconds = {
        "stage1_seconds": sum(planned.stage1_seconds or 0.0 for planned in backbones),
        "feature_seconds": sum(planned.feature_seconds or 0.0 for planned in banks),
        "train_seconds": sum(planned.train_seconds for _, planned in plans),
    }
    return {
        "runs": sum(planned.runs for _, planned in plans),
        **seconds,
        "seconds": sum(seconds.values()),
        "bank_bytes": sum(planned.bank_bytes for planned in banks),
    }


def _short(seconds: float | None) -> str:
    """`40 s`, `25 min`, `8.2 h`."""
    if seconds is None:
        return "-"
    amount, unit = (
        (seconds / 3600, "h") if seconds >= 5400 else (seconds / 60, "min") if seconds >= 90 else (seconds, "s")
    )
    return f"{amount:.1f} {unit}" if amount < 9.95 else f"{amount:.0f} {unit}"
