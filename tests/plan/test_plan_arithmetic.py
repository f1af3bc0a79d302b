"""Sizes, memory and operations against published models, published measurements and hand-made sums."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import InputError
from riverrun.plan.compute import attention_flops, decode_seconds, forward_flops, training_flops, training_seconds
from riverrun.plan.hardware import Hardware, accelerator, accelerators
from riverrun.plan.memory import Estimate, inference_memory, weight_bytes
from riverrun.plan.shape import linear_parameters, lora_parameters, parameters
from riverrun.plan.tables import read_table, read_values
from riverrun.plan.training import Batch, Setup, training_memory


@dataclass(frozen=True)
class Shape:
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool = False
    head_dim: int | None = None


SMOLLM2 = Shape(576, 1536, 30, 9, 3, 49152, True)
LLAMA2_7B = Shape(4096, 11008, 32, 32, 32, 32000)
LLAMA31_8B = Shape(4096, 14336, 32, 32, 8, 128256)
TINY = Shape(8, 20, 3, 4, 2, 11, False)


@pytest.mark.parametrize(
    ("shape", "count"), [(SMOLLM2, 134_515_008), (LLAMA2_7B, 6_738_415_616), (LLAMA31_8B, 8_030_261_248)]
)
def test_parameters_of_published_models(shape: Shape, count: int) -> None:
    assert parameters(shape) == count


def test_lora_parameters() -> None:
    assert lora_parameters(LLAMA2_7B, 64) == 159_907_840  # every linear layer but the head
    assert lora_parameters(LLAMA2_7B, 8, ("q_proj", "v_proj")) == 32 * 2 * 8 * 2 * 4096
    assert linear_parameters(LLAMA2_7B) == pytest.approx(6.476e9, rel=1e-4)
    wide = Shape(8, 20, 1, 4, 2, 11, False, head_dim=16)
    assert lora_parameters(wide, 1, ("q_proj", "k_proj")) == (8 + 64) + (8 + 32)
    with pytest.raises(InputError, match=r"no linear layer 'q_prog'\. Did you mean 'q_proj'"):
        lora_parameters(TINY, 4, ("q_prog",))
    with pytest.raises(InputError, match="got 0"):
        lora_parameters(TINY, 0)


def test_lora_items_by_hand() -> None:
    """h 8, f 20, a 8, k 4, L 3, V 11; T 10 tokens, 6 of them with a label, rank 2."""
    table = read_values("training", "coefficients")
    estimate = training_memory(TINY, Batch(10, 6), Setup("lora", rank=2, threads=1), base_bytes=1000)
    trained = 3 * 2 * (16 + 12 + 12 + 16 + 28 + 28 + 28)
    assert estimate["process"] == 1000
    assert estimate["weights"] == 2 * parameters(TINY)
    assert estimate["merged"] == 2 * 2 * linear_parameters(TINY)
    assert estimate["adapters"] == estimate["gradients"] == 4 * trained
    assert estimate["optimizer"] == 8 * trained
    block = 10 * (2 * (4 * 8 + 2 * 8 + 2 * 4 + 3 * 20) + 4 * 4 + 8)
    kept = 3 * block + 4 * 10 * 8 * 2
    assert estimate["activations"] == max(0, kept - 4 * trained)
    assert estimate["one layer"] == 10 * max(2 * (3 * 20 + 2 * 8), 2 * (2 * (8 + 8) + 2 * 8) + 8 * 4)
    assert estimate["logits"] == 6 * 11 * 2
    slack = table["slack_bytes"] + table["slack_share"] * (kept + estimate["one layer"])
    assert estimate["slack"] == pytest.approx(slack + table["merged_holes"] * estimate["merged"], abs=1)
    wide = training_memory(TINY, Batch(10, 6, "fp32", native=False), Setup("lora", rank=2), base_bytes=0)
    assert wide["merged"] == 4 * linear_parameters(TINY)
    assert wide["logits"] == 6 * 11 * 12


def test_full_items_by_hand() -> None:
    """In bf16: weights and gradients 2 N each, lower halves of masters 2 N, moments by optimizer; in fp32 none."""
    count = parameters(TINY)
    estimate = training_memory(TINY, Batch(10, 10, recompute=1.0), Setup("full"), base_bytes=0)
    assert [estimate[name] for name in ("weights", "gradients", "masters", "optimizer")] == [
        *(2 * count, 2 * count),
        *(2 * count, 8 * count),
    ]
    narrow = training_memory(TINY, Batch(10, 10, "fp16"), Setup("full"), base_bytes=0)
    assert narrow["masters"] == 4 * count, "no fp16 number is half of an fp32 one"
    eight = training_memory(TINY, Batch(10, 10), Setup("full", optimizer="adamw8bit"), base_bytes=0)
    assert eight["optimizer"] == round(2 * (1 + 4 / 256) * count)
    muon = training_memory(TINY, Batch(10, 10), Setup("full", optimizer="muon"), base_bytes=0)
    assert muon["optimizer"] == 4 * linear_parameters(TINY) + 8 * (count - linear_parameters(TINY))
    bare = training_memory(TINY, Batch(10, 10), Setup("full", master=False), base_bytes=0)
    assert "masters" not in [item.name for item in bare.items]
    wide = training_memory(TINY, Batch(10, 10, "fp32"), Setup("full"), base_bytes=0)
    assert wide["weights"] + wide["gradients"] + wide["optimizer"] == 16 * count
    several = training_memory(TINY, Batch(10, 10), Setup("full", micro_batches=2), base_bytes=0)
    assert (several["gradients"], several["summed gradients"]) == (0, 4 * count)


def test_seven_thousand_million_weights_in_four_bits() -> None:
    """3.34 GB of linear layers at 0.516 bytes (QLoRA, arXiv:2305.14314, section 3: 4.127 bits), 8-bit tables."""
    setup = Setup("qlora", rank=16, optimizer="adamw8bit")
    estimate = training_memory(LLAMA2_7B, Batch(2048, 2048, recompute=1.0), setup, base_bytes=0)
    assert estimate["weights"] == pytest.approx(3.34e9, rel=0.002)
    assert estimate["tables"] == 32000 * 4096 + 4 * 32000
    assert estimate["adapters"] == 4 * 39_976_960
    assert estimate["activations"] == pytest.approx(32 * 2048 * 4096 * 2, rel=0.25)
    plain = training_memory(LLAMA2_7B, Batch(2048, 2048, recompute=1.0), Setup("qlora", tables="plain"), base_bytes=0)
    assert plain["tables"] == 2 * 32000 * 4096


def test_inference_items_by_hand() -> None:
    estimate = inference_memory(TINY, weights="q8_0", table_dtype="bf16", cache_tokens=50, rows=2, base_bytes=0)
    linear = linear_parameters(TINY)
    assert estimate["weights"] == round(1.0625 * linear + 2 * (parameters(TINY) - linear))
    assert estimate["cache"] == 2 * 3 * 4 * 50 * 4
    assert estimate["head"] == 4 * 2 * 11
    assert (estimate["loading"], estimate["packed head"]) == (8 * 11 * 8, 4 * 11 * 8)


def test_weights_of_a_real_file() -> None:
    """SmolLM2-135M as Q4_1, embedding as Q8_0, is a file of 98,362,432 bytes; the metadata is about 2 % of it."""
    size = weight_bytes(SMOLLM2, "q4_1", table_dtype="q8_0")
    assert 0.93 < size / 98_362_432 < 1.0


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 64), st.floats(0, 1), st.booleans())
def test_more_work_never_needs_less_memory(tokens: int, rank: int, share: float, recompute: bool) -> None:
    again = 1.0 if recompute else 0.0

    def total(t: int, r: int, again: float = again) -> int:
        return training_memory(SMOLLM2, Batch(t, int(t * share), recompute=again), Setup("lora", rank=r)).total

    assert total(tokens, rank) < total(tokens + 64, rank)
    assert total(tokens, rank) <= total(tokens, rank + 1)
    if tokens >= 1024:  # of a few tokens the activations are less than the gradients that replace them
        assert total(tokens, rank, 1.0) < total(tokens, rank, 0.5) < total(tokens, rank, 0.0)
    batch = Batch(tokens, int(tokens * share), recompute=again)
    lora = training_memory(SMOLLM2, batch, Setup("lora", rank=8)).total
    assert training_memory(SMOLLM2, batch, Setup("qlora", rank=8)).total < lora


def test_chunks_bound_the_logits() -> None:
    """4,096 rows of a vocabulary of 151,936 in bf16 are 1.2 GB; at once there are 192 MB of them."""
    qwen = Shape(896, 4864, 24, 14, 2, 151936, True)
    assert parameters(qwen) == pytest.approx(0.49e9, rel=0.02)
    chunk = (192 << 20) // (151936 * 2) // 64 * 64
    assert training_memory(qwen, Batch(4096, 4096), Setup("lora"))["logits"] == chunk * 151936 * 2
    assert training_memory(qwen, Batch(4096, 100), Setup("lora"))["logits"] == 100 * 151936 * 2


def test_published_throughput_gives_published_flops() -> None:
    """llm-foundry MPT-7B on H100: 10,643 tokens/s are 459.5 TFLOP/s, attention not halved (6 N + 12 L h s)."""
    mpt = Shape(4096, 16384, 32, 32, 32, 50368, True)
    rate = 10_643 * (6 * 6.658e9 + 3 * 2 * attention_flops(mpt, 2048))
    assert rate == pytest.approx(459.5e12, rel=0.01)


@pytest.mark.parametrize(("length", "tokens", "tera"), [(8192, 3028.3, 185.3), (32768, 2234.2, 193.0)])
def test_published_throughput_with_recompute(length: int, tokens: float, tera: float) -> None:
    """XTuner, Llama-2-7B, full fine-tuning with recomputation, causal attention counted once."""
    assert tokens * training_flops(LLAMA2_7B, "full", length=length, recompute=True) == pytest.approx(
        tera * 1e12, rel=0.01
    )


def test_training_flops_by_hand() -> None:
    linear, attention, head = 2 * linear_parameters(TINY), 2 * 3 * 8 * 16, 2 * 8 * 11
    assert forward_flops(TINY, 16) == linear + attention + head
    assert training_flops(TINY, "full", length=16) == 3 * (linear + attention + head)
    lora = 2 * linear + 6 * lora_parameters(TINY, 2) + 3 * attention + 2 * head * 0.25
    assert training_flops(TINY, "lora", length=16, rank=2, label_share=0.25) == lora
    assert (
        training_flops(TINY, "lora", length=16, rank=2, label_share=0.25, recompute=True) == lora + linear + attention
    )
    with pytest.raises(InputError, match=r"got 1\.5 and 16"):
        training_flops(TINY, "full", length=16, label_share=1.5)


def test_seconds() -> None:
    machine = Hardware("laptop", 8 << 30, {"fp32": 1e11}, bandwidth=1e10)
    assert training_seconds(5e12, machine, dtype="fp32") == pytest.approx(50)
    assert training_seconds(0, machine, dtype="fp32", steps=10, trained=1_000_000) == pytest.approx(10 * 28e6 / 1e10)
    assert decode_seconds(SMOLLM2, machine, weight_bytes=10**9, dtype="fp32") == pytest.approx(0.1)
    assert decode_seconds(SMOLLM2, machine, weight_bytes=10**9, dtype="fp32", rows=100) == pytest.approx(
        0.269, rel=1e-3
    )
    with pytest.raises(InputError, match="no rate is known for bf16 on 'laptop', measured: fp32"):
        machine.rate("bf16")


def test_accelerators_have_sources_and_rates_below_their_peaks() -> None:
    for name in accelerators():
        entry, device = read_table("accelerators", "accelerators")[name], accelerator(name)
        assert len(entry["source"]) > 20
        assert all(0 < device.rate(dtype) < peak for dtype, peak in entry["peak"].items())
    with pytest.raises(InputError, match="Did you mean 'h100-80gb'"):
        accelerator("h100")


def test_every_coefficient_has_a_value_and_a_source() -> None:
    for section in ("coefficients", "weight_bytes", "choices"):
        for name, entry in read_table("training", section).items():
            assert set(entry) == {"value", "source"}, name
            assert entry["source"]


def test_refusals() -> None:
    with pytest.raises(InputError, match="got 4 and 5"):
        Batch(4, 5)
    with pytest.raises(InputError, match="no size is known for weights of type 'fp8'"):
        weight_bytes(TINY, "fp8")
    with pytest.raises(InputError, match="needs memory and rates above 0"):
        Hardware("x", 0, {})
    with pytest.raises(InputError, match=r"recompute is a share of the layers between 0 and 1, got 2"):
        Batch(4, 4, recompute=2)
    with pytest.raises(InputError, match=r"no optimizer 'adamw8'\. Did you mean"):
        Setup("full", optimizer="adamw8")
    assert Estimate(()).total == 0
