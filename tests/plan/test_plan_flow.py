"""The choice of a method: what is taken when, with which reason, and when nothing is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from riverrun.base.errors import CapacityError, InputError
from riverrun.plan.flow import Work, choose
from riverrun.plan.hardware import Hardware
from riverrun.plan.memory import inference_memory, lora_memory
from riverrun.plan.shape import parameters

from .test_plan_arithmetic import SMOLLM2

LAPTOP = Hardware("laptop", 8_000_000_000, {"fp32": 1.5e11}, cores=2, bandwidth=3e10)
WORK = Work(tokens=1_000_000, label_tokens=200_000, micro_tokens=1024, length=300, steps=200)


def test_lora_is_taken_for_little_data_though_all_would_fit() -> None:
    plan = choose(SMOLLM2, LAPTOP, WORK)
    assert plan.chosen == "lora"
    assert [method.name for method in plan.methods] == ["full", "lora", "none"]
    assert all(method.fits for method in plan.methods)
    assert plan.why.startswith("200000 label tokens for 134515008 weights; lora fits")
    assert plan.method().memory_bytes == lora_memory(SMOLLM2, WORK.batch(1024), rank=16).total
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
    need = lora_memory(SMOLLM2, WORK.batch(512), rank=16).total
    tight = choose(SMOLLM2, LAPTOP, replace(WORK, micro_tokens=2048), available_bytes=need)
    assert (tight.chosen, tight.method().micro_tokens, tight.method().memory_bytes) == ("lora", 512, need)
    assert not tight.method("full").fits
    assert tight.method("full").micro_tokens == WORK.least_tokens


def test_a_bar_that_no_method_can_meet_on_this_memory() -> None:
    alone = inference_memory(SMOLLM2).total
    with pytest.raises(CapacityError) as caught:
        choose(SMOLLM2, LAPTOP, WORK, available_bytes=alone, score=0.05, bar=0.7)
    text = str(caught.value)
    least = lora_memory(SMOLLM2, WORK.batch(256), rank=16).total
    assert text.startswith("the bar 0.7 (untuned: 0.05) needs a fine-tune, and it does not fit into this memory: lora")
    assert f"needs {least / 1e9:.2f} GB and {alone / 1e9:.2f} GB are available" in text
    assert caught.value.exit_code == 2
    with pytest.raises(CapacityError, match=r"the model alone needs .* are available: free memory"):
        choose(SMOLLM2, LAPTOP, WORK, available_bytes=alone - 1, score=0.9, bar=0.7)


def test_a_method_that_was_asked_for_is_taken_or_refused() -> None:
    for name in ("full", "lora", "none"):
        plan = choose(SMOLLM2, LAPTOP, WORK, method=name)
        assert plan.chosen == name
        assert plan.why.startswith(f"asked for; {name} fits")
    with pytest.raises(CapacityError, match=r"full with micro-batches of 256 tokens needs 3\.\d\d GB and 2\.00 GB"):
        choose(SMOLLM2, LAPTOP, WORK, method="full", available_bytes=2_000_000_000)


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
