"""NF4 against states that bitsandbytes 0.50.2 made on a CPU: code book, packing and dequantisation to the last bit.

Its 8-bit codes of absmax are taken as it gave them: its CPU kernel does not always choose the nearest level, ours does.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from riverrun.models.quantized import NF4_LEVELS, Nf4, dequantize_nf4, dynamic_levels, quantize_nf4
from riverrun.models.stored import Nf4Matrix

PACKED, CODES, SCALE, MEAN, VALUES = range(5)
# sha256 of the packed codes; the codes of absmax; their scale and mean; sha256 of the dequantised values
STATES: dict[torch.dtype, tuple[str, str, str, str, str]] = {
    torch.float32: (
        "220a3b5f9bd2bdf44ce37e4d58865af2207a305dd0aa843d62540f27389a03fc",
        "e5dc2a2c2c2c32332f309f593333eceadfe19fbf3333a2aebca02c2c3c3c4dac393de7d9e7cf2d2e3d3e2d2e5e622d2e"
        "cbc23f3ac0c033332c2bfeff3534d3d9",
        "0x1.626c900000000p+3",
        "0x1.3b91f60000000p+2",
        "4de3bdbe362181c91aedebaf23880fbda15fa5da10b7da5a6ef63fd61fd57d3b",
    ),
    torch.bfloat16: (
        "cf350a96d5def592030819b3c7f5d6f19d7eafa7425bf72150867841bcb4f394",
        "e5dc2a2c2c2c32332f309f593333eceae0e29fbf3333a2aebca02c2c3c3c4dac393de7d9e7cf2d2e3d3e2d2e5e632d2e"
        "ccc23f3ac0c033332c2bfeff3534d3d9",
        "0x1.6237400000000p+3",
        "0x1.3b91800000000p+2",
        "f92effba06665b78530f1a3dedab443ed6b090a08ead398d4c6390538345e270",
    ),
}
LEVELS = "8501941daa1b8a90ad1bbfeb632e5101b5dddbc4bb52d6e55abcfd777e60c06a"
DYNAMIC = "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c"


def digest(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def test_the_code_books() -> None:
    assert digest(NF4_LEVELS) == LEVELS
    assert digest(dynamic_levels()) == DYNAMIC


@pytest.mark.parametrize("dtype", list(STATES))
def test_packing_and_dequantisation(dtype: torch.dtype) -> None:
    state, rng = STATES[dtype], np.random.default_rng(7)
    values = rng.standard_normal((32, 128)) * np.exp(rng.standard_normal((32, 1)))
    weight = torch.from_numpy(values.astype(np.float32)).to(dtype)
    ours = quantize_nf4(weight.float().numpy())
    assert digest(ours.packed) == state[PACKED] == digest(Nf4Matrix.of(weight).value.packed)
    codes = np.frombuffer(bytes.fromhex(state[CODES]), dtype=np.uint8)
    assert np.mean(ours.absmax != codes) <= 0.05
    assert np.abs(ours.absmax.astype(int) - codes).max() <= 1
    assert ours.absmax_mean == pytest.approx(float.fromhex(state[MEAN]), rel=1e-6)
    scale = np.array([float.fromhex(state[SCALE])], dtype=np.float32)
    theirs = Nf4(ours.packed, codes, (32, 128), 64, scale, float.fromhex(state[MEAN]))
    whole = "int32" if dtype == torch.float32 else "int16"
    plain = torch.from_numpy(dequantize_nf4(theirs)).to(dtype)
    for found in (plain, Nf4Matrix(theirs).whole(dtype)):
        assert digest(found.view(getattr(torch, whole)).numpy()) == state[VALUES]
