"""Two ways to a 4-bit application: keep the 4-bit base with the adapter beside it, or merge and round anew.

A base that comes from a 4-bit grid is exact on that grid, but merging an adapter and rounding on the same grid would
erase the adapter. So the merged weights are rounded on another grid (groups with a zero point, `models/quantized`).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from riverrun.base.artifacts import write_json
from riverrun.models.load import BUNDLE, Checkpoint, load_checkpoint, load_model, save_companions

__all__ = ["copy_model", "quantize"]


def quantize(model: Path, adapter: Path | None, out: Path, *, group_size: int) -> dict[str, Any]:
    """Write `out/q4-base-adapter` (bundle) and `out/q4-merged` (group4 safetensors); returns sizes and rounding errors.

    Without an adapter only `q4-merged` is written: the base rounded.
    """
    report: dict[str, Any] = {"group_size": group_size}
    if adapter is not None:
        report["q4-base-adapter"] = _bundle(load_checkpoint(model), adapter, out / "q4-base-adapter", group_size)
    report["q4-merged"] = _round(load_checkpoint(model, adapter=adapter), out / "q4-merged", group_size)
    return report


def _is_four_bit(opened: Checkpoint) -> bool:
    if opened.quantization:
        return int(opened.quantization.get("bits", 4)) <= 4
    kinds = {info.kind.name for info in opened.gguf.tensors.values()} if opened.gguf else set()
    return bool(kinds & {"Q4_0", "Q4_1", "Q4_K"})


def _bundle(opened: Checkpoint, adapter: Path, folder: Path, group_size: int) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    if _is_four_bit(opened):
        base = folder / ("base" + opened.path.suffix if opened.path.is_file() else "base")
        copy_model(opened.path, base)
        error = 0.0
    else:
        base = folder / "base"
        error = _round(opened, base, group_size)["max_error"]
    copy_model(adapter, folder / "adapter")
    write_json(folder / BUNDLE, {"base": base.name, "adapter": "adapter"})
    return {"bytes": load_checkpoint(folder).weight_bytes, "max_error": error}


def copy_model(source: Path, target: Path) -> None:
    """A hard link where the file system allows it (model files are never written in place), else a copy."""

    def one(start: str, end: str) -> str:
        try:
            os.link(start, end)
        except OSError:
            shutil.copyfile(start, end)
        return end

    if source.is_file():
        target.unlink(missing_ok=True)
        one(str(source), str(target))
        return
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=one)


def _round(opened: Checkpoint, folder: Path, group_size: int) -> dict[str, Any]:
    from riverrun.base.optional import require

    torch = require("torch", extra="train")
    from riverrun.models.io.hf import read_weights, write_quantized

    weights = load_model(opened, torch.float32).views()
    write_quantized(folder, opened.config, weights, group_size)
    save_companions(opened, folder)
    written = load_checkpoint(folder)
    error = max(
        float((weights[name] - values).abs().max()) for name, values in read_weights(folder, written.quantization)
    )
    return {"bytes": written.weight_bytes, "max_error": error}
