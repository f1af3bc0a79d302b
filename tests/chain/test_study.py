"""Studies on a tiny model: every cell, the page, the table for the planner; what is finished is not done again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from riverrun.base.errors import ConfigError, InputError, RiverrunError
from riverrun.base.fakes import FakeModel
from riverrun.base.progress import Progress
from riverrun.base.protocols import Request
from riverrun.base.types import Message
from riverrun.chain.stage import read_json, read_jsonl
from riverrun.chain.study.pretraining import says_value
from riverrun.chain.study.pretraining_page import bars_of
from riverrun.chain.study.runner import CELL_FILE, finished, plan_text, run_cell, run_study
from riverrun.chain.study.sqltask import Example, Nearest, Writer, chat_rows
from riverrun.chain.study.study import Outcome, load_study
from riverrun.chain.study.tuning_findings import Group, table_of, thresholds_of
from riverrun.cli.study import run_command
from riverrun.data.replay import WIDER, replay_texts
from riverrun.evaluate.retention import cpython_topics, held_out
from riverrun.models.load import quantization_of
from tests.tiny_model import write_tiny

RECIPES = Path(__file__).parents[2] / "recipes"
QUIET = Progress("quiet")
SMALL = ["measure={characters: 1000, sums: 2, instructions: 2, answer_tokens: 4}"]
TUNING = [
    *(
        "train_per_intent=1",
        "dev_per_intent=1",
        "answer_tokens=6",
        "methods=[prompt, retrieval, lora, qlora, full]",
        "seeds=[0, 1]",
        "shots=1",
    ),
    *("ranks=[1, 2]", "rank=2", "fewer={10: 2}", "batch={micro_tokens: 2048, global_tokens: 4096}", *SMALL),
]
PRETRAINING = [
    *(
        "world={scale: 0.1, articles: 2, passes: 1}",
        "replay={texts: 2, characters: 300, chats: 2}",
        "questions=4",
        "items=12",
    ),
    *("pretrain.batch.global_tokens=8192", "tune.batch.global_tokens=8192", "tune.run.length=1 epochs", *SMALL),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model"), max_position_embeddings=4096)


@pytest.fixture(scope="module")
def tuned(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuning")
    run_study(RECIPES / "tuning_study", [f"model={model}", *TUNING], out, progress=QUIET, isolate=False)
    return out


@pytest.fixture(scope="module")
def pretrained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretraining")
    overrides = [f"model={model}", *PRETRAINING]
    run_study(RECIPES / "continued_pretraining", overrides, out, progress=QUIET, isolate=False)
    return out


def test_every_point_of_the_grid_is_measured(tuned: Path) -> None:
    names = {folder.name for folder in (tuned / "cells").iterdir()}
    each = ["prompt", "lora-r1", "lora-r2", "qlora-r2", "full", "retrieval-10", "lora-r2-10", "full-10"]
    assert names == {"data", "base", "retrieval-s0", *(f"{name}-s{seed}" for name in each for seed in (0, 1))}
    record = read_json(tuned / "study.json")
    assert len(record["cells"]) == len(names)
    for cell in record["cells"]:
        if cell["name"] in ("data", "base"):
            continue
        assert cell["result"]["success"]["n"] == 34
        trained = cell["settings"]["method"] in ("lora", "qlora", "full")
        assert ("training" in cell["result"]) is trained
        if trained:
            assert cell["result"]["training"]["steps"] >= 1
            assert cell["result"]["against_base"]["perplexity"]["ratio"] != 1.0
    groups = {(g["method"], g["rank"], g["rows"]): g for g in record["findings"]["groups"]}
    assert groups["lora", 2, 34]["success"]["n"] == 68
    assert not list(tuned.glob("cells/full*/train/model")), "weights that are measured are not kept"
    assert (tuned / "cells/lora-r2-s0/train/adapter/adapter_model.safetensors").is_file()
    assert quantization_of(tuned / "nf4"), "QLoRA is measured on the base that it was trained on"


def test_a_smaller_number_of_rows_is_drawn_by_the_seed(tuned: Path) -> None:
    rows = [read_jsonl(tuned / f"cells/{name}/rows.jsonl") for name in ("lora-r2-10-s0", "full-10-s0", "lora-r2-10-s1")]
    assert rows[0] == rows[1] != rows[2]
    assert [len(each) for each in rows] == [10, 10, 10]
    assert len(read_jsonl(tuned / "cells/lora-r1-s0/rows.jsonl")) == 34
    talk = rows[0][0]["messages"]
    assert [turn["role"] for turn in talk] == ["system", "user", "assistant"]
    assert "Tables: " in talk[0]["content"]
    assert "email" not in talk[0]["content"]


def test_the_page_and_the_table_are_written(tuned: Path) -> None:
    page = (tuned / "index.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("lora r=1", "retrieval", "full", "<svg", "适配模型的方法"))
    table = yaml.safe_load((tuned / "tuning.yaml").read_text(encoding="utf-8"))
    assert {"lora-r1", "lora-r2", "qlora-r2", "full"} == set(table["measured"])
    assert all("34 rows, 34 questions, 2 seeds" in each["source"] for each in table["measured"].values())
    assert table["thresholds"]["enough_rank"]["value"] == 1, "two ranks that both know nothing: the smaller is enough"


def test_a_finished_study_is_not_run_again(model: Path, tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    shutil.copytree(tuned, out)
    (out / "cells/lora-r1-s1" / CELL_FILE).unlink()
    before = {file: file.stat().st_mtime_ns for file in out.glob(f"cells/*/{CELL_FILE}")}
    kept = (out / "cells/lora-r1-s1/train/adapter/adapter_model.safetensors").stat().st_mtime_ns
    overrides = [f"model={model}", *TUNING]
    study = load_study(RECIPES / "tuning_study", overrides)
    text = plan_text(study, out)
    assert text.endswith("s") or text.endswith("min")
    assert "1 of 19 cells to do" in text
    findings = run_study(RECIPES / "tuning_study", overrides, out, progress=QUIET, isolate=False)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert (out / "cells/lora-r1-s1/train/adapter/adapter_model.safetensors").stat().st_mtime_ns == kept
    assert json.loads(json.dumps(findings["thresholds"])) == read_json(tuned / "study.json")["findings"]["thresholds"]
    with pytest.raises(InputError, match="other settings"):
        run_study(RECIPES / "tuning_study", [*overrides, "invented=0.5"], out, progress=QUIET, isolate=False)


def test_a_cell_runs_in_a_process_of_its_own(model: Path, tuned: Path, tmp_path: Path) -> None:
    for name in ("data", "base"):
        shutil.copytree(tuned / "cells" / name, tmp_path / "cells" / name)
    overrides = [f"model={model}", *TUNING, "methods=[prompt]", "seeds=[0]"]
    run_study(RECIPES / "tuning_study", overrides, tmp_path, progress=QUIET)
    study = load_study(RECIPES / "tuning_study", overrides)
    done = [finished(study, cell, tmp_path) for cell in study.cells()]
    assert [each.name for each in done if each] == ["data", "base", "prompt-s0"]
    assert all(each.peak_bytes > 10**7 for each in done if each)
    shutil.rmtree(tmp_path / "cells/prompt-s0")
    (tmp_path / "cells/data/system.txt").unlink()
    with pytest.raises(RiverrunError, match=r"system\.txt"):
        run_study(RECIPES / "tuning_study", overrides, tmp_path, progress=QUIET)


def test_continued_pretraining_measures_four_models(pretrained: Path) -> None:
    record = read_json(pretrained / "study.json")
    scores = record["findings"]["scores"]
    assert set(scores) == {"base", "pretrained", "tuned", "control"}
    assert all(each["cloze"]["n"] == 12 and each["answers"]["n"] == 4 for each in scores.values())
    assert scores["base"]["open_book"]["n"] == 12
    assert scores["pretrained"]["domain_bits_per_byte"] != scores["base"]["domain_bits_per_byte"]
    assert [each["name"] for each in record["findings"]["bars"]] == [
        "cloze",
        "domain",
        "general",
        "answers",
        "instructions",
    ]
    assert record["findings"]["met"] is False, "two steps teach nothing"
    page = (pretrained / "index.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "虚构知识" in page
    assert "it can hardly do the form" in page, "random weights do not read what stands before the sentence"


def test_continued_pretraining_learns_text_and_tunes_on_half_the_country(pretrained: Path) -> None:
    data = pretrained / "cells/data"
    rows = read_jsonl(data / "tune.jsonl")
    trained, tuned = {json.dumps(row["messages"]) for row in rows}, {row["id"] for row in rows}
    for row in read_jsonl(data / "unseen.jsonl"):
        assert not any(row["question"] in talk for talk in trained)
        thing = row["id"].rpartition("-")[0]
        assert not any(name.startswith(f"{thing}-") for name in tuned), (
            "nothing is tuned on a thing that is asked about"
        )
    resolved = yaml.safe_load((pretrained / "cells/pretrained/train/resolved.yaml").read_text(encoding="utf-8"))
    assert resolved["objective"]["name"] == "pretrain"
    sources = {Path(each["path"]).name: each["weight"] for each in resolved["data"]["train"]}
    assert sources["text.jsonl"] == 1.0
    assert sources["replay.jsonl"] == 1.0
    control = yaml.safe_load((pretrained / "cells/control/train/resolved.yaml").read_text(encoding="utf-8"))
    assert (control["objective"]["name"], control["method"]["name"]) == ("sft", "lora")


def test_replay_is_text_that_every_python_has_and_general_text_is_not_among_it() -> None:
    texts = replay_texts(10_000, characters=1200, seed=0, modules=WIDER)
    few = replay_texts(10_000, characters=1200, seed=0)
    assert len(texts) > 2 * len(few) > 200
    assert set(few) <= set(texts)
    assert replay_texts(5, characters=1200, seed=0, modules=("json", "no_such_module"))
    topics = "\n".join(text for _, text in held_out(cpython_topics(), characters=60_000))
    assert not any(text in topics for _, text in texts)


def test_bars_are_compared_the_right_way_round() -> None:
    bars = load_study(RECIPES / "continued_pretraining").config.bars  # type: ignore[attr-defined]

    def scores(cloze: float, domain: float, general: float, answers: float, kept: float) -> dict[str, Any]:
        one = {
            "cloze": {"value": cloze},
            "domain_bits_per_byte": domain,
            "bits_per_byte": general,
            "answers": {"value": answers},
            "against_base": {"instructions": {"difference": kept}},
        }
        base = one | {"cloze": {"value": 0.25}, "domain_bits_per_byte": 2.0, "bits_per_byte": 1.0}
        return {"base": base, "pretrained": one, "tuned": one}

    assert all(each.met for each in bars_of(bars, scores(0.76, 1.69, 1.04, 0.51, -0.09)))
    assert not any(each.met for each in bars_of(bars, scores(0.74, 1.71, 1.06, 0.49, -0.11)))


@pytest.mark.parametrize(
    ("answer", "said"),
    [("It lies on the Osk.", True), ("osk", True), ("The Oskar.", False), ("Lake Osk", True), ("", False)],
)
def test_a_value_is_said_as_whole_words(answer: str, said: bool) -> None:
    assert says_value(answer, "Osk") is said


EXAMPLES = [
    Example(str(n), text, f"SELECT {n}") for n, text in enumerate(["price of salt", "author of rust", "stock of salt"])
]


def test_the_nearest_examples_come_last_and_ties_keep_their_order() -> None:
    nearest = Nearest(EXAMPLES, 2)
    assert [each.id for each in nearest("what is the stock of salt")] == ["0", "2"]
    assert [each.id for each in nearest("author?")][-1] == "1"
    assert len(Nearest(EXAMPLES, 8)("unknown words")) == 3


def test_what_a_model_writes_becomes_a_call_after_the_turns_it_was_trained_on() -> None:
    model = FakeModel(["SELECT 1;", "```sql\nSELECT 2\n```", ""])
    writer = Writer(model, lambda question: EXAMPLES[:1])
    request = Request((Message.of("system", "rules"), Message.of("user", "q")))
    answers = writer.generate([request] * 3)
    calls = [[dict(call.arguments) for call in answer.message.tool_calls] for answer in answers]
    assert calls == [[{"sql": "SELECT 1"}], [{"sql": "SELECT 2"}], []]
    sent = [(turn.role, turn.text) for turn in model.requests[0].messages]
    row = chat_rows("rules", EXAMPLES[:1])[0]["messages"]
    assert sent == [(turn["role"], turn["content"]) for turn in row] + [("user", "q")]


def group(method: str, rank: int, rows: int, right: int, *, fewer: bool = False, seeds: int = 2) -> Group:
    answers = tuple(tuple(place < right for place in range(100)) for _ in range(seeds))
    seed = Outcome("x", {}, 1.0, 10**9, {"training": {"peak_bytes": 2e9, "seconds": 5.0, "tokens_per_second": 100.0}})
    return Group(method, rank, rows, fewer, (seed,) * seeds, answers)


def test_thresholds_follow_from_proven_differences() -> None:
    groups = [
        group("prompt", 0, 500, 20),
        *(group("retrieval", 0, rows, right, fewer=rows < 500) for rows, right in ((10, 30), (100, 50), (500, 55))),
        *(group("lora", 4, rows, right, fewer=rows < 500) for rows, right in ((10, 10), (100, 51), (500, 80))),
        group("lora", 1, 500, 60),
        group("lora", 16, 500, 81),
        *(group("full", 0, rows, right, fewer=rows < 500) for rows, right in ((10, 12), (100, 45), (500, 95))),
        group("qlora", 4, 500, 70),
    ]
    found = thresholds_of(groups, rank=4)
    assert {name: each["value"] for name, each in found.items()} == {
        "enough_rank": 4,
        "tuning_from_rows": 500,
        "full_from_rows": 500,
        "qlora_loss": 0.1,
    }
    assert "retrieval 0.550" in found["tuning_from_rows"]["why"]
    table = table_of(groups, found, "a study of 500 rows")
    assert table["measured"]["lora-r16"]["success"] == 0.81
    assert table["thresholds"]["enough_rank"]["source"].startswith("a study of 500 rows; no higher rank")


def test_a_threshold_that_nothing_shows_is_left_out() -> None:
    alike = [group("retrieval", 0, 100, 50), group("lora", 4, 100, 50), group("full", 0, 100, 50)]
    assert thresholds_of(alike, rank=4) == {}, "one rank alone shows nothing"
    with pytest.raises(InputError, match="has 2 seeds, it is compared with 3"):
        group("lora", 1, 10, 5).over(group("lora", 2, 10, 5, seeds=3))
    assert group("retrieval", 0, 10, 5, seeds=1).over(group("lora", 2, 10, 5, seeds=3)).n == 300


def test_wrong_recipes_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("study: tunning\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"'tunning' is no kind of study.*Did you mean 'tuning'"):
        load_study(file)
    file.write_text("model: x\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="key 'study' is required"):
        load_study(file)
    with pytest.raises(ConfigError, match="unknown key 'rank_'"):
        load_study(RECIPES / "tuning_study", ["rank_=3"])
    with pytest.raises(ConfigError, match="fewer rows are tried with"):
        load_study(RECIPES / "tuning_study", ["fewer_methods=[qlora]"])


@pytest.mark.parametrize("name", ["tuning_study", "continued_pretraining"])
def test_the_recipes_are_short_and_listed(name: str) -> None:
    assert len((RECIPES / name / "recipe.yaml").read_text(encoding="utf-8").splitlines()) <= 40
    assert f"[{name}]({name}/)" in (RECIPES / "README.md").read_text(encoding="utf-8")


def test_the_dry_run_lists_the_cells(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [f"model={model}", "seeds=[0]"]
    run_command(RECIPES / "tuning_study", overrides, out=tmp_path / "none", dry_run=True, progress="quiet")
    said = capsys.readouterr().out
    assert "lora-r64-s0: about" in said
    assert "19 of 19 cells to do" in said
    assert not (tmp_path / "none").exists()
    with pytest.raises(InputError, match="no such form"):
        run_command(RECIPES / "tuning_study", [], out=None, dry_run=True, progress="loud")


def test_a_broken_database_script_is_told(model: Path, tmp_path: Path) -> None:
    script = tmp_path / "make.py"
    script.write_text("raise SystemExit('no rows today')\n", encoding="utf-8")
    study = load_study(RECIPES / "tuning_study", [f"model={model}", f"make={script}", *TUNING])
    with pytest.raises(InputError, match="no rows today"):
        run_cell(study, study.cells()[0], tmp_path / "out", QUIET)
