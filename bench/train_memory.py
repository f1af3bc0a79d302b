"""Memory of training: a 7B model in four bits under a limit, prediction against measurement, TRL beside it.

    python -m bench.train_memory [--quick] [--peers none|trl] [--only seven,predicted,peer] [--json FILE]

Every figure comes from a process of its own (`parts/train_memory_child.py`) with random weights of the named shape. The
limit is a memory control group without swap; where the system allows none, the peak is compared with it instead.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.common import Row, child, main_of, parser, peer_python, read_options, say, table, write_report
from bench.parts.machine import machine
from bench.parts.memory_cgroup import Group, limited
from bench.parts.memory_settings import SETTINGS, predicted_bytes
from riverrun.base.errors import InputError, nearest

PARTS = ("seven", "predicted", "peer")
CHILD = ("-m", "bench.parts.train_memory_child")
SEVEN: dict[str, tuple[str, float]] = {"Llama-2-7B": ("llama2-7b", 5.5e9), "InternLM2-7B": ("internlm2-7b", 6.0e9)}
"""Name -> (preset, bytes of the control group)."""


def seven_job(preset: str, *, layers: int = 0) -> dict[str, Any]:
    """QLoRA of all linears at rank 16, one document of 2,048 learned tokens, every layer runs again."""
    changes = {"changes": {"num_hidden_layers": layers}} if layers else {}
    return {
        "preset": preset,
        "method": "qlora",
        "rank": 16,
        "optimizer": "adamw8bit",
        "micro_tokens": 2048,
        "recompute": 1.0,
        "steps": 2,
        **changes,
    }


def measured(job: Mapping[str, Any], name: str, limit: float | None = None) -> tuple[dict[str, Any], Group | None, int]:
    """(answer of the child, its group or None, the kernel's peak of the group in bytes)."""
    if limit is None:
        return child(sys.executable, CHILD, job, name), None, 0
    with limited(round(limit)) as group:
        job = dict(job) | ({"group": str(group.folder)} if group else {})
        answer = child(sys.executable, CHILD, job, name)
        return answer, group, (group.peak_bytes or 0) if group else 0


def seven(*, quick: bool) -> list[Row]:
    """Full optimizer steps of both 7B shapes, without and within the limit. Quick: four layers, the limit scaled."""
    rows = []
    for name, (preset, limit) in SEVEN.items():
        job = seven_job(preset, layers=4 if quick else 0)
        shown = f"7B QLoRA, {name}, 2,048 tokens"
        if quick:
            free, _, _ = measured(job, f"seven-{preset}-free")
            rows.append(
                Row(f"{shown}, 4 of 32 layers: peak", free["vmhwm_bytes"] / 1e9, "GB", note="not judged: --quick")
            )
            continue
        within, group, charged = measured(job, f"seven-{preset}-limited", limit)
        say(f"  {name} within {limit / 1e9:.1f} GB: {within['seconds']} s")
        free, _, _ = measured(job, f"seven-{preset}-free")
        ratio = sum(within["seconds"]) / sum(free["seconds"])
        how = (
            f"control group of {limit / 1e9:.1f} GB, no swap"
            if group
            else "no control group here: peak resident memory"
        )
        peak = charged if group else within["vmhwm_bytes"]
        note = (
            f"{how}; {len(within['seconds'])} full steps of {sum(within['seconds']) / 2:.0f} s; resident at most "
            f"{within['vmhwm_bytes'] / 1e9:.2f} GB ({free['vmhwm_bytes'] / 1e9:.2f} without a limit); losses "
            f"{', '.join(f'{loss:.3f}' for loss in within['losses'])}; the published claim is 8 GB"
        )
        alike = within["losses"] == free["losses"]
        rows.append(Row(f"{shown}: memory", peak / 1e9, "GB", limit / 1e9, note=note, holds=alike))
        rows.append(
            Row(
                f"{shown}: time with the limit over without",
                ratio,
                "x",
                1.2,
                runs={"within": within["seconds"], "without": free["seconds"]},
            )
        )
    return rows


def predicted(*, quick: bool) -> list[Row]:
    """Peak of three steps against the plan's, both less the bare process."""
    rows, errors = [], []
    for name, job in list(SETTINGS.items())[:: 4 if quick else 1]:
        found, _, _ = measured(job, "predicted-" + name.replace(" ", "-"))
        want = predicted_bytes(job)
        error = want / found["grown_bytes"] - 1
        errors.append(abs(error))
        rows.append(
            Row(
                f"memory predicted: {name}",
                100 * error,
                "%",
                10.0,
                "within",
                note=f"predicted {want / 1e9:.3f} GB, measured {found['grown_bytes'] / 1e9:.3f} GB above the process",
            )
        )
    worst = 100 * max(errors)
    return [Row(f"memory predicted before the run, worst of {len(rows)} settings", worst, "%", 10.0), *rows]


VOCABULARY = {"preset": "smollm2-135m", "changes": {"vocab_size": 152064, "max_position_embeddings": 8192}}
"""SmolLM2-135M's layers under a vocabulary of 152k."""


def peer(*, quick: bool, names: Sequence[str]) -> list[Row]:
    """Full fine-tuning at 4,096 tokens with a vocabulary of 150k: peak resident memory of both processes."""
    steps = 1 if quick else 3
    job = VOCABULARY | {"method": "full", "micro_tokens": 4096, "steps": steps, "recompute": 1.0}
    ours = child(sys.executable, CHILD, job, "peer-ours")["vmhwm_bytes"]
    theirs: dict[str, float] = {}
    if "trl" in names:
        python = peer_python("trl")
        program = [str(Path(__file__).parent / "peers" / "trl_memory.py")]
        for shown, setting in TRL_SETTINGS.items():
            asked = {"config": _hf_config(), "tokens": 4096, "steps": steps, "setting": setting}
            theirs[shown] = child(python, program, asked, f"peer-{shown.replace(' ', '-')}")["vmhwm_bytes"]
    least = min(theirs.values(), default=0.0)
    return [
        Row(
            "peak resident memory, full SFT, vocabulary 152k, 4,096 tokens, over TRL",
            ours / least if least else None,
            "x",
            0.5,
            peers={name: value / 1e9 for name, value in theirs.items()},
            note=f"ours {ours / 1e9:.2f} GB with fp32 masters and moments, layers run again as TRL's do by default; "
            "peers in GB, the smallest counts",
        )
    ]


TRL_SETTINGS: dict[str, dict[str, Any]] = {
    "trl default": {},
    "trl no checkpointing": {"gradient_checkpointing": False},
}


def _hf_config() -> dict[str, Any]:
    from bench.parts.train_memory_child import shape_of

    hf: dict[str, Any] = shape_of(VOCABULARY).to_hf()
    return hf


def main() -> int:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    options = read_options(arguments.parse_args(), ("trl",))
    parts = str(options.rest.only).split(",")
    for part in parts:
        if part not in PARTS:
            raise InputError(f"--only: there is no part '{part}'.{nearest(part, PARTS)}")
    before, rows = machine(), []
    for part in PARTS:
        if part not in parts:
            continue
        say(f"{part} ...")
        if part == "seven":
            rows += seven(quick=options.quick)
        elif part == "predicted":
            rows += predicted(quick=options.quick)
        else:
            rows += peer(quick=options.quick, names=options.peers)
    print(table(rows))
    write_report(options.json, before | {"at_the_end": machine()}, rows)
    return 1 if any(row.passed is False for row in rows) else 0


if __name__ == "__main__":
    main_of(main)
