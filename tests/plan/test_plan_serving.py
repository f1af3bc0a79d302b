"""Forms of serving and targets, against sums done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from riverrun.base.errors import CapacityError
from riverrun.plan.hardware import Hardware
from riverrun.plan.memory import inference_memory, weight_bytes
from riverrun.plan.serving import Asking, Target, judge_targets, serving_forms, speed
from riverrun.plan.shape import parameters

from .test_plan_arithmetic import SMOLLM2

# Reading bound: 3e10 bytes a second; computing is fast enough never to matter for one row.
LAPTOP = Hardware("laptop", 8_000_000_000, {"bf16": 4e11}, cores=2, bandwidth=3e10)
ASKING = Asking(new=60, call=40, result=45, answer=60)


def forms(asking: Asking = ASKING, **more: int):  # type: ignore[no-untyped-def]
    given = {"slots": 32, "slot_tokens": 400, "rank": 16} | more
    return serving_forms(SMOLLM2, LAPTOP, dtype="bf16", asking=asking, **given)


def test_one_sequence_is_bound_by_reading_its_weights() -> None:
    tokens, first = speed(SMOLLM2, LAPTOP, dtype="bf16", prompt_tokens=300)
    assert tokens == pytest.approx(3e10 / (2 * parameters(SMOLLM2)))
    longer = speed(SMOLLM2, LAPTOP, dtype="bf16", prompt_tokens=600)[1]
    assert 2 < (longer - 1 / tokens) / (first - 1 / tokens) < 2.3, "attention grows with the square"


def test_forms_differ_in_their_files_alone() -> None:
    full, beside, merged = forms()
    assert [full.name, beside.name, merged.name] == ["16-bit", "q4-base-adapter", "q4-merged"]
    assert full.file_bytes > beside.file_bytes > merged.file_bytes == weight_bytes(SMOLLM2, "w4g64")
    need = inference_memory(SMOLLM2, weights="bf16", cache_dtype="bf16", cache_tokens=12_800, rows=32).total
    assert {form.memory_bytes for form in (full, beside, merged)} == {need}
    assert [form.name for form in forms(rank=0)] == ["16-bit", "q4-merged"]
    assert forms(beside_bytes=10)[0].memory_bytes == need + 10


def test_drafts_slots_and_the_first_text() -> None:
    one = forms()[0]
    step = weight_bytes(SMOLLM2, "bf16") / 3e10
    assert one.ttft_seconds > 41 * step, "the call is written before the first text comes"
    assert forms(replace(ASKING, drafts=4))[0].rps < one.rps
    assert forms(slots=1)[0].rps < one.rps
    assert forms(slots=1)[0].memory_bytes < one.memory_bytes


def test_a_target_is_met_doubtful_or_out_of_reach() -> None:
    def target(stated: float, *, higher: bool = True) -> Target:
        return Target("rps", stated, {"a": 4.0, "b": 5.0} if higher else {"a": 4.0, "b": 8.0}, higher, "answers")

    assert judge_targets([target(5.0), target(4.0, higher=False)]) == []
    (sentence,) = judge_targets([target(9.0)])
    assert sentence.startswith("targets.rps = 9: b, the nearest form, is predicted to reach 5 answers")
    assert len(judge_targets([target(2.0, higher=False)])) == 1
    with pytest.raises(CapacityError, match=r"targets.rps = 10.1: b, .* reach 5 answers: change the target"):
        judge_targets([target(10.1)])
    with pytest.raises(CapacityError, match=r"= 1.9: a, .* reach 4 answers"):
        judge_targets([target(1.9, higher=False)])
