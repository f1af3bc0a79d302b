"""Recipes with stages: what they refuse, what they keep, and what measuring says of models whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from riverrun.base.errors import ConfigError
from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Request
from riverrun.chain import arithmetic, needles
from riverrun.chain.abilities import changed_model, is_ability, load_ability
from riverrun.chain.making import MakeArithmetic, Maker, MakeTexts, hay, make, needle_vocabulary
from riverrun.chain.texts import bits_per_byte, render, samples, write_texts
from riverrun.data.arithmetic import OPERATIONS, Problem
from riverrun.data.needles import NAMES
from riverrun.models.load import load_checkpoint
from tests.tiny_model import write_tiny

HAY = [f"Sentence number {number} speaks of something else entirely." for number in range(40)]


def problem_of(request: Request) -> Problem:
    question = request.messages[0].text.removesuffix("=")
    op = next(each for each in OPERATIONS if each in question)
    a, b = question.split(op)
    return Problem(op, int(a), int(b))


# ---- arithmetic -----------------------------------------------------------------------------------------------------


def scripted(request: Request) -> str:
    """Right in all but multiplication: wrong work of products above 100, right work and a wrong answer else."""
    problem = problem_of(request)
    if problem.op != "*":
        return problem.solution()
    return f"({problem.work})-1" if int(problem.answer) <= 100 else "(1)1"


def test_accuracy_and_faults_are_counted() -> None:
    asked = arithmetic.problems(40, (100,))
    answers = arithmetic.ask(FakeModel(scripted), asked)
    summary = arithmetic.summarize(answers)
    cells = {cell["key"]: cell for cell in summary["operations"]["100"]}
    assert {op: cells[op]["accuracy"] for op in "+-/"} == {"+": 1.0, "-": 1.0, "/": 1.0}
    assert cells["*"]["right"] == 0
    small = sum(int(problem.answer) <= 100 for problem, _ in asked if problem.op == "*")
    assert summary["faults"]["*"] == {"work": 40 - small, "answer": small, "end": 0}
    assert summary["within"][0]["n"] == 160
    assert summary["within"][0]["right"] == 120
    assert cells["+"]["low"] < 1.0 == cells["+"]["high"]
    for kind in ("digits", "carries"):
        assert sum(cell["n"] for op in OPERATIONS for cell in summary[kind][op]) == 160
    assert all(row["question"][-1] == "=" and row["given"] != row["right"] for row in summary["examples"])


def test_steps_that_never_end_are_a_fault_of_their_own() -> None:
    answer = arithmetic.Answer(Problem("+", 1, 2), 100, "(3333333")
    assert (answer.right, answer.fault) == (False, "end")
    assert arithmetic.Answer(Problem("+", 1, 2), 100, "3").fault == ""
    assert arithmetic.Answer(Problem("+", 1, 2), 100, "4").fault == "answer"


def test_the_page_shows_goals_and_every_way_of_writing_numbers(tmp_path: Path) -> None:
    asked = arithmetic.problems(12, (100, 1000))
    runs = {
        "digits": arithmetic.ask(FakeModel(lambda request: problem_of(request).solution()), asked),
        "chunks": arithmetic.ask(FakeModel(scripted), asked),
    }
    summaries = arithmetic.write_arithmetic(tmp_path, runs, {100: 0.99, 1000: 0.8})
    html = (tmp_path / "arithmetic.html").read_text(encoding="utf-8")
    assert html.count("badge good") == 2
    assert "badge bad" not in html
    assert "chunks" in html
    assert "除法" in html
    assert json.loads((tmp_path / "arithmetic.json").read_text(encoding="utf-8")).keys() == summaries.keys()
    assert "digits: no wrong answer." in html
    wrong = sum(not answer.right for answer in runs["chunks"])
    assert f"chunks: {wrong} wrong answers, {wrong} of them in multiplication" in html
    worse = arithmetic.render({"chunks": summaries["chunks"]}, {100: 0.99, 1000: 0.8})
    assert worse.count("badge bad") == 2


# ---- needles --------------------------------------------------------------------------------------------------------


def reader(reach: int) -> FakeModel:
    """Finds a fact in the last `reach` words of what it is asked."""

    def answer(request: Request) -> str:
        words = request.messages[0].text.split()
        name = words[-1]
        for word in reversed(words[max(0, len(words) - reach) : -1]):
            if word.startswith(name):
                return word.removeprefix(name)
        return "none"

    return FakeModel(answer)


def test_the_map_shows_how_far_a_model_sees(tmp_path: Path) -> None:
    def count(text: str) -> int:
        return len(text.split())

    seen = [
        needles.measure(reader(reach), HAY, count, lengths=(100, 400), each=3, depths=(0.0, 0.5, 1.0))
        for reach in (10_000, 120)
    ]
    assert seen[0].found == ((3, 3, 3), (3, 3, 3))
    assert seen[1].found == ((3, 3, 3), (0, 0, 3))
    assert seen[1].share(400) == pytest.approx(1 / 3)
    needles.write_maps(tmp_path, {"base": seen[1], "extended": seen[0]}, 0.95)
    html = (tmp_path / "needles.html").read_text(encoding="utf-8")
    assert all(text in html for text in ("base: found at 400", "100.0 %", "33.3 %"))
    stored = json.loads((tmp_path / "needles.json").read_text(encoding="utf-8"))
    assert stored["base"]["found"] == [[3, 3, 3], [0, 0, 3]]


# ---- texts ----------------------------------------------------------------------------------------------------------


def test_bits_per_byte_and_samples_are_read_from_the_log(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    lines = [
        {"event": "step", "step": 1, "loss": 2.0},
        {"event": "eval", "step": 5, "name": "en", "bits_per_byte": 3.0},
        {"event": "eval", "step": 5, "name": "zh", "bits_per_byte": None},
        {"event": "sample", "step": 5, "prompt": "The ", "text": "end"},
        {"event": "eval", "step": 9, "name": "en", "bits_per_byte": 1.5},
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert bits_per_byte(folder) == {"en": [(5, 3.0), (9, 1.5)]}
    assert samples(folder) == [(5, "The ", "end")]
    assert "bits per byte" in render({"model": folder})
    assert write_texts(tmp_path, {"model": folder}) == {"model": {"en": [3.0, 1.5]}}


def test_documents_are_held_out_whole_and_of_both_languages(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for number in range(8):
        (own / f"en{number}.txt").write_text(f"Document {number} of the English kind. " * 30, encoding="utf-8")
        (own / f"zh{number}.txt").write_text(f"这是第{number}篇中文文档。" * 30, encoding="utf-8")
    settings = MakeTexts(kind="texts", files=(own,), held_out=4, vocab_size=400, piece=200)
    make(settings, tmp_path / "made")
    rows = {
        name: [json.loads(line)["text"] for line in (tmp_path / "made" / f"{name}.jsonl").open(encoding="utf-8")]
        for name in ("train", "en", "zh")
    }
    assert all(len(text.encode()) <= 200 for texts in rows.values() for text in texts)
    assert sum(len(text.encode()) for texts in rows.values() for text in texts) == sum(
        path.stat().st_size for path in own.iterdir()
    )
    learned = "".join(rows["train"])
    for language, mark in (("en", "Document {} of"), ("zh", "第{}篇")):
        measured = "".join(rows[language])
        inside = [number for number in range(8) if mark.format(number) in measured]
        assert len(inside) == 2
        assert not any(mark.format(number) in learned for number in inside)


def test_what_was_made_by_the_same_settings_is_kept(tmp_path: Path) -> None:
    settings: Maker = MakeArithmetic(kind="arithmetic", rows=20)
    make(settings, tmp_path)
    before = (tmp_path / "train.jsonl").stat().st_mtime_ns
    make(settings, tmp_path)
    assert (tmp_path / "train.jsonl").stat().st_mtime_ns == before
    make(MakeArithmetic(kind="arithmetic", rows=21), tmp_path)
    assert len((tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()) == 21


def test_numbers_become_chunks_where_asked(tmp_path: Path) -> None:
    sizes = {}
    for digits, vocab in (("single", 259), ("three", 900)):
        make(
            MakeArithmetic(kind="arithmetic", rows=4000, work=False, digits=digits, vocab_size=vocab),  # type: ignore[arg-type]
            tmp_path / digits,
        )
        tokenizer = _tokenizer(tmp_path / digits)
        sizes[digits] = len(tokenizer.encode("437+912="))
    assert sizes == {"single": 8, "three": 4}


def test_every_name_is_one_token_of_the_needles_vocabulary() -> None:
    tokenizer = needle_vocabulary(hay()[0][:300], 768)
    for name in NAMES:
        assert [tokenizer.token(each) for each in tokenizer.encode(f" {name} is")] == [f"Ġ{name}", "Ġis"]


def test_what_is_measured_among_is_not_what_is_learned_among() -> None:
    learned, measured = hay()
    assert len(learned) > 5 * len(measured) > 500


def _tokenizer(folder: Path) -> Any:
    from riverrun.models.tokenizer import Tokenizer

    return Tokenizer.from_folder(folder)


# ---- recipes --------------------------------------------------------------------------------------------------------

RECIPE: dict[str, Any] = {
    "make": {"data": {"kind": "arithmetic", "rows": 50}},
    "stages": {
        "first": {"model": {"new": {"vocab": "made/data"}}, "data": {"train": "made/data/train.jsonl"}},
        "second": {
            "model": {"path": "stages/first", "change": {"rope_theta": 9000}},
            "data": {"train": "made/data/train.jsonl"},
            "method": "full",
        },
    },
    "measure": {"kind": "arithmetic"},
}


def written(folder: Path, recipe: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


def test_a_recipe_with_stages_is_told_from_one_training(tmp_path: Path) -> None:
    assert is_ability(written(tmp_path / "many", RECIPE))
    assert not is_ability(written(tmp_path / "one", RECIPE["stages"]["first"]))
    config = load_ability(tmp_path / "many")
    assert config.goal_stage == "second"
    assert load_ability(tmp_path / "many", ["of=first", "make.data.rows=7"]).goal_stage == "first"


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("stages.first.optimiser.name=muon", "stages.first: unknown key 'optimiser'. Did you mean 'optimizer'"),
        ("of=frist", "no stage is named 'frist'. Did you mean 'first'"),
        ("make.data.kind=arithmetics", "arithmetics"),
        ("stages.second.model.change=7", "model.change needs model.path"),
        ("make.data.within=[]", "at least 1 item"),
        ("stages.from.model=x", "cannot be named 'from'"),
        ("make.a/b.kind=texts", "use letters, digits and _"),
    ],
)
def test_what_a_recipe_gets_wrong_is_told(tmp_path: Path, override: str, error: str) -> None:
    with pytest.raises(ConfigError, match="(?s)" + error.replace("(", r"\(").replace("'", ".")):
        load_ability(written(tmp_path / "r", RECIPE), [override])


def test_a_changed_model_has_the_same_weights_and_another_config(tmp_path: Path) -> None:
    source = write_tiny(tmp_path)
    target = changed_model(source, tmp_path / "changed", {"rope_theta": 50_000.0, "max_position_embeddings": 4096})
    first, second = load_checkpoint(source), load_checkpoint(target)
    assert second.config == first.config.model_copy(update={"rope_theta": 50_000.0, "max_position_embeddings": 4096})
    assert (target / "model.safetensors").samefile(source / "model.safetensors")
    with pytest.raises(ConfigError, match=r"unknown key 'rope_teta'\. Did you mean"):
        changed_model(source, tmp_path / "x", {"rope_teta": 1})
    with pytest.raises(ConfigError, match="other shapes"):
        changed_model(source, tmp_path / "x", {"hidden_size": 128})
