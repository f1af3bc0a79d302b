"""`--dry-run`: what a run would do and need. Reads the recipe and the catalogue, fetches nothing, writes nothing."""

from __future__ import annotations

from riverrun.base.artifacts import LINEAGE_FILE
from riverrun.chain.candidates import Candidate, all_candidates
from riverrun.chain.check import check_inputs
from riverrun.chain.machine import dtype_name, measure_machine
from riverrun.chain.planning import estimate_rows, make_plan, stage_costs
from riverrun.chain.stage import Context
from riverrun.chain.words import word

__all__ = ["preview"]


def preview(ctx: Context) -> str:
    """The plan as text. InputError and CapacityError as the run itself would raise them."""
    check_inputs(ctx)
    spec = ctx.spec
    lines = [word("preview", name=spec.name, out=ctx.out)]
    candidates = all_candidates(ctx)
    here = [_describe(ctx, candidate, lines) for candidate in candidates]
    local = [(candidate, there) for candidate, there in zip(candidates, here, strict=True) if not candidate.endpoint]
    first = next((candidate for candidate, there in local if there), None)
    if first is None:
        return "\n".join([*lines, word("no_model")])
    dtype = dtype_name(spec.finetune.dtype)
    hardware = measure_machine(dtype, spec.memory_gb)
    shape = ctx.parts.load("load_config")(first.fetch())
    rows = estimate_rows(ctx)
    plan = make_plan(spec, shape, hardware, rows, None)
    lines.append(
        word(
            "machine",
            cores=hardware.cores,
            gigabytes=hardware.memory_bytes / 1e9,
            rate=hardware.rate(dtype) / 1e9,
            dtype=dtype,
        )
    )
    for method in plan.methods:
        mark = "*" if method.name == plan.chosen else " "
        figures = f"{method.memory_bytes / 1e9:6.2f} GB {method.seconds:8.0f} s"
        lines.append(f"{mark} {method.name:10} {figures}  {method.reason}")
    lines.append(word("chosen", method=plan.chosen, why=plan.why))
    costs = stage_costs(ctx, shape, hardware, rows, plan)
    for number, cost in enumerate(costs, 1):
        done = word("there") if (ctx.folder(cost.stage) / LINEAGE_FILE).is_file() else ""
        figures = f"{cost.memory_bytes / 1e9:6.2f} GB {cost.seconds:8.0f} s"
        lines.append(f"  {number} {cost.stage:9} {figures}  {cost.what}{done}")
    peak, seconds = max(cost.memory_bytes for cost in costs), sum(cost.seconds for cost in costs)
    lines.append(word("total", gigabytes=peak / 1e9, minutes=seconds / 60))
    return "\n".join(lines)


def _describe(ctx: Context, candidate: Candidate, lines: list[str]) -> bool:
    """One line on a candidate; whether its files are on this machine."""
    there = candidate.here()
    state = word("here") if there else word("to_fetch", megabytes=candidate.size_bytes / 1e6)
    state = word("elsewhere", url=candidate.endpoint.endpoint) if candidate.endpoint else state
    licence = candidate.licence or word("no_licence")
    refused = candidate.licence and candidate.licence not in ctx.spec.licences
    note = word("refused", allowed=", ".join(ctx.spec.licences)) if refused else ""
    lines.append(f"  {candidate.name}: {licence}, {state}{note}")
    return there and not refused
