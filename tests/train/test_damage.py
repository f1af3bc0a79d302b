"""Checkpoints that were damaged, left behind, poisoned: the run goes on from a whole one or one sentence says why."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from riverrun.base.artifacts import digest_file, digest_json
from riverrun.base.errors import IntegrityError, RiverrunError
from riverrun.data.packing import Pack
from riverrun.models.io.hf import write_weights
from riverrun.train import finetune as room
from riverrun.train.checkpoint import STATE, TENSORS
from riverrun.train.config import FinetuneConfig
from riverrun.train.finetune import FinetuneResult, finetune
from riverrun.train.objectives import Loss
from riverrun.train.objectives.supervised import Supervised
from tests.tiny_model import tiny_config, tiny_weights, write_rows, write_tiny

CONFIG = FinetuneConfig(
    rank=2,
    epochs=4,
    micro_tokens=256,
    global_tokens=256,
    max_tokens=200,
    dtype="float32",
    save_every=2,
    learning_rate=1e-2,
)
PARTS = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "loss.jsonl")
STOPPED = 7  # finished steps when the first run is stopped: the checkpoints of steps 4 and 6 stand


class Stopped(Exception):
    """What ends a run from outside."""


def run(root: Path, out: str = "out", config: FinetuneConfig = CONFIG) -> FinetuneResult:
    return finetune(root / "m", root / "rows.jsonl", root / out, config, work=root / "work")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model, rows, the result of a straight run, and the work of one stopped after `STOPPED` steps."""
    root = tmp_path_factory.mktemp("stopped")
    write_tiny(root / "m")
    write_rows(root / "rows.jsonl", 12)
    result = run(root, "straight")
    assert result.steps > STOPPED + 1
    calls = 0

    class Ending(Supervised):
        def __call__(self, batch: Pack) -> Loss:
            nonlocal calls
            calls += 1
            if calls > STOPPED:
                raise Stopped
            return super().__call__(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "Supervised", Ending)
        with pytest.raises(Stopped):
            run(root)
    assert sorted(path.name for path in (root / "work").iterdir()) == ["step-000004", "step-000006"]
    assert not (root / "out").exists()
    return root


@pytest.fixture
def root(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "copy")


def is_straight(root: Path) -> None:
    for part in PARTS:
        assert (root / "out" / part).read_bytes() == (root / "straight" / part).read_bytes(), part
    assert not (root / "work").exists()


def edit_state(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / STATE
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """A tensor file of another version of the program: whole by its sha256, other inside."""
    path = folder / TENSORS
    tensors = load_file(path)
    change(tensors)
    path.unlink()  # `tensors` may be views of the old file
    save_file(tensors, path)

    def sign(state: dict[str, Any]) -> None:
        del state["digest"]
        state["files"][TENSORS.as_posix()] = digest_file(path)
        state["digest"] = digest_json(state)

    edit_state(folder, sign)


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def a_moment(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in sorted(tensors) if name.startswith("exp_avg/"))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "tensors cut in half": lambda folder: cut(folder / TENSORS, 0.5),
    "tensors empty": lambda folder: cut(folder / TENSORS, 0),
    "tensors with one bit turned": lambda folder: flip(folder / TENSORS),
    "tensors missing": lambda folder: (folder / TENSORS).unlink(),
    "state cut in half": lambda folder: cut(folder / STATE, 0.5),
    "state empty": lambda folder: cut(folder / STATE, 0),
    "state is a list": lambda folder: (folder / STATE).write_text("[1]"),
    "state is no text": lambda folder: (folder / STATE).write_bytes(b"\xff\xfe{}"),
    "state without sha256": lambda folder: edit_state(folder, lambda state: state.pop("files")),
    "adapter cut in half": lambda folder: cut(folder / "adapter_model.safetensors", 0.5),
    "adapter missing": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    "state without step": lambda folder: edit_state(folder, lambda state: state.pop("step")),
    "state without losses": lambda folder: edit_state(folder, lambda state: state.pop("losses")),
    "state with fewer losses": lambda folder: edit_state(folder, lambda state: state["losses"].pop()),
    "state with odd losses": lambda folder: edit_state(folder, lambda state: state.update(losses=[1] * 6)),
    "state of another step": lambda folder: edit_state(folder, lambda state: state.update(step=4)),
    "no such moment": lambda folder: edit_tensors(folder, lambda t: t.pop(a_moment(t))),
    "a moment of another shape": lambda folder: edit_tensors(
        folder, lambda t: t.update({a_moment(t): torch.zeros(3, 3)})
    ),
    "a moment in other numbers": lambda folder: edit_tensors(
        folder, lambda t: t.update({a_moment(t): t[a_moment(t)].half()})
    ),
    "a tensor too many": lambda folder: edit_tensors(folder, lambda t: t.update(more=torch.zeros(1))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_doing_what_the_sentence_says_helps(damage: str, root: Path) -> None:
    """Deleting the folder it names leaves the older checkpoint, from which the run ends with the same bytes."""
    newest = root / "work" / "step-000006"
    DAMAGES[damage](newest)
    with pytest.raises(IntegrityError) as caught:
        run(root)
    text = str(caught.value)
    assert "\n" not in text
    advised = re.search(r"delete (\S+) and run again$", text)
    assert advised, text
    assert Path(advised[1]) == newest
    assert not (root / "out").exists()
    shutil.rmtree(newest)
    assert run(root).resumed_from == 4
    is_straight(root)


def no_marker(work: Path) -> None:
    (work / "step-000006" / STATE).unlink()


def left_behind(work: Path) -> None:
    """What kill -9 leaves: a folder without its marker, temporary files, and folders of other ways of writing."""
    (work / "step-000008").mkdir()
    (work / "step-000008" / ".model.safetensors.x1.tmp").write_bytes(b"half")
    shutil.copytree(work / "step-000004", work / "step-000008.incomplete")
    (work / "step-000010.incomplete").mkdir()
    (work / "step-000010.incomplete" / "state.json").write_text("{")
    (work / "step-000006" / ".state.json.x2.tmp").write_text("{")
    (work / "step-000012").write_text("a file where a folder should be")
    (work / "notes.txt").write_text("not ours")


@pytest.mark.parametrize(("leave", "start"), [(no_marker, 4), (left_behind, 6)])
def test_what_was_never_finished_is_passed_over(leave: Callable[[Path], None], start: int, root: Path) -> None:
    leave(root / "work")
    assert run(root).resumed_from == start
    is_straight(root)


def test_without_any_whole_checkpoint_it_starts_again(root: Path) -> None:
    for folder in (root / "work").iterdir():
        (folder / STATE).unlink()
    assert run(root).resumed_from == 0
    is_straight(root)


def whole_tensors(folder: Path) -> bool:
    return all(
        bool(torch.isfinite(t).all()) for path in folder.rglob("*.safetensors") for t in load_file(path).values()
    )


def poison(root: Path, name: str, value: float) -> None:
    weights = tiny_weights(tiny_config())
    weights[name].view(-1)[0] = value
    write_weights(root / "m", tiny_config(), weights, torch.float32)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_poisoned_weight_stops_the_first_step_and_leaves_nothing(name: str, value: float, root: Path) -> None:
    shutil.rmtree(root / "work")
    poison(root, name, value)
    with pytest.raises(RiverrunError, match=r"^step 1: loss \S+ and gradient norm \S+ are not finite: lower") as caught:
        run(root)
    assert "\n" not in str(caught.value)
    assert not (root / "out").exists()
    assert not list((root / "work").glob("step-*"))


@pytest.mark.parametrize("rate", [1e25, 1e38, 1e300])
@pytest.mark.parametrize("save_every", [1, 100])
def test_a_huge_learning_rate_stops_and_saves_nothing_that_is_not_finite(
    rate: float, save_every: int, root: Path
) -> None:
    shutil.rmtree(root / "work")
    config = CONFIG.model_copy(update={"learning_rate": rate, "schedule": "constant", "save_every": save_every})
    with pytest.raises(RiverrunError, match=r"^step \d+: .* not finite: lower finetune.learning_rate$"):
        run(root, config=config)
    assert not (root / "out").exists()
    assert whole_tensors(root)


def test_a_last_step_that_breaks_the_adapter_saves_none(root: Path) -> None:
    """No later loss shows it: the parameters themselves are looked at."""
    shutil.rmtree(root / "work")
    write_rows(root / "rows.jsonl", 1)
    config = CONFIG.model_copy(update={"learning_rate": 1e39, "epochs": 1, "schedule": "constant", "warmup": 0.0})
    with pytest.raises(RiverrunError, match=r"^step 1: .* not finite: lower finetune.learning_rate$"):
        run(root, config=config)
    assert not (root / "out").exists()
