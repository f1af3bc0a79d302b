"""Exact sums, packing, seeking, resuming after kill -9."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import CapacityError, ConfigError, InputError
from riverrun.data.packing import Pack, PackStats, plan_epoch
from riverrun.data.tokens import TokenRow
from riverrun.models.io.adapter import add_adapters, load_adapter
from riverrun.models.load import load_checkpoint, load_model
from riverrun.train.config import FinetuneConfig
from riverrun.train.finetune import encode, finetune
from riverrun.train.loss import linear_cross_entropy
from riverrun.train.objectives.supervised import Supervised
from riverrun.train.sampler import PackSampler
from riverrun.train.schedule import factor
from tests.tiny_model import write_rows, write_tiny

SMALL = FinetuneConfig(
    rank=4,
    epochs=2,
    micro_tokens=256,
    global_tokens=256,
    max_tokens=200,
    dtype="float32",
    save_every=2,
    learning_rate=1e-2,
)


def test_chunked_loss_is_cross_entropy_with_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(700, 16, dtype=torch.float64, generator=generator, requires_grad=True)
    head = torch.randn(40, 16, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, 40, (700,), generator=generator)
    reference = torch.nn.functional.cross_entropy(hidden @ head.T, targets, reduction="sum")
    wanted = torch.autograd.grad(reference, hidden)[0]
    ours = linear_cross_entropy(hidden, head, targets)
    got = torch.autograd.grad(ours * 0.5, hidden)[0]
    assert abs(float(ours) - float(reference)) / float(reference) < 1e-6
    assert torch.allclose(got, wanted * 0.5, rtol=1e-4, atol=1e-5)


def test_schedules() -> None:
    rates = [factor("linear", step, 10, 2) for step in range(10)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2] == 1.0
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)
    assert factor("constant", 9, 10, 0) == 1.0
    assert factor("cosine", 5, 10, 0) == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="'wds' is not one of constant, cosine, linear, wsd"):
        factor("wds", 0, 1, 0)


ROWS = st.lists(
    st.tuples(
        st.sampled_from([(), tuple(range(20)), tuple(range(24))]), st.lists(st.integers(0, 5), min_size=3, max_size=30)
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(ROWS, st.integers(0, 3), st.booleans())
def test_packs_hold_every_row_once_and_predict_the_same(raw, epoch: int, share: bool) -> None:
    rows = [
        TokenRow(str(n), start + tuple(own), (False,) * (len(start) + 1) + (True,) * (len(own) - 1))
        for n, (start, own) in enumerate(raw)
    ]
    packs = plan_epoch(rows, micro_tokens=64, seed=1, epoch=epoch, share=share)
    assert sorted(row.id for pack in packs for row in pack.rows) == sorted(row.id for row in rows)
    assert packs == plan_epoch(rows, micro_tokens=64, seed=1, epoch=epoch, share=share)
    stats = PackStats.of(packs)
    assert stats.label_tokens == sum(row.label_tokens for row in rows)
    for pack in packs:
        assert pack.computed_tokens <= 64
        assert len(pack.ids()) == pack.computed_tokens
        places, targets = pack.targets()
        alone = [t for row in pack.rows for t in Pack.of((row,)).targets()[1]]
        assert targets.tolist() == alone
        ids = pack.ids()
        ((prefix, lengths),) = pack.layout
        starts = {prefix + sum(lengths[:i]) for i in range(len(pack.rows))}
        assert all(ids[p + 1] == t and p + 1 not in starts for p, t in zip(places, targets, strict=True))


def test_a_row_longer_than_a_pack_is_refused() -> None:
    with pytest.raises(CapacityError, match="has 100 tokens, a pack holds 64"):
        plan_epoch([TokenRow("x", (1,) * 100, (True,) * 100)], micro_tokens=64, seed=0, epoch=0)


def test_sharing_a_prefix_and_accumulating_change_no_gradient(tmp_path: Path) -> None:
    opened = load_checkpoint(write_tiny(tmp_path / "m"))
    rows = encode(write_rows(tmp_path / "rows.jsonl", 12), opened, SMALL).rows
    model = load_model(opened, torch.float32)
    add_adapters(model, 4, 8.0)
    for _, matrix in model.linears():
        for adapter in matrix.adapters.values():
            torch.nn.init.normal_(adapter.lora_B, std=0.1, generator=torch.Generator().manual_seed(1))
    model.refresh()

    def gradient(share: bool, micro: int) -> torch.Tensor:
        model.zero_grad()
        packs = plan_epoch(rows, micro_tokens=micro, seed=0, epoch=0, share=share)
        assert bool(packs[0].groups[0].prefix) == share
        for pack in packs:
            (Supervised(model)(pack).total / sum(row.label_tokens for row in rows)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    base = gradient(False, 2048)
    for share, micro in ((True, 2048), (False, 300), (True, 256)):
        assert float((gradient(share, micro) - base).abs().max() / base.abs().max()) < 1e-4


def test_training_learns_and_any_step_can_be_asked_for(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 24)
    base = write_tiny(tmp_path / "m")
    result = finetune(base, rows, tmp_path / "out", SMALL, work=tmp_path / "work")
    assert result.losses[-1] < 0.8 * result.losses[0]
    assert result.row_tokens > result.computed_tokens
    assert not (tmp_path / "work").exists()
    encoded = encode(rows, load_checkpoint(base), SMALL).rows
    forward = PackSampler(encoded, micro_tokens=256, packs_per_step=2, seed=0)
    backward = PackSampler(encoded, micro_tokens=256, packs_per_step=2, seed=0)
    total = forward.total_steps(2)
    seen = [forward.batch(step) for step in range(total)]
    assert seen == [backward.batch(step) for step in reversed(range(total))][::-1]
    assert sorted(row.id for step in seen for pack in step for row in pack.rows) == sorted(2 * [r.id for r in encoded])


def test_training_goes_on_from_an_adapter(tmp_path: Path) -> None:
    base, rows = write_tiny(tmp_path / "m"), write_rows(tmp_path / "rows.jsonl", 24)
    first = finetune(base, rows, tmp_path / "first", SMALL, work=tmp_path / "w1")
    start = tmp_path / "first" / "adapter"
    second = finetune(base, rows, tmp_path / "second", SMALL, work=tmp_path / "w2", adapter=start)
    opened = load_checkpoint(base)
    model = load_model(opened, torch.float32).train()
    load_adapter(model, start)
    model.refresh()
    packs = PackSampler(encode(rows, opened, SMALL).rows, micro_tokens=256, packs_per_step=1, seed=0).batch(0)
    loss = sum(float(Supervised(model)(pack).total.detach()) for pack in packs) / sum(
        pack.label_tokens for pack in packs
    )
    assert second.losses[0] == loss, "step 0 is the adapter itself"
    assert second.losses[0] < 0.8 * first.losses[0]
    assert second.losses[-1] < first.losses[-1]
    wider = SMALL.model_copy(update={"rank": 8})
    with pytest.raises(
        InputError, match=r"has rank 4, alpha 32\.0, rslora False, the settings ask for rank 8, alpha 32\.0"
    ):
        finetune(base, rows, tmp_path / "third", wider, work=tmp_path / "w3", adapter=start)


SCRIPT = """
import sys, torch
from pathlib import Path
from riverrun.train.config import FinetuneConfig
from riverrun.train.finetune import finetune
torch.set_num_threads(1)
root = Path(sys.argv[1])
config = FinetuneConfig.model_validate_json((root / "config.json").read_text())
finetune(root / "m", root / "rows.jsonl", root / sys.argv[2], config, work=root / (sys.argv[2] + "-work"))
"""


def test_killed_in_the_middle_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    write_tiny(tmp_path / "m")
    write_rows(tmp_path / "rows.jsonl", 60)
    (tmp_path / "config.json").write_text(SMALL.model_copy(update={"epochs": 6}).model_dump_json())

    def start(out: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path), out])

    assert start("straight").wait() == 0
    process = start("killed")
    work = tmp_path / "killed-work"
    while process.poll() is None and not list(work.glob("step-*/trainer_state/state.json")):
        pass  # the checkpoint's marker is the event; it comes or the process ends
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert not (tmp_path / "killed").exists()
    assert start("killed").wait() == 0
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "loss.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no row to learn from: the file is empty"),
        ("{]\n", "line 1: not a conversation"),
        (json.dumps({"messages": [{"role": "user", "content": "x"}]}) + "\n", "has no assistant turn to learn from"),
        (
            json.dumps({"messages": [{"role": "assistant", "content": "x " * 400}]}) + "\n",
            r"\d+ tokens, the limit is 200",
        ),
    ],
)
def test_rows_that_teach_nothing_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        encode(path, load_checkpoint(write_tiny(tmp_path / "m")), SMALL)


def test_plain_text_rows_learn_every_token(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "t", "text": "A plain text."}) + "\n")
    opened = load_checkpoint(write_tiny(tmp_path / "m"))
    (row,) = encode(path, opened, SMALL).rows
    assert row.label_tokens == len(row.ids) - 1
    assert opened.tokenizer.decode(row.ids) == "A plain text."
