"""The goals of the benchmarks, and the table that compares measured values with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["goals", "show"]

MAX_OTHERS_SHARE = 0.05
"""Share of CPU time used by other processes above which the results are unreliable."""

_CPU_GOALS: tuple[tuple[str, float | None, float | None], ...] = (
    # value, at least, at most
    ("gemm_fraction", 0.5, None),
    ("sweep_over_stock_tune", 10.0, None),
    ("sweep_over_reused_actors", 3.0, None),
    ("control_plane_fraction", None, 0.15),
    ("report_seconds", None, 20.0),
    ("report_mib", None, 5.0),
)
_COMMON_GOALS: tuple[tuple[str, float | None, float | None], ...] = (
    *((f"growth.{axis}", 0.8, 1.2) for axis in ("N", "D", "K", "lanes")),
    ("out_of_memory_bank_ratio", None, 1.5),
    ("extraction_over_forward", 0.9, None),
)


def goals(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Every goal whose value was measured, and whether it is met."""
    cuda = document["machine"]["device"] != "cpu"
    applicable = [*(() if cuda else _CPU_GOALS), *_COMMON_GOALS]
    for kind, entry in document["timings"].get("fused_over_reference", {}).items():
        if entry["trained"]:
            least = 50.0 if cuda else 8.0 if kind == "los" else 5.0
            applicable.append((f"fused_over_reference.{kind}", least, None))
    found = []
    for name, least, most in applicable:
        value = _lookup(document, name)
        if value is None and name == "out_of_memory_bank_ratio" and "cases" in document["timings"].get(name, {}):
            found.append({"value": name, "measured": None, "at_least": None, "at_most": most, "met": False})  # killed
        if value is not None:
            met = (least is None or value >= least) and (most is None or value <= most)
            found.append({"value": name, "measured": value, "at_least": least, "at_most": most, "met": met})
    return found


def show(document: dict[str, Any], console: Console) -> None:
    """Print one table: every value, its goal, whether it is met, and how it was measured."""
    machine = document["machine"]
    table = Table("", "measured", "goal", "met", "how", title=f"benchmarks, {document['level']}")
    table.caption = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, device {machine['device']}, "
        f"torch {machine['torch']}; {document['seconds']['total']:.0f} s in total"
    )
    busy = {part: share for part, share in document["others_cpu_share"].items() if share and share > MAX_OTHERS_SHARE}
    if busy:
        shares = ", ".join(f"{part} {share:.0%}" for part, share in busy.items())
        table.caption += f"\n[red]other processes used CPU time during {shares}: repeat on an idle machine[/]"
    by_name = {goal["value"]: goal for goal in document["goals"]}
    for name, value, how in _rows(document):
        goal = by_name.get(name)
        bounds = [] if goal is None else [("≥", goal["at_least"]), ("≤", goal["at_most"])]
        text = " ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
        verdict = "" if goal is None else "[green]yes[/]" if goal["met"] else "[red]no[/]"
        table.add_row(name, value, text, verdict, how)
    console.print(table)


def _lookup(document: dict[str, Any], name: str) -> float | None:
    found: Any = document
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _rows(document: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    timings = document["timings"]
    for kind, value in document.get("fused_over_reference", {}).items():
        entry = timings["fused_over_reference"][kind]
        per_run = min(entry["fused_seconds"]) / entry["fused_runs"]
        how = f"{entry['slow_side']} {min(entry['seconds_a_run_of_slow_side']):.3f} s per run, fused {per_run:.4f}"
        how += f", {entry['fused_runs']} runs"
        how += f", {entry['epochs']} epochs (shortened)" if entry["shortened"] else ""
        limit = document["fused_over_reference_limit"].get(kind)
        how += "" if limit is None else f"; hardware limit {limit:.1f}x"
        yield f"fused_over_reference.{kind}", f"{value:.1f}x", how if entry["trained"] else f"{how}, no training"
    for name, text in (
        ("fused_over_data_loader", "los, fused against the plain loop with a torch DataLoader"),
        ("reference_over_plain", "los, time of the reference engine relative to the plain loop"),
    ):
        if name in document:
            yield name, f"{document[name]:.2f}x", text
    if "gemm_fraction" in document:
        entry = timings["gemm_fraction"]
        fit, training = (min(entry[f"{part}_seconds"]) / entry["runs"] for part in ("fit", "training"))
        how = f"4 N D K per epoch, {training:.3f} s per run; {max(entry['matrix_product_gflops']):.0f} GFLOP/s; "
        yield "gemm_fraction", f"{document['gemm_fraction']:.2f}", how + f"{entry['epochs']} epochs"
        how = f"the whole fit, {fit:.3f} s per run, 2 N_test D K per epoch "
        name = "gemm_fraction_with_evaluation"
        yield name, f"{document[name]:.2f}", how + "added"
        name = "gemm_fraction_evaluation_uncounted"
        yield name, f"{document[name]:.2f}", how + "not counted"
    if "sweep_over_stock_tune" in document:
        yield from _sweep_rows(document)
    for axis, value in document.get("growth", {}).items():
        seconds = timings["growth"][axis]["seconds"]
        points = ", ".join(f"{size}: {min(times):.2f} s" for size, times in seconds.items())
        yield f"growth.{axis}", f"{value:.2f}", points
    if "memory" in timings:
        points = timings["memory"]["bytes_by_lanes"].items()
        text = ", ".join(f"{lanes}: {(point['peak'] - point['before']) / 2**20:.0f} MiB" for lanes, point in points)
        yield "memory by lanes", "", text
    if "out_of_memory_bank_ratio" in timings:
        yield from _bank_rows(document)
    if "extraction_over_forward" in timings:
        entry = timings["extraction_over_forward"]
        fast, slow = (entry["images"] / min(entry["seconds"][side]) for side in ("forward", "extraction"))
        how = f"{entry['backbone']} on {entry['dataset']}, {slow:.0f} against {fast:.0f} images/s, best of the repeats"
        yield "extraction_over_forward", f"{document['extraction_over_forward']:.2f}", how
    if "report_seconds" in document:
        entry = timings["report"]
        how = f"lt-sweep report of {entry['trials']} trials x {entry['seeds']} seeds, {entry['classes']} classes, "
        yield "report_seconds", f"{document['report_seconds']:.1f}", f"{how}{entry['cpu_seconds']:.1f} s of CPU time"
        yield "report_mib", f"{document['report_mib']:.2f}", f"size of its HTML page, {entry['bytes']} bytes"
    for entry in timings.get("large", []):
        shape = entry["shape"]
        how = f"{entry['images']} of {shape['N']} images, 1 epoch, {entry['lanes']} lanes (shortened); "
        how += f"{entry['gflops']:.0f} GFLOP/s, {entry['runs_per_hour_extrapolated']:.2g} runs/h extrapolated"
        yield f"{shape['name']}, fused over plain", f"{entry['fused_over_plain']:.1f}x", how


def _sweep_rows(document: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    sweep = document["timings"]["sweep"]
    for name, side in (("sweep_over_stock_tune", "stock_tune"), ("sweep_over_reused_actors", "reused_actors")):
        entry = document["timings"][side]
        how = (
            f"{sweep['seconds']:.0f} s against {entry['seconds_scaled']:.0f} s (from {entry['runs_measured']} runs)"
            f"; hardware limit {document[f'{name}_limit']:.1f}x"
        )
        yield name, f"{document[name]:.1f}x", how
    how = f"{sweep['before_first_pack_seconds']:.1f} s to the first pack, {sweep['training_seconds']:.1f} s training, "
    how += (
        f"{sweep['between_packs_seconds']:.1f} s between packs, {sweep['after_last_pack_seconds']:.1f} s after the last"
    )
    yield "control_plane_fraction", f"{document['control_plane_fraction']:.2f}", how


def _bank_rows(document: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    ratio, entry = document["out_of_memory_bank_ratio"], document["timings"]["out_of_memory_bank_ratio"]
    if "not_measured" in entry:
        return
    cases = "; ".join(f"{name} {_bank_ratio(case['ratio'], case['at_least'])}" for name, case in entry["cases"].items())
    sizes = [case["bank_bytes"] / 2**20 for case in entry["cases"].values()]
    limit = "no limit" if entry["limit_bytes"] is None else f"{entry['limit_bytes'] / 2**20:.0f} MiB limit"
    how = f"{cases}; bank of {max(sizes):.0f} MiB, {limit}"
    yield "out_of_memory_bank_ratio", _bank_ratio(ratio, any(case["at_least"] for case in entry["cases"].values())), how


def _bank_ratio(ratio: float | None, at_least: bool) -> str:
    return "killed" if ratio is None else f"{'over ' if at_least else ''}{ratio:.2f}"
