"""Trainer state on disk: whole or absent. `step-N/` is complete when its `state.json` stands, which is written last.

`state.json` holds the sha256 of the tensors beside it and of itself: what was damaged later is named, never used.

Holds the fp32 adapter, both Adam moments and the step; the order of data is a pure function of the step (`sampler`),
so a resumed run is equal to the bit to one that was never stopped.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riverrun.base.artifacts import atomic_file, digest_file, digest_json, write_json
from riverrun.base.errors import IntegrityError
from riverrun.base.optional import require

__all__ = ["latest", "prune", "restore", "save"]

STATE = "state.json"
TENSORS = "state.safetensors"


@dataclass(frozen=True, slots=True)
class Saved:
    """A complete checkpoint and the JSON state that was stored with it."""

    folder: Path
    step: int
    state: dict[str, Any]


def save(
    root: Path, step: int, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Write checkpoint `step` (number of finished optimizer steps)."""
    tensors = {f"param/{name}": tensor.detach() for name, tensor in parameters.items()}
    for name, tensor in parameters.items():
        tensors |= {f"{key}/{name}": optimizer.state[tensor][key].detach() for key in ("exp_avg", "exp_avg_sq")}
    folder = root / f"step-{step:06d}"
    serialize = require("safetensors.torch", extra="train").save
    with atomic_file(folder / TENSORS, "wb") as handle:
        handle.write(serialize({name: tensor.contiguous() for name, tensor in tensors.items()}))
    record = state | {"step": step, "sha256": digest_file(folder / TENSORS)}
    write_json(folder / STATE, record | {"digest": digest_json(record)})


def latest(root: Path, *, identity: str) -> Saved | None:
    """The newest complete checkpoint of the same run (`identity` of model, rows and settings), or None."""
    for folder in reversed(_complete(root)):
        marker = folder / STATE
        try:
            state = json.loads(marker.read_text(encoding="utf-8"))
            recorded, step, digest = str(state["sha256"]), int(state["step"]), str(state.pop("digest"))
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{marker} is damaged ({error!r}): delete {folder} and run again") from None
        if state.get("identity") != identity:
            continue
        if digest_json(state) != digest:
            raise IntegrityError(f"{marker} does not match its recorded digest: delete {folder} and run again")
        if not (folder / TENSORS).is_file() or digest_file(folder / TENSORS) != recorded:
            raise IntegrityError(
                f"{folder / TENSORS} is missing or does not match its recorded sha256: delete {folder} and run again"
            )
        return Saved(folder, step, state)
    return None


def _complete(root: Path) -> list[Path]:
    """Folders with a marker, by their step."""
    found = [path for path in root.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and (path / STATE).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def restore(saved: Saved, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Put parameters and moments back; IntegrityError if they are those of another model, and nothing is changed."""
    tensors = require("safetensors.torch", extra="train").load_file(str(saved.folder / TENSORS))
    wanted = {
        f"{kind}/{name}": p.shape for name, p in parameters.items() for kind in ("param", "exp_avg", "exp_avg_sq")
    }
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if wrong := sorted(name for name in wanted | found if wanted.get(name) != found.get(name)):
        is_, must = (list(shapes[wrong[0]]) if wrong[0] in shapes else "nothing" for shapes in (found, wanted))
        raise IntegrityError(
            f"{saved.folder / TENSORS}: tensor '{wrong[0]}' is {is_}, this model needs {must}: "
            f"delete {saved.folder} and run again"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"param/{name}"])
            optimizer.state[parameter] = {
                "step": torch.tensor(float(saved.step)),
                "exp_avg": tensors[f"exp_avg/{name}"].clone(),
                "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].clone(),
            }


def prune(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` complete checkpoints, and every incomplete one."""
    complete = _complete(root)
    kept = complete[-keep:] if keep else []
    for folder in root.glob("step-*"):
        if folder.is_dir() and folder not in kept:
            shutil.rmtree(folder)
