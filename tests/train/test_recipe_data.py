"""Recipes on real sources: every format, shards, mixtures, what is set aside, and every bad input by name."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from riverrun.base.artifacts import digest_file
from riverrun.base.config import build_config
from riverrun.base.errors import InputError
from riverrun.cli.main import app
from riverrun.data import loading
from riverrun.data.sampler import RowSampler
from riverrun.data.shards import Shards
from riverrun.data.tokens import TokenRow, encode_text
from riverrun.train.recipe import TrainConfig, load_recipe
from riverrun.train.run import prepare, train_recipe
from riverrun.train.sampler import MixedPackSampler
from riverrun.train.validate import label_bytes
from tests.tiny_model import CHATML, write_rows, write_tiny, write_tokenizer

Rows = list[Any]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("data") / "m")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIVERRUN_HOME", str(tmp_path / "home"))


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def recipe(tiny: Path, train: Any, **changes: Any) -> TrainConfig:
    data: dict[str, Any] = {
        "model": str(tiny),
        "data": {"train": train, "max_tokens": 200},
        "batch": {"micro_tokens": 256, "global_tokens": 256},
        "run": {"length": "3 steps", "dtype": "float32"},
    }
    for key, value in changes.items():
        data[key] = data[key] | value if isinstance(value, dict) and isinstance(data.get(key), dict) else value
    return build_config(TrainConfig, data)


def talk(n: int, **more: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": f"How much is book {n}?"}, {"role": "assistant", "content": f"It costs {n}."}]
    return {"messages": said, **more}


def text(n: int) -> dict[str, str]:
    return {"text": f"River {n} runs to the sea. " * (n % 5 + 1)}


FORMATS: dict[str, Any] = {
    "alpaca": {"instruction": "How much is it?", "input": "The book.", "output": "It costs 3."},
    "sharegpt": {"conversations": [{"from": "human", "value": "How much?"}, {"from": "gpt", "value": "It costs 3."}]},
    "openai": talk(3),
    "xtuner": {"conversation": [{"system": "Be short.", "input": "How much?", "output": "It costs 3."}]},
    "prompt": {"prompt": "How much?", "completion": "It costs 3."},
    "text": {"text": "It costs 3."},
    "preference": {"prompt": "How much?", "chosen": "It costs 3.", "rejected": "No idea."},
    "kto": {"prompt": "How much?", "completion": "It costs 3.", "label": True},
}


def test_every_format_is_learned_from_in_one_run(tiny: Path, tmp_path: Path) -> None:
    named = [name for name in FORMATS if name not in ("preference", "kto")]
    sources = [str(write(tmp_path / f"{name}.jsonl", [FORMATS[name]] * 2)) for name in named]
    odd = write(tmp_path / "odd.jsonl", [{"q": "How much?", "a": "It costs 3."}])
    listed: list[Any] = [
        *sources,
        {"path": str(odd), "format": "alpaca", "columns": {"instruction": "q", "output": "a"}},
    ]
    config = recipe(tiny, listed)
    ready = prepare(config)
    assert ready.rows.train is not None
    said = {}
    for index in range(len(ready.rows.train)):
        row = ready.rows.train.row(index)
        learned = [i for i, flag in zip(row.ids, row.learned, strict=True) if flag]
        said[row.id.partition(".")[0]] = ready.opened.tokenizer.decode(learned, skip_special=False)
    assert said == dict.fromkeys((*named, "odd"), "It costs 3.<|im_end|>") | {
        "text": "<|im_start|>It costs 3.<|im_end|>"
    }, "what follows is learned, and the token that ends it; the first token of a text has nothing before it"
    assert train_recipe(config, tmp_path / "out").status == "done"


def test_pairs_and_judged_answers_come_by_weight(tiny: Path, tmp_path: Path) -> None:
    asked = [f"How much is book {n}, the one that you showed me?" for n in range(8)]
    pairs = write(
        tmp_path / "p.jsonl", [{"prompt": p, "chosen": f"{n}.", "rejected": "?"} for n, p in enumerate(asked)]
    )
    answers = [{"prompt": p, "completion": "3.", "label": bool(n % 2)} for n, p in enumerate(asked)]
    judged = write(tmp_path / "k.jsonl", answers)
    for name, path in (("dpo", pairs), ("kto", judged)):
        config = recipe(tiny, {"path": str(path), "weight": 0.5}, objective=name, run={"length": "4 epochs"})
        sampler = prepare(config).sampler
        seen = [pack for step in range(sampler.total_steps(2)) for pack in sampler.batch(step)]
        groups = [group for pack in seen for group in pack.groups]
        assert len(groups) == 8
        assert len({group.rows[0].id for group in groups}) == 8, "two epochs of half of them"
        assert all(group.prefix >= 16 for group in groups)
        every = [group.rows[0].id for pack in sampler.every_pack() for group in pack.groups]
        assert len(set(every)) == len(every) == 8
        assert train_recipe(config, tmp_path / name).status == "done"
        alone = prepare(config.model_copy(update={"data": config.data.model_copy(update={"share_prefix": False})}))
        assert all(group.prefix == 0 for group in alone.sampler.batch(0)[0].groups)


def test_beginnings_are_shared_where_it_pays(tiny: Path, tmp_path: Path) -> None:
    alike = str(write_rows(tmp_path / "alike.jsonl", 12))
    apart = str(write(tmp_path / "apart.jsonl", [text(n) for n in range(12)]))
    for path, kind, share in ((alike, MixedPackSampler, True), (apart, RowSampler, False)):
        ready = prepare(recipe(tiny, path))
        assert isinstance(ready.sampler, kind)
        assert ready.resolved.config.data.share_prefix is share
        assert any(note.startswith(f"data.share_prefix {str(share).lower()}: ") for note in ready.resolved.notes)


def test_large_sources_are_mapped_and_train_the_same(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = [
        {"path": str(write(tmp_path / "a.jsonl", [talk(n) for n in range(20)])), "weight": 1.5},
        {"path": str(write(tmp_path / "b.jsonl", [text(n) for n in range(20)]))},
    ]
    held = {"validation": str(write(tmp_path / "held.jsonl", [text(n) for n in range(60, 70)])), "share_prefix": False}
    config = recipe(tiny, train, data=held, run={"eval_every": "3 steps"})
    small = train_recipe(config, tmp_path / "small")
    monkeypatch.setattr(loading, "IN_MEMORY", 0)
    large = train_recipe(config, tmp_path / "large")
    assert large.losses == small.losses
    assert large.rows == small.rows
    cache = tmp_path / "home" / "shards"
    folders = [path for path in cache.iterdir() if path.is_dir()]
    assert len(folders) == 3
    times = [path.stat().st_mtime_ns for folder in folders for path in folder.iterdir()]
    assert not prepare(config).rows.in_memory
    assert [path.stat().st_mtime_ns for folder in folders for path in folder.iterdir()] == times, "built once"
    lines = [[json.loads(line) for line in (tmp_path / name / "train.jsonl").read_text().splitlines()]
             for name in ("small", "large")]  # fmt: skip
    measured = [[line for line in each if line["event"] == "eval"] for each in lines]
    assert [each[-1]["bytes"] for each in measured] == [sum(len(text(n)["text"]) for n in range(60, 70))] * 2
    assert measured[1][-1]["loss"] == pytest.approx(measured[0][-1]["loss"], rel=1e-6)
    assert prepare(recipe(tiny, train, data={"share_prefix": True})).sampler.stats(1).rows == 50, "read into memory"


def test_shards_are_a_source(tiny: Path, tmp_path: Path) -> None:
    rows = str(write(tmp_path / "a.jsonl", [talk(n) for n in range(20)]))
    built = ["train", "build", rows, "--model", str(tiny), "--max-tokens", "200", "--out"]
    assert CliRunner().invoke(app, [*built, str(tmp_path / "s")]).exit_code == 0
    straight = train_recipe(recipe(tiny, rows, data={"share_prefix": False}), tmp_path / "one")
    assert train_recipe(recipe(tiny, str(tmp_path / "s")), tmp_path / "two").losses == straight.losses
    write_tokenizer(other := write_tiny(tmp_path / "other"), 300)
    for changes, told in (
        ({"data": {"train_on": "all"}}, "was built with train_on assistant, all is asked for"),
        ({"data": {"max_tokens": 16}}, r"has a row of \d+ tokens, the limit is 16"),
        ({"objective": "dpo"}, "holds rows of format 'openai', objective dpo learns from pairs of answers"),
        ({"model": str(other)}, "was built with another tokenizer"),
    ):
        with pytest.raises(InputError, match=told):
            prepare(recipe(tiny, str(tmp_path / "s"), **changes))


def test_texts_end_and_their_bytes_are_counted_across_pieces(tiny: Path, tmp_path: Path) -> None:
    said = "River 河 and 江 run. " * 20
    path = str(write(tmp_path / "t.jsonl", [{"text": said}]))
    config = recipe(tiny, path, objective="pretrain", data={"max_tokens": 31, "share_prefix": False})
    ready = prepare(config)
    assert ready.rows.train is not None
    rows = [ready.rows.train.row(index) for index in range(len(ready.rows.train))]
    tokenizer = ready.opened.tokenizer
    whole = encode_text(said, tokenizer=tokenizer)
    pieces = [token for row in rows for token in row.ids[1:]]
    assert pieces == [*whole.ids[1:], tokenizer.eos_id]
    assert label_bytes(rows, tokenizer) == len(said.encode())
    assert any("\ufffd" in tokenizer.decode(list(row.ids)) for row in rows), "a character lies across two pieces"
    arrays = [TokenRow(row.id, np.array(row.ids), np.array(row.learned)) for row in rows]  # type: ignore[arg-type]
    assert label_bytes(arrays, tokenizer) == len(said.encode())
    off = prepare(recipe(tiny, path, objective="pretrain", data={"max_tokens": 31, "end_texts": False})).rows.train
    assert off is not None
    assert [t for index in range(len(off)) for t in off.row(index).ids[1:]] == list(whole.ids[1:])


def test_another_text_is_another_training(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", [talk(n) for n in range(20)])
    stopped = recipe(tiny, str(path), run={"time_limit": 1e-9})
    assert train_recipe(stopped, tmp_path / "out").status == "time limit"
    moved = tmp_path / "moved.jsonl"
    shutil.copy(path, moved)
    monkeypatch.setattr(loading, "IN_MEMORY", 0)
    assert train_recipe(recipe(tiny, str(moved), data={"share_prefix": False}), tmp_path / "out").resumed_from == 1, (
        "the same rows from another place, read another way"
    )
    shutil.rmtree(tmp_path / "out")
    train_recipe(stopped, tmp_path / "out")
    write(path, [talk(n) for n in range(21)])
    wanted = r"another training \(data\.train\.0 is [0-9a-f]{12} there and [0-9a-f]{12} here"
    with pytest.raises(InputError, match=wanted) as caught:
        train_recipe(stopped, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_what_is_set_aside_is_told_everywhere(tiny: Path, tmp_path: Path) -> None:
    rows = [*(talk(n) for n in range(8)), "{no", talk(9, images=["a.png"])]
    held = write(tmp_path / "held.jsonl", [text(1), {"text": ""}])
    data = {"bad_rows": 2, "validation": {"path": str(held), "name": "held"}}
    config = recipe(tiny, str(write(tmp_path / "a.jsonl", rows)), data=data, run={"eval_every": "2 steps"})
    result = train_recipe(config, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "bad_rows.jsonl").read_text().splitlines()]
    assert [(line["file"], line["line"], line["reason"]) for line in lines] == [
        ("a.jsonl", 9, "not_json"),
        ("a.jsonl", 10, "image"),
        ("held.jsonl", 2, "empty"),
    ]
    counted = {"records": 10, "kept": 8, "rows": 8, "left_out": 2, "bad": {"image": 1, "not_json": 1}}
    stored = json.loads((tmp_path / "out" / "result.json").read_text())["rows"]
    log = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert [line["event"] for line in log[:2]] == ["begin", "rows"]
    for found in (result.rows, stored, log[1]):
        assert {key: found[key] for key in counted} == counted
        assert found["validation"]["held"]["bad"] == {"empty": 1}
    assert train_recipe(config, tmp_path / "out").rows == result.rows, "read again from the result"
    assert any(note.startswith("2 of 10 records are left out: 1 x ") for note in prepare(config).resolved.notes)


def test_paths_are_relative_to_the_recipe_and_names_stay(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    named = ["hf:OWNER/NAME", "modelscope:OWNER/NAME", "a-name", "rows.jsonl", "folder/rows.jsonl"]
    file.write_text(yaml.safe_dump({"model": "m", "data": {"train": named}}))
    found = [source.path for source in load_recipe(file).data.train]
    assert found == [*named[:3], str(tmp_path / "rows.jsonl"), str(tmp_path / "folder/rows.jsonl")]


# ---- the command line ---------------------------------------------------------------------------------------------


def in_place(folder: Path, rows: Rows, **changes: Any) -> Path:
    """A recipe folder with a tiny model beside it."""
    write_tiny(folder / "m")
    write(folder / "rows.jsonl", rows)
    data: dict[str, Any] = {"model": "m", "data": {"train": "rows.jsonl", "max_tokens": 120}}
    data |= {"batch": {"global_tokens": 256}, "run": {"dtype": "float32", "length": "2 steps"}}
    for key, value in changes.items():
        data[key] = data.get(key, {}) | value if isinstance(value, dict) else value
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data))
    return folder


def run(*command: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["train", *command])
    return done.exit_code, done.output


def test_inspect_and_build_read_the_recipe(tmp_path: Path) -> None:
    home = in_place(tmp_path / "r", [talk(n) for n in range(12)], data={"train_on": "all"})
    code, shown = run("inspect", str(home), "--rows", "1")
    assert code == 0, shown
    assert "records 12 = kept 12 + too long 0 + set aside 0; rows 12" in shown
    assert "learned: <|im_start|>user" not in shown
    assert "im_start|>assistant" in shown.partition("learned: ")[2], "train_on of the recipe"
    assert "packs of at most 256 tokens" in shown, "batch of the recipe"
    code, told = run("inspect", str(home), "--train-on", "assistant", "--rows", "1", "--micro-tokens", "128")
    assert "learned: It costs 0.<|im_end|>" in told
    assert "packs of at most 128 tokens" in told
    assert run("inspect", str(home), "--format", "openai")[0] == 2
    code, told = run("build", str(home), "--out", str(tmp_path / "s"), "--progress", "quiet")
    assert code == 0, told
    shards = Shards(tmp_path / "s")
    assert shards.manifest["settings"]["train_on"] == "all"
    assert len(shards) == 12
    code, told = run("inspect", str(tmp_path / "s"), "--model", str(home / "m"))
    assert "rows 12, tokens" in told
    again = yaml.safe_load((home / "recipe.yaml").read_text())
    again["data"]["train"] = str(tmp_path / "s")
    (home / "recipe.yaml").write_text(yaml.safe_dump(again))
    code, told = run("run", str(home), "--out", str(tmp_path / "out"), "--progress", "quiet")
    assert code == 0, told
    write(home / "rows.jsonl", [{"question": "1 + 1?", "answer": 2}])
    again["data"] = {"train": "rows.jsonl"}
    (home / "recipe.yaml").write_text(yaml.safe_dump(again | {"objective": "grpo", "batch": {}}))
    code, told = run("inspect", str(home))
    assert (code, "objective grpo writes its own rows" in told) == (2, True)
    code, told = run("run", str(home), "--dry-run")
    assert code == 0, told
    assert "problems: 1, 8 at a time with 8 answers each" in told


LONG = {"messages": [{"role": "user", "content": "How much?"}, {"role": "assistant", "content": "x y " * 90}]}
MASKED = {"messages": [*talk(1)["messages"][:1], {"role": "assistant", "content": "It costs 1.", "weight": 0}]}
BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no assistant turn": ({"messages": talk(1)["messages"][:1]}, {}, r"1 x no_assistant \(no assistant turn"),
    "all masked": (MASKED, {}, r"1 x nothing_learned \(every token is masked"),
    "an image": (talk(1, images=["a.png"]), {}, r"1 x image \(an image in text data"),
    "an unknown role": ({"messages": [{"role": "oracle", "content": "a"}]}, {}, r"1 x unknown_role \(a message's role"),
    "too long": (LONG, {"data": {"overlong": "refuse"}}, r"1 rows are too long .* the limit is 120 tokens"),
    "longer than the context": (
        LONG,
        {"data": {"overlong": "refuse", "max_tokens": 999}, "batch": {"global_tokens": 999}},
        r"1 rows are too long .* the limit is 128 tokens",
    ),
    "no end token": (None, {}, r"ends what an assistant says with '<\|endoftext\|>', which is no end token"),
    "another model": (None, {}, r"was built with another tokenizer \([0-9a-f]{12}\) than the model's"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("command", ["run", "build", "inspect"])
def test_bad_input_is_one_clear_sentence(name: str, command: str, tmp_path: Path) -> None:
    """A run and a build are refused, nothing is lost; inspect shows what would be set aside."""
    bad, changes, wanted = BAD[name]
    home = in_place(tmp_path / "r", [*(talk(n) for n in range(6)), *([bad] if bad else [])], **changes)
    if name == "longer than the context":
        write_tiny(home / "m", max_position_embeddings=128)
    elif name == "no end token":
        (home / "m" / "chat_template.jinja").write_text(CHATML.replace("<|im_end|>", "<|endoftext|>"))
    elif name == "another model":
        assert run("build", str(home / "rows.jsonl"), "--model", str(home / "m"), "--max-tokens", "120", "--out",
                   str(tmp_path / "s"), "--progress", "quiet")[0] == 0  # fmt: skip
        write_tokenizer(home / "m", 300)
        shutil.move(tmp_path / "s", home / "s")
        (home / "recipe.yaml").write_text((home / "recipe.yaml").read_text().replace("rows.jsonl", "s"))
    before = digest_file(home / "rows.jsonl")
    places = {"run": ["--out", str(tmp_path / "out")], "build": ["--out", str(tmp_path / "out")], "inspect": []}
    code, told = run(command, str(home), *places[command], *([] if command == "inspect" else ["--progress", "quiet"]))
    assert digest_file(home / "rows.jsonl") == before
    if command == "inspect" and bad is not None:
        assert code == 0, told
        assert "records 7 = kept 6" in told
        assert "rows.jsonl, line 7: " in told
        return
    assert code == 2, told
    flat = " ".join(told.split())
    assert "Traceback" not in told
    if (name, command) == ("another model", "build"):
        wanted = "holds shards: they are trained on as they are"
    assert re.search(wanted, flat), flat
    if (name, command) == ("longer than the context", "run"):
        assert "(the model's context): raise it, or say another data.overlong" in flat
    if bad is not None:
        (line,) = (tmp_path / "out" / "bad_rows.jsonl").read_text().splitlines()
        assert json.loads(line)["line"] == 7
    assert not (tmp_path / "out" / "result.json").exists()
