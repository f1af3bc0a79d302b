"""Several adapters in one batch: each request gets what a model with that adapter alone would say."""

from __future__ import annotations

from pathlib import Path

import pytest

from riverrun.base.errors import InputError, RiverrunError
from riverrun.base.protocols import Request
from riverrun.base.types import Message, SamplingParams
from riverrun.serve.llm import LLM
from tests.tiny_model import write_adapter, write_tiny

SHORT = SamplingParams(max_tokens=10)
QUESTION = "How much is the book that I have been looking for?"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A model, and adapters of other ranks and targets."""
    root = tmp_path_factory.mktemp("adapters")
    folder = write_tiny(root / "model")
    more = ("k_proj", "v_proj", "o_proj", "up_proj")
    found = {
        "one": write_adapter(root / "one", folder),
        "two": write_adapter(root / "two", folder, rank=8, targets=more),
    }
    return folder, found


def test_a_batch_of_several_adapters_equals_each_alone(made: tuple[Path, dict[str, Path]]) -> None:
    folder, adapters = made
    alone = {}
    for name in ("", *adapters):
        with LLM(folder, adapter=adapters.get(name), dtype="float32") as model:
            alone[name] = model.chat(QUESTION, SHORT).raw
            score = model.score(QUESTION, [" yes", " no"])
            alone[f"score {name}"] = [round(each.total, 3) for each in score]  # type: ignore[assignment]
    assert len({alone[name] for name in ("", *adapters)}) == 3
    with LLM(folder, dtype="float32", slots=5, adapters=adapters) as model:
        names = ["one", "", "two", "one", ""]
        requests = [Request((Message.of("user", QUESTION),), params=SHORT, adapter=name) for name in names]
        for _ in range(2):  # cold and warm: blocks of one adapter are no use to another
            answers = model.generate(requests)
            assert [answer.raw for answer in answers] == [alone[name] for name in names]
        assert answers[0].usage.cached_tokens > 0
        for name in ("", *adapters):
            found = model.score(QUESTION, [" yes", " no"], adapter=name)
            assert [round(each.total, 3) for each in found] == pytest.approx(alone[f"score {name}"], abs=2e-3)
        assert model.adapters == ("one", "two")
        assert len(model.embed([QUESTION], adapter="one")[0]) == 64
        model.loop.run(model.loop.scheduler.check_integrity)


def test_adapters_come_and_go_while_requests_run(made: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    folder, adapters = made
    with LLM(folder, dtype="float32", slots=3) as model:
        plain = model.chat(QUESTION, SHORT).raw
        with pytest.raises(InputError, match=r"has no adapter 'one' \(loaded: none\)"):
            model.chat(QUESTION, SHORT, adapter="one")
        model.load_adapter("one", adapters["one"])
        first = model.chat(QUESTION, SHORT, adapter="one").raw
        with pytest.raises(InputError, match="loaded already"):
            model.load_adapter("one", adapters["two"])
        stream = model.stream(
            Request(
                (Message.of("user", QUESTION),), adapter="one", params=SamplingParams(max_tokens=400, ignore_end=True)
            )
        )
        next(stream)
        model.unload_adapter("one")
        with pytest.raises(RiverrunError, match="adapter 'one' was unloaded"):
            list(stream)
        model.load_adapter("one", adapters["two"])
        assert model.chat(QUESTION, SHORT, adapter="one").raw != first, "blocks of the old one are not found"
        with pytest.raises(InputError):
            model.load_adapter("broken", tmp_path)
        assert model.chat(QUESTION, SHORT).raw == plain
