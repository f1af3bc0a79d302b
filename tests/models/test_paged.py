"""Attention over blocks against attention over whole sequences: kernels of every instruction set, and torch alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.models import native
from riverrun.models.attention import additive, grouped_attention, visible
from riverrun.models.paged import KVType, NewTokens, PagedAttend, PagedCache, bytes_per_token, decode, encode
from tests.tiny_model import tiny_config

SIZE = 16


def config(heads: int, kv_heads: int, dim: int, window: int | None = None):  # type: ignore[no-untyped-def]
    more = {"sliding_window": window} if window else {}
    return tiny_config(
        num_hidden_layers=1, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=dim,
        hidden_size=heads * dim, **more,
    )  # fmt: skip


class Case:
    """Sequences with a past in blocks scattered over a cache, some of which begin with the same blocks."""

    def __init__(
        self, shape, plan: list[tuple[int, int]], shared: int, dtype: torch.dtype, kind: str, seed: int
    ) -> None:  # type: ignore[no-untyped-def]
        self.config, self.plan = shape, plan
        generator = torch.Generator().manual_seed(seed)
        rng = random.Random(seed)
        heads, kv_heads, dim = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim

        def made(count: int, width: int) -> torch.Tensor:
            return torch.randn(count, width, dim, generator=generator).to(dtype)

        blocks = 2 + shared // SIZE + sum(-(-(start + count) // SIZE) for start, count in plan)
        self.cache = PagedCache(shape, blocks, SIZE, dtype, kind=kind)  # type: ignore[arg-type]
        free = list(range(blocks))
        rng.shuffle(free)
        common = [free.pop() for _ in range(shared // SIZE)]
        common_k, common_v = made(shared, kv_heads), made(shared, kv_heads)
        self.new, self.keys, self.values = [], [], []
        for start, count in plan:
            own = start + count - shared if start >= shared else start + count
            begins = start >= shared > 0
            table = (common if begins else []) + [free.pop() for _ in range(-(-own // SIZE))]
            k, v = made(own, kv_heads), made(own, kv_heads)
            if begins:
                k, v = torch.cat([common_k, k]), torch.cat([common_v, v])
            self.new.append(NewTokens(start, count, table))
            self.keys.append(k)
            self.values.append(v)
        for each, k, v in zip(self.new, self.keys, self.values, strict=True):
            places = torch.arange(each.start)
            if len(places):
                self.cache.write(
                    0, torch.tensor(each.table)[places // SIZE], places % SIZE, k[: each.start], v[: each.start]
                )
        self.q = made(sum(count for _, count in plan), heads)

    def run(self) -> torch.Tensor:
        attend = PagedAttend(self.cache, self.new)
        new = [slice(each.start, each.start + each.count) for each in self.new]
        k = torch.cat([keys[part] for keys, part in zip(self.keys, new, strict=True)])
        v = torch.cat([values[part] for values, part in zip(self.values, new, strict=True)])
        return attend(0, self.q, k, v)

    def wanted(self) -> torch.Tensor:
        """In float64, sequence by sequence."""
        out, at = [], 0
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        window = self.config.windows[0] if self.config.windows else None
        for each, k, v in zip(self.new, self.keys, self.values, strict=True):
            end = each.start + each.count
            q = (
                self.q[at : at + each.count]
                .double()
                .transpose(0, 1)
                .reshape(1, kv_heads, heads // kv_heads, each.count, -1)
            )
            mask = additive(visible(torch.arange(each.start, end), torch.arange(end), window), torch.float64)
            found = grouped_attention(q, k.double().transpose(0, 1)[None], v.double().transpose(0, 1)[None], mask)
            out.append(found.reshape(heads, each.count, -1).transpose(0, 1))
            at += each.count
        return torch.cat(out)


PLANS = {
    "answers of one beginning": ([(70, 1), (64, 1), (99, 1), (128, 1)], 64),
    "answers and a piece of a prompt": ([(5, 1), (40, 1), (16, 33), (0, 20)], 0),
    "a draft to verify": ([(80, 5), (81, 1)], 64),
    "a long prompt": ([(300, 200)], 0),
    "beyond a span": ([(2100, 1), (2090, 3)], 2080),
    "first tokens": ([(0, 1), (0, 1)], 0),
}
LEVELS = ["torch", *native.LEVELS]
SHAPES = {"grouped": (6, 2, 32), "alone": (2, 2, 64), "wide": (8, 1, 128)}


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    if request.param == "torch":
        monkeypatch.setattr(native, "fits", lambda *_: False)
        yield request.param
    elif not native.available():
        pytest.skip("not run here: the native kernels were not built")
    else:
        with native.forced(request.param) as got:
            if got != request.param:
                pytest.skip(f"not run here: this processor has no {request.param}")
            yield request.param


@pytest.mark.parametrize("plan", list(PLANS))
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_blocks_give_what_whole_sequences_give(level: str, shape: str, window: int | None, plan: str) -> None:
    case = Case(config(*SHAPES[shape], window), *PLANS[plan], torch.float32, "model", 1)
    assert torch.allclose(case.run().double(), case.wanted(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("plan", list(PLANS))
def test_bfloat16_is_as_close_as_its_weights_are(level: str, plan: str) -> None:
    case = Case(config(6, 2, 32), *PLANS[plan], torch.bfloat16, "model", 2)
    assert torch.allclose(case.run().double(), case.wanted(), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("plan", list(PLANS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_kernels_read_codes_as_torch_does(
    level: str, plan: str, dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(config(6, 2, 32), *PLANS[plan], dtype, kind, 3)
    found = case.run()
    monkeypatch.setattr(native, "fits", lambda *_: False)
    again = Case(config(6, 2, 32), *PLANS[plan], dtype, kind, 3).run()
    near = {"atol": 2e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    assert torch.allclose(found.double(), again.double(), **near)  # type: ignore[arg-type]
    # half a step of a normal head is 0.01 with 8 bits and 0.15 with 4; a few keys average little of it away
    far = 3e-2 if kind == "int8" else 0.5
    assert torch.allclose(found.double(), case.wanted(), atol=far, rtol=far)


def test_codes_of_known_numbers() -> None:
    """The example of LMDeploy's kernel: [-1, 0, .5, 1.55] in steps of .01 from -1 on."""
    codes, scales = encode(torch.tensor([[-1.0, 0.0, 0.5, 1.55]]))
    assert codes.tolist() == [[0, 100, 150, 255]]
    assert scales.tolist() == [[pytest.approx(0.01, abs=1e-5), -1.0]]
    halves, scales = encode(torch.tensor([[-1.0, 0.0, 0.5, 0.5]]), 4)
    assert halves.tolist() == [[0 | 15 << 4, 10 | 15 << 4]]
    assert scales.tolist() == [[pytest.approx(0.1, abs=1e-4), -1.0]]
    for bits in (8, 4):
        constant, scales = encode(torch.full((1, 4), 0.25), bits)
        assert torch.equal(decode(constant, scales, torch.float32, bits), torch.full((1, 4), 0.25))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.floats(1e-3, 1e3), st.sampled_from([8, 4]))
def test_codes_are_within_half_a_step(seed: int, size: float, bits: int) -> None:
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(seed)) * size
    step = (x.amax(dim=-1) - x.amin(dim=-1)) / (2**bits - 1)
    error = (decode(*encode(x, bits), torch.float32, bits) - x).abs().amax(dim=-1)
    assert bool((error <= 0.5 * step + 1e-3 * x.abs().amax(dim=-1)).all())


def test_bytes_of_a_token() -> None:
    limits: list[tuple[int, KVType, float]] = [
        (64, "int8", 0.54), (128, "int8", 0.52), (64, "int4", 0.29), (128, "int4", 0.27),
    ]  # fmt: skip
    for dim, kind, most in limits:
        shape = config(4, 2, dim)
        each = bytes_per_token(shape, kind, 2)
        assert each <= most * bytes_per_token(shape, "model", 2)
        cache = PagedCache(shape, 4, SIZE, torch.bfloat16, kind=kind)
        assert sum(x.numel() * x.element_size() for _, x in cache.tensors()) == 4 * SIZE * each


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 150), st.sampled_from([1, 1, 1, 2, 7, 40])), min_size=1, max_size=7),
    st.sampled_from([0, 32, 64]),
    st.integers(0, 9),
)
def test_any_mixture_of_answers_and_prompts(plan: list[tuple[int, int]], shared: int, seed: int) -> None:
    case = Case(config(4, 2, 16), plan, shared, torch.float32, "model", seed)
    assert torch.allclose(case.run().double(), case.wanted(), atol=2e-6, rtol=1e-5)
    assert np.isfinite(case.run().numpy()).all()
