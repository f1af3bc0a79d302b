"""NF4 matrices in Hugging Face folders, as bitsandbytes and `transformers` lay them out. No torch.

A matrix `<name>.weight` stands as uint8 codes of that name and, beside it, `.absmax` (8-bit codes), `.nested_absmax`
(their scales), the code books `.quant_map` and `.nested_quant_map`, and `.quant_state.bitsandbytes__nf4`: JSON with
shape, block sizes and the mean of absmax. Our own addition: tables of 8-bit rows as `.codes` (int8) and `.scale`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riverrun.base.errors import IntegrityError, UnsupportedError
from riverrun.models.quantized.nf4 import BLOCK, NF4_LEVELS, Nf4, dequantize_nf4, dynamic_levels

__all__ = ["METHOD", "check_nf4", "dequantized_nf4", "nf4_tensors", "quantization_config", "read_nf4"]

Array = NDArray[Any]
METHOD = "bitsandbytes"
_STATE = ".quant_state.bitsandbytes__nf4"
_BESIDE = (".absmax", ".nested_absmax", ".quant_map", ".nested_quant_map", _STATE, ".scale")


def quantization_config(dtype: str) -> dict[str, Any]:
    """The `quantization_config` of a folder with NF4 matrices; dtype: what they are multiplied in, such as bfloat16."""
    return {
        "quant_method": METHOD,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": ["lm_head"],
    }


def check_nf4(quantization: Mapping[str, Any], origin: str) -> None:
    """UnsupportedError where bitsandbytes stored something else than NF4 in bytes."""
    kind = "8 bits" if quantization.get("load_in_8bit") else quantization.get("bnb_4bit_quant_type", "fp4")
    if kind != "nf4" or quantization.get("bnb_4bit_quant_storage", "uint8") != "uint8":
        raise UnsupportedError(f"{origin}: bitsandbytes weights of type {kind} are not read, read: nf4 stored as uint8")


def nf4_tensors(name: str, value: Nf4, dtype: str) -> dict[str, Array]:
    """Tensor name -> array of one matrix `<...>.weight` with double quantisation."""
    assert value.absmax_scale is not None, "folders hold double quantisation"
    state = {
        "quant_type": "nf4",
        "blocksize": value.block,
        "dtype": dtype,
        "shape": list(value.shape),
        "nested_blocksize": 256,
        "nested_dtype": "float32",
        "nested_offset": value.absmax_mean,
    }
    return {
        name: value.packed.reshape(-1, 1),
        f"{name}.absmax": value.absmax,
        f"{name}.nested_absmax": value.absmax_scale,
        f"{name}.quant_map": NF4_LEVELS,
        f"{name}.nested_quant_map": dynamic_levels(),
        f"{name}{_STATE}": np.frombuffer(json.dumps(state).encode(), dtype=np.uint8),
    }


def read_nf4(name: str, names: Collection[str], get: Callable[[str], Array], origin: str) -> Nf4 | None:
    """The matrix of that name, None where it is stored plain. IntegrityError names what is missing or does not fit."""
    if f"{name}{_STATE}" not in names:
        return None
    try:
        state = json.loads(bytes(get(f"{name}{_STATE}").astype(np.uint8)))
        shape, block = tuple(int(size) for size in state["shape"]), int(state["blocksize"])
        nested, mean = int(state.get("nested_blocksize", 0)), float(state.get("nested_offset", 0.0))
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{origin}: '{name}{_STATE}' is not a state of NF4: {error!r}") from None
    if state.get("quant_type") != "nf4" or (nested and nested != 256):
        raise UnsupportedError(
            f"{origin}: '{name}' is {state.get('quant_type')} with absmax in blocks of {nested}, read: nf4, 256"
        )

    def part(suffix: str, size: int) -> Array:
        if f"{name}{suffix}" not in names:
            raise IntegrityError(f"{origin}: matrix '{name}' has no tensor '{name}{suffix}': fetch the folder again")
        found = get(f"{name}{suffix}").reshape(-1)
        if found.size != size:
            raise IntegrityError(
                f"{origin}: tensor '{name}{suffix}' has {found.size} values, the matrix {list(shape)} needs {size}: "
                "fetch the folder again"
            )
        return found

    count = int(np.prod(shape, dtype=np.int64))
    blocks = -(-count // block)
    for suffix, book in ((".quant_map", NF4_LEVELS), *([(".nested_quant_map", dynamic_levels())] if nested else [])):
        if not np.array_equal(part(suffix, book.size), book):
            raise UnsupportedError(f"{origin}: '{name}{suffix}' holds other levels than NF4's: it cannot be read")
    packed, absmax = part("", (count + 1) // 2), part(".absmax", blocks)
    if count % block:
        raise UnsupportedError(f"{origin}: matrix '{name}' has {count} values, no multiple of its block {block}")
    scale = part(".nested_absmax", -(-blocks // nested)) if nested else None
    return Nf4(packed, absmax, shape, block, scale, mean)


def dequantized_nf4(
    names: Collection[str], get: Callable[[str], Array], quantization: Mapping[str, Any], origin: str
) -> Iterator[tuple[str, NDArray[np.float32] | None]]:
    """As `io.groups.dequantized` for a folder of bitsandbytes."""
    check_nf4(quantization, origin)
    for name in sorted(names):
        stem = name.removesuffix(".codes")
        if stem != name and f"{stem}.scale" in names:
            yield stem, get(name).astype(np.float32) * get(f"{stem}.scale")[:, None]
        elif not name.endswith(_BESIDE):
            value = read_nf4(name, names, get, origin)
            yield name, None if value is None else dequantize_nf4(value)


assert BLOCK == 64, "the block of files that others write, too"
