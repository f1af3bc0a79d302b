"""The choice of a method: what is taken when, with which reason, and when nothing is."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import riverrun.plan.flow as flow
from riverrun.base.errors import CapacityError, InputError
from riverrun.plan.flow import Work, choose, wanted_rank
from riverrun.plan.hardware import Hardware
from riverrun.plan.memory import inference_memory
from riverrun.plan.shape import lora_parameters, parameters
from riverrun.plan.training import TrainMethod, training_memory

from .test_plan_arithmetic import LLAMA2_7B, SMOLLM2, Shape

LAPTOP = Hardware("laptop", 8_000_000_000, {"fp32": 1.5e11}, cores=2, bandwidth=3e10)
WORK = Work(tokens=1_000_000, label_tokens=200_000, micro_tokens=1024, length=300, steps=200)


FREE = replace(WORK, dtype="bf16", compute="fp32", micro_tokens=4096, recompute=None, rank=0)


def need(work: Work, method: TrainMethod, tokens: int, recompute: float = 0.0, shape: Shape = SMOLLM2) -> int:
    rank = work.rank or 16
    return training_memory(shape, work.batch(tokens, recompute), work.setup(method, rank, tokens)).total


def test_lora_is_taken_for_little_data_though_all_would_fit() -> None:
    plan = choose(SMOLLM2, LAPTOP, WORK)
    assert plan.chosen == "lora"
    assert [method.name for method in plan.methods] == ["full", "lora", "qlora", "none"]
    assert all(method.fits for method in plan.methods)
    assert plan.why.startswith("200000 label tokens for 134515008 weights; lora fits")
    assert plan.method().memory_bytes == need(WORK, "lora", 1024)
    assert plan.method("full").seconds > plan.method().seconds > 0


def test_full_is_taken_for_much_data() -> None:
    work = replace(WORK, tokens=400_000_000, label_tokens=parameters(SMOLLM2))
    assert choose(SMOLLM2, LAPTOP, work).chosen == "full"
    small = choose(SMOLLM2, LAPTOP, work, available_bytes=2_500_000_000)
    assert small.chosen == "lora"
    assert "full does not fit" in small.why


def test_none_is_taken_when_the_bar_is_met() -> None:
    plan = choose(SMOLLM2, LAPTOP, WORK, score=0.8, bar=0.7)
    assert (plan.chosen, plan.why) == ("none", "the untuned model scores 0.8, the bar is 0.7")
    assert choose(SMOLLM2, LAPTOP, WORK, score=0.6, bar=0.7).chosen == "lora"


def test_the_micro_batch_shrinks_until_it_fits() -> None:
    wide = choose(SMOLLM2, LAPTOP, replace(WORK, micro_tokens=2048))
    assert wide.method("lora").micro_tokens == 2048
    least = need(WORK, "lora", 512)
    tight = choose(SMOLLM2, LAPTOP, replace(WORK, micro_tokens=2048), available_bytes=least)
    assert (tight.chosen, tight.method().micro_tokens, tight.method().memory_bytes) == ("lora", 512, least)
    assert not tight.method("full").fits
    assert tight.method("full").micro_tokens == WORK.least_tokens


def test_a_bar_that_no_method_can_meet_on_this_memory() -> None:
    alone = inference_memory(SMOLLM2).total
    offered: tuple[TrainMethod, ...] = ("full", "lora")
    least = need(WORK, "lora", 256)
    with pytest.raises(CapacityError) as caught:
        choose(SMOLLM2, LAPTOP, WORK, available_bytes=alone, score=0.05, bar=0.7, offered=offered)
    text = str(caught.value)
    assert text.startswith("the bar 0.7 (untuned: 0.05) needs a training, and it does not fit into this memory: lora")
    assert f"needs {least / 1e9:.2f} GB and {alone / 1e9:.2f} GB are available" in text
    assert caught.value.exit_code == 2
    with pytest.raises(CapacityError, match=r"the model alone needs .* are available: free memory"):
        choose(SMOLLM2, LAPTOP, WORK, available_bytes=alone - 1, score=0.9, bar=0.7, offered=offered)


def test_a_method_that_was_asked_for_is_taken_or_refused() -> None:
    for name in ("full", "lora", "none"):
        plan = choose(SMOLLM2, LAPTOP, WORK, method=name)
        assert plan.chosen == name
        assert plan.why.startswith(f"asked for; {name} fits")
    with pytest.raises(CapacityError) as caught:
        choose(SMOLLM2, LAPTOP, WORK, method="full", available_bytes=2_000_000_000)
    least = need(WORK, "full", 256)
    text = str(caught.value)
    assert f"full with micro-batches of 256 tokens needs {least / 1e9:.2f} GB and 2.00 GB are available" in text
    assert re.search(r": qlora needs 1\.\d\d GB and fits, or free memory$", text)
    with pytest.raises(InputError, match="method qlora is not offered here, offered: full, lora"):
        choose(SMOLLM2, LAPTOP, WORK, method="qlora", offered=("full", "lora"))


def test_four_bits_are_taken_where_lora_does_not_fit() -> None:
    seven = replace(FREE, micro_tokens=2048, optimizer="adamw8bit", rank=16)
    plan = choose(LLAMA2_7B, LAPTOP, seven, available_bytes=5_800_000_000)
    assert (plan.chosen, plan.method().rank) == ("qlora", 16)
    assert "lora does not fit" in plan.why
    assert plan.method().recompute == 1.0
    assert {item["name"] for item in plan.method().items} >= {"weights", "tables", "adapters", "optimizer"}
    with pytest.raises(
        CapacityError, match=r"qlora with micro-batches of 256 tokens and every layer run again needs 4"
    ):
        choose(LLAMA2_7B, LAPTOP, seven, available_bytes=4_000_000_000)
    with pytest.raises(CapacityError, match=r"lora .* needs .* and 5\.80 GB are available: qlora needs .* and fits"):
        choose(LLAMA2_7B, LAPTOP, seven, method="lora", available_bytes=5_800_000_000)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    st.integers(1_200, 9_000),
    st.integers(0, 3_000),
    st.sampled_from(["full", "lora", "qlora"]),
    st.sampled_from([None, 0.0, 1.0]),
    st.sampled_from([0, 8, 32]),
)
def test_more_memory_never_gives_less(
    megabytes: int, more: int, method: TrainMethod, recompute: float | None, rank: int
) -> None:
    """Neither a smaller micro-batch, nor a lower rank, nor more layers that run again; what is chosen always fits."""
    work, found = replace(FREE, recompute=recompute, rank=rank), []
    for memory in (megabytes * 10**6, (megabytes + more) * 10**6):
        try:
            found.append(choose(SMOLLM2, LAPTOP, work, method=method, available_bytes=memory).method())
        except CapacityError:
            found.append(None)
    low, high = found
    if low is None:
        return
    assert high is not None
    assert low.memory_bytes <= megabytes * 10**6
    assert high.micro_tokens >= low.micro_tokens
    assert high.rank >= low.rank
    assert high.recompute <= low.recompute
    assert high.seconds <= low.seconds * (1 + 0.1 * (high.rank > low.rank))


def test_a_wish_is_kept() -> None:
    """A given recompute, rank and micro-batch are those of the plan."""
    work = replace(FREE, micro_tokens=1024, least_tokens=1024, recompute=0.5, rank=32)
    chosen = choose(SMOLLM2, LAPTOP, work, method="lora").method()
    assert (chosen.micro_tokens, chosen.recompute, chosen.rank) == (1024, 0.5, 32)
    assert "50% of the layers run again" in chosen.reason


def test_the_rank_follows_the_label_tokens() -> None:
    ranks = [wanted_rank(SMOLLM2, tokens)[0] for tokens in (0, 10_000, 3_000_000, 5_000_000, 10_000_000, 10**10)]
    assert ranks == [8, 8, 8, 16, 32, 64]
    assert str(lora_parameters(SMOLLM2, 16)) in wanted_rank(SMOLLM2, 5_000_000)[1]
    work = replace(FREE, tokens=10**8, label_tokens=10**8)
    tight = need(replace(work, rank=8), "qlora", 256, 1.0) + 1
    plan = choose(SMOLLM2, LAPTOP, work, available_bytes=tight)
    assert plan.method().rank == 8
    assert plan.method().notes == ("rank 8: the memory has no room for rank 64",)


def test_the_plan_is_plain_data() -> None:
    plan = choose(SMOLLM2, LAPTOP, WORK, base_bytes=123)
    again = json.loads(json.dumps(plan.as_dict()))
    assert set(again) == {"methods", "chosen", "why", "available_bytes"}
    items = {item["name"]: item["bytes"] for item in again["methods"][1]["items"]}
    assert sum(items.values()) == again["methods"][1]["memory_bytes"]
    assert items["process"] == 123


def test_work_that_cannot_be() -> None:
    with pytest.raises(InputError, match="got 10 and 11"):
        Work(tokens=10, label_tokens=11, micro_tokens=1024, length=3)
    with pytest.raises(InputError, match="got 128 and 256"):
        Work(tokens=10, label_tokens=1, micro_tokens=128, length=3)


def test_no_rank_above_the_one_that_the_study_found_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for enough in (None, 16.0):
        monkeypatch.setattr(flow, "threshold", lambda name, enough=enough: enough)
        found[enough] = wanted_rank(SMOLLM2, 10**9)[0]
    assert found == {None: 64, 16.0: 16}
