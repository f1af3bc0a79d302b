"""A finished run opened again: the application, the targets of the command line, the dry run, the system text."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from riverrun.base.artifacts import digest_tree
from riverrun.base.errors import InputError
from riverrun.base.protocols import Request
from riverrun.base.types import Message, ToolCall
from riverrun.chain.application import open_application
from riverrun.chain.assistant import system_text
from riverrun.chain.preview import preview
from riverrun.chain.report import build_report
from riverrun.chain.run import open_context
from riverrun.chain.stage import STAGES, read_json
from riverrun.cli.target import open_target
from tests.chain.doubles import PARTS

PRICE = Request(messages=(Message.of("user", "How much is Salt Road 3?"),))


def test_a_run_folder_is_an_application(finished: Path) -> None:
    with open_application(finished, parts=PARTS) as application:
        assert list(application.models) == ["tiny-shop", "tiny-shop-agent"]
        (answer,) = application.agent.generate([PRICE])
        assert answer.message.text == "I found: price: 26.5"
        assert answer.steps[0]["data"]["rows"] == [[26.5]]
        model = application.models["tiny-shop"]
    assert model.closed  # type: ignore[attr-defined]


def test_a_run_folder_may_move_without_its_recipe(finished: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(finished, moved)
    with open_target(str(moved), parts=PARTS) as target:
        assert target.default == "tiny-shop-agent"
        assert target.pick("").info.name == "tiny-shop-agent"
        assert target.pick("tiny-shop").info.name == "tiny-shop"
        with pytest.raises(InputError, match=r"no such model here\. Did you mean 'tiny-shop'"):
            target.pick("tinyshop")


def test_the_live_database_takes_the_place_of_the_copy(finished: Path, tmp_path: Path) -> None:
    live = tmp_path / "live.sqlite"
    shutil.copyfile(finished / "data" / "shop.sqlite", live)
    connection = sqlite3.connect(live)
    connection.execute("UPDATE books SET price = 99.0 WHERE title = 'Salt Road 3'")
    connection.commit()
    connection.close()
    with open_application(finished, database=live, parts=PARTS) as application:
        (answer,) = application.agent.generate([PRICE])
    assert answer.message.text == "I found: price: 99"
    with (
        pytest.raises(InputError, match="is not an SQLite database"),
        open_application(finished, database=finished / "run.json", parts=PARTS),
    ):
        pass


def test_private_columns_stay_private(finished: Path) -> None:
    with open_application(finished, parts=PARTS) as application:
        assistant = application.assistant
    assert "email" not in assistant.system
    assert "customers(id, name)" in assistant.system
    refused = assistant.execute(ToolCall("query_database", {"sql": "SELECT email FROM customers"}))
    assert refused.is_error
    assert "@" not in refused.content
    unknown = assistant.execute(ToolCall("query_databse", {"sql": "SELECT 1"}))
    assert unknown.is_error
    assert "Did you mean 'query_database'" in unknown.content


def test_an_unfinished_run_is_no_application(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match="holds no deployed application"), open_target(str(tmp_path), parts=PARTS):
        pass


def test_a_model_path_is_served_under_its_name(recipe: Path) -> None:
    with open_target(str(recipe / "model"), parts=PARTS) as target:
        assert list(target.models) == ["model"]
    with (
        pytest.raises(InputError, match="--database needs a run folder"),
        open_target(str(recipe / "model"), database=recipe / "x", parts=PARTS),
    ):
        pass


def test_the_schema_stands_where_the_words_want_it() -> None:
    schema = "books(id, title)\norders(id)"
    line = "Tables: books(id, title); orders(id)"
    assert system_text("Help. {schema} Be brief.", schema) == f"Help. {line} Be brief."
    assert system_text("Help.", schema) == f"Help.\n{line}"
    assert system_text("Help. Tables: only books(title)", schema) == "Help. Tables: only books(title)"


def test_a_dry_run_shows_every_stage_and_writes_nothing(recipe: Path, tmp_path: Path) -> None:
    before, out = digest_tree(recipe), tmp_path / "out"
    text = preview(open_context(recipe, [], out=out, parts=PARTS))
    assert all(stage in text for stage in STAGES)
    assert "* lora" in text
    assert not out.exists()
    assert digest_tree(recipe) == before


def test_a_dry_run_knows_what_is_done_and_what_does_not_fit(finished: Path, recipe: Path) -> None:
    assert preview(open_context(recipe, [], out=finished, parts=PARTS)).count("(done before)") == len(STAGES)
    with pytest.raises(InputError, match=r"0\.20 GB are available: free memory or choose a smaller model"):
        preview(open_context(recipe, ["memory_gb=0.2"], out=finished, parts=PARTS))


def test_a_question_cannot_break_out_of_the_reports_commands(copied: Path) -> None:
    answers = copied / "agent" / "answers.jsonl"
    row = '{"question": "What\'s \\"it\\"; rm -rf </pre><script>x</script>", "success": true, "kind": "chat", '
    answers.write_text(row + '"answer": "<b>no</b>", "steps": []}\n')
    html = build_report(copied)
    assert "<script>x" not in html
    assert "<b>no" not in html
    assert "What&#39;\\&#39;&#39;s" in html


def test_a_report_of_half_a_run_can_be_made(copied: Path) -> None:
    for stage in ("evaluate", "quantize", "deploy", "agent", "report"):
        shutil.rmtree(copied / stage)
    summary = read_json(copied / "summary.json")
    for key in ("scores", "retention", "safety", "quantize", "drop", "agent"):
        summary.pop(key, None)
    (copied / "summary.json").write_text(json.dumps(summary))
    assert "Loss on assistant tokens" in build_report(copied)
