"""Quantised matrices in Hugging Face folders: AWQ `gemm`, GPTQ v1 and v2, our own group4, NF4 (`io/bnb`). No torch.

`config.json` says how in `quantization_config`; a matrix `<name>.weight` then stands as `<name>.qweight`, `.qzeros`,
`.scales` (and `.g_idx`), or as `<name>.weight.packed`, `.scale`, `.zero`. What a method left as it was
(`modules_to_not_convert`, norms, embeddings) is a plain tensor and is recognised by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from riverrun.base.artifacts import write_json
from riverrun.base.errors import ConfigError, IntegrityError, UnsupportedError
from riverrun.models.io.bnb import METHOD as BNB
from riverrun.models.io.bnb import dequantized_nf4
from riverrun.models.io.safetensors import Entry, write_safetensors
from riverrun.models.quantized import (
    AwqWords,
    GptqWords,
    GroupQuantized,
    awq_words,
    dequantize_groups,
    dequantize_rows,
    from_awq,
    from_gptq,
    gptq_words,
)

__all__ = ["Grid", "Method", "dequantized", "grid_of", "read_matrix", "stored_matrices", "write_groups"]

Array = NDArray[Any]
Method = Literal["awq", "gptq", "gptq_v2"]
_GPTQ_BITS = (2, 4, 8)
_SUFFIXES = (".qweight", ".qzeros", ".scales", ".g_idx")


@dataclass(frozen=True, slots=True)
class Grid:
    """What a `quantization_config` says. group_size: -1 is one group a row; minus_one: zeros are stored less 1."""

    method: Literal["awq", "gptq", "group4"]
    bits: int
    group_size: int
    minus_one: bool = False
    scattered: bool = False


def grid_of(quantization: Mapping[str, Any], origin: str) -> Grid:
    """Read a `quantization_config`; UnsupportedError names what is not read and what is."""
    method = quantization.get("quant_method")
    if method not in ("awq", "gptq", "group4"):
        raise UnsupportedError(f"{origin}: quant_method '{method}' is not read, read: awq, gptq, group4, {BNB}")
    bits, size = (quantization.get(key, default) for key, default in (("bits", 4), ("group_size", 128)))
    if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and (size != -1 or method == "group4")):
        raise ConfigError(f"{origin}: group_size {size!r} must be a number above 0, or -1 for one group a row")
    known = _GPTQ_BITS if method == "gptq" else (4,)
    if bits not in known:
        raise UnsupportedError(
            f"{origin}: {method} of {bits} bits is not read, read: {', '.join(map(str, known))} bits"
        )
    if method == "awq":
        _only(quantization, "version", ("gemm",), origin)
        return Grid("awq", 4, size)
    if method == "group4":
        return Grid("group4", 4, size)
    form = _only(quantization, "checkpoint_format", ("gptq", "gptq_v2"), origin)
    for key, plain in {"is_marlin_format": (False, None), "pack_dtype": ("int32", None)}.items():
        if quantization.get(key) not in plain:
            raise UnsupportedError(f"{origin}: {key} = {quantization[key]!r} is not read, read: {plain[0]!r}")
    dynamic = quantization.get("dynamic") or {}
    if not isinstance(dynamic, Mapping):
        raise ConfigError(f"{origin}: dynamic must be an object, it is {type(dynamic).__name__}")
    for pattern, change in dynamic.items():
        if not pattern.startswith("-:"):
            raise UnsupportedError(f"{origin}: gptq with its own settings for '{pattern}' ({change}) is not read")
    return Grid("gptq", bits, size, form == "gptq", bool(quantization.get("desc_act", False)))


def _only(quantization: Mapping[str, Any], key: str, known: tuple[str, ...], origin: str) -> str:
    """The value of a key that defaults to the first known one."""
    value = str(quantization.get(key) or known[0]).lower()
    if value not in known:
        method = quantization.get("quant_method")
        raise UnsupportedError(f"{origin}: {method} of {key} '{value}' is not read, read: {', '.join(known)}")
    return value


def stored_matrices(
    names: Collection[str], get: Callable[[str], Array], quantization: Mapping[str, Any], origin: str
) -> Iterator[tuple[str, GroupQuantized | NDArray[np.float32] | None]]:
    """(name, matrix) of every tensor on a group grid; (name, values) where rows are kept in 8 bits; (name, None) of a
    plain one, to be taken as it is. Names and get as in `dequantized`; not for NF4."""
    grid, names = grid_of(quantization, origin), set(names)
    for name in sorted(names):
        if grid.method == "group4":
            stem, _, part = name.rpartition(".")
            if part == "packed":
                yield stem, _group4(stem, names, get, grid, origin)
            elif part == "codes":
                codes, scale = get(name), _part(f"{stem}.scale", stem, names, get, origin)
                _fits(f"{stem}.scale", scale, (*codes.shape[:1], *(size // 32 for size in codes.shape[1:])), origin)
                yield stem, dequantize_rows(codes, scale)
            elif part not in ("scale", "zero"):
                yield name, None
        elif name.endswith(".qweight"):
            stem = name.removesuffix(".qweight")
            yield f"{stem}.weight", read_matrix(stem, names, get, grid, origin)
        elif not name.endswith(_SUFFIXES):
            yield name, None
        elif f"{name.rpartition('.')[0]}.qweight" not in names:
            raise IntegrityError(f"{origin}: tensor '{name}' has no '.qweight' beside it: fetch the folder again")


def dequantized(
    names: Collection[str], get: Callable[[str], Array], quantization: Mapping[str, Any], origin: str
) -> Iterator[tuple[str, NDArray[np.float32] | None]]:
    """(name, float32 matrix) of every quantised tensor; (name, None) of a plain one, to be taken as it is.

    names: of all tensors of the folder, over all its shards; get: the values of one (bfloat16 as float32)
    """
    if quantization.get("quant_method") == BNB:
        yield from dequantized_nf4(names, get, quantization, origin)
        return
    for name, value in stored_matrices(names, get, quantization, origin):
        yield name, dequantize_groups(value) if isinstance(value, GroupQuantized) else value


def _part(name: str, stem: str, names: Collection[str], get: Callable[[str], Array], origin: str) -> Array:
    if name not in names:
        raise IntegrityError(f"{origin}: matrix '{stem}' has no tensor '{name}': fetch the folder again")
    return get(name)


def _group4(stem: str, names: Collection[str], get: Callable[[str], Array], grid: Grid, origin: str) -> GroupQuantized:
    packed, scale, zero = (_part(f"{stem}.{part}", stem, names, get, origin) for part in ("packed", "scale", "zero"))
    groups = (*packed.shape[:1], *(size * 2 // grid.group_size for size in packed.shape[1:]))
    _fits(f"{stem}.scale", scale, groups, origin)
    _fits(f"{stem}.zero", zero, groups, origin)
    return GroupQuantized(packed, scale, zero, grid.group_size)


def _fits(name: str, array: Array, shape: tuple[int, ...], origin: str) -> None:
    if array.shape != shape:
        raise IntegrityError(
            f"{origin}: tensor '{name}' has shape {list(array.shape)}, the matrix beside it needs {list(shape)}: "
            "fetch the folder again"
        )


def read_matrix(
    stem: str, names: Collection[str], get: Callable[[str], Array], grid: Grid, origin: str
) -> GroupQuantized:
    """The codes, scales and zero points of `<stem>.qweight` (AWQ or GPTQ), nothing rounded.

    IntegrityError names a missing tensor, or a misshaped one with both shapes.
    """
    per = 32 // grid.bits  # codes of a word
    qweight, qzeros, scales = (
        _part(f"{stem}.{part}", stem, names, get, origin) for part in ("qweight", "qzeros", "scales")
    )
    for name, array, axes in (("qweight", qweight, 2), ("qzeros", qzeros, 2), ("scales", scales, 2)):
        kinds = "iu" if name != "scales" else "f"
        if array.ndim != axes or array.dtype.kind not in kinds or (kinds == "iu" and array.dtype.itemsize != 4):
            raise IntegrityError(
                f"{origin}: tensor '{stem}.{name}' is {array.dtype} {list(array.shape)}, "
                f"it must be {'int32' if kinds == 'iu' else 'float16'} with two axes: fetch the folder again"
            )
    if grid.method == "awq":
        inputs, outputs = qweight.shape[0], qweight.shape[1] * per
    else:
        inputs, outputs = qweight.shape[0] * per, qweight.shape[1]
    size = inputs if grid.group_size == -1 else grid.group_size
    groups = -(-inputs // size)
    _fits(f"{stem}.scales", scales, (groups, outputs), origin)
    _fits(f"{stem}.qzeros", qzeros, (groups, outputs // per), origin)
    if grid.method == "awq":
        if inputs % 2:
            raise IntegrityError(f"{origin}: tensor '{stem}.qweight' has an odd number of inputs ({inputs})")
        return from_awq(AwqWords(qweight.view("<i4"), qzeros.view("<i4"), scales), size)
    g_idx = np.arange(inputs, dtype=np.int32) // size
    if f"{stem}.g_idx" in names:
        g_idx = get(f"{stem}.g_idx")
        _fits(f"{stem}.g_idx", g_idx, (inputs,), origin)
        if len(g_idx) and not (int(g_idx.min()) >= 0 and int(g_idx.max()) < groups):
            raise IntegrityError(f"{origin}: tensor '{stem}.g_idx' names a group beyond the {groups}: fetch it again")
    elif grid.scattered:
        raise IntegrityError(f"{origin}: matrix '{stem}' has no tensor '{stem}.g_idx', which desc_act needs")
    words = GptqWords(qweight.view("<i4"), qzeros.view("<i4"), scales, g_idx)
    return from_gptq(words, size, grid.bits, minus_one=grid.minus_one)


def write_groups(
    folder: Path,
    config: Mapping[str, Any],
    matrices: Mapping[str, GroupQuantized],
    plain: Mapping[str, Array],
    method: Method,
) -> None:
    """config.json and model.safetensors of a quantised model; codes, zero points and scales are kept as they are.

    config: the content of config.json without quantization_config
    matrices: by the name of the matrix (`model.layers.0.self_attn.q_proj.weight`), all of one group size and bits
    plain: every other tensor, float16 or float32; matrices among them become `modules_to_not_convert`

    ConfigError names what the method cannot hold. Written tensor by tensor: no copy of the whole is made.
    """
    quantization = _quantization(matrices, plain, method)
    entries = [
        Entry(f"{_stem(name)}.{part}", kind, shape)
        for name, matrix in matrices.items()
        for part, (kind, shape) in _parts(matrix, method).items()
    ]
    rest = sorted(plain.items(), key=lambda item: -item[1].itemsize)  # so that each starts at a multiple of its items
    entries += [Entry(name, _NAMES[array.dtype.name], array.shape) for name, array in rest]

    def data() -> Iterator[memoryview]:
        for matrix in matrices.values():
            words = awq_words(matrix) if method == "awq" else gptq_words(matrix, minus_one=method == "gptq")
            for part in _parts(matrix, method):
                array = getattr(words, part)
                yield _raw(array.astype(np.float16) if part == "scales" else array)
        yield from (_raw(array) for _, array in rest)

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {**config, "quantization_config": quantization})
    write_safetensors(folder / "model.safetensors", entries, data(), {"format": "pt"})


def _stem(name: str) -> str:
    return name.removesuffix(".weight")


def _raw(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


_NAMES = {"float16": "F16", "float32": "F32"}


def _parts(matrix: GroupQuantized, method: Method) -> dict[str, tuple[str, tuple[int, ...]]]:
    """safetensors type and shape of what a matrix becomes."""
    outputs, inputs = matrix.shape
    groups, per = matrix.scale.shape[1], 32 // matrix.bits
    qweight = (inputs, outputs // per) if method == "awq" else (inputs // per, outputs)
    parts: dict[str, tuple[str, tuple[int, ...]]] = {"qweight": ("I32", qweight)}
    parts |= {"qzeros": ("I32", (groups, outputs // per)), "scales": ("F16", (groups, outputs))}
    return parts if method == "awq" else parts | {"g_idx": ("I32", (inputs,))}


def _quantization(matrices: Mapping[str, GroupQuantized], plain: Mapping[str, Array], method: Method) -> dict[str, Any]:
    """The `quantization_config`; ConfigError where the matrices do not fit into one."""
    assert matrices, "write_groups needs a quantised matrix"
    rows = all(matrix.group_size == matrix.shape[1] for matrix in matrices.values())
    kinds = {(matrix.bits, -1 if rows else matrix.group_size) for matrix in matrices.values()}
    if len(kinds) > 1:
        what = " and ".join(f"{bits} bits in groups of {size}" for bits, size in sorted(kinds))
        raise ConfigError(f"a {method} folder has one grid, the matrices have {what}: quantise them alike")
    for name, matrix in matrices.items():
        with np.errstate(over="ignore"):
            halves = matrix.scale.astype(np.float16)
        if not np.array_equal(halves, matrix.scale):
            raise ConfigError(
                f"{method} stores fp16 scales, those of {name} do not fit: quantise from its float weights"
            )
    for name, array in plain.items():
        if array.dtype.name not in _NAMES:
            raise ConfigError(f"tensor '{name}' is {array.dtype.name}, written beside {method}: float16, float32")
    bits, size = kinds.pop()
    out: dict[str, Any] = {"quant_method": method.removesuffix("_v2"), "bits": bits, "group_size": size}
    if method == "awq":
        out |= {"version": "gemm", "zero_point": True}
    else:
        scattered = any(matrix.group_of is not None for matrix in matrices.values())
        out |= {"checkpoint_format": method, "desc_act": scattered, "sym": False}
    kept = sorted(_stem(name) for name, array in plain.items() if array.ndim == 2)
    return out | {"modules_to_not_convert": [name for name in kept if name != "model.embed_tokens"]}
