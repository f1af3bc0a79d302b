"""Progress: fields as people read them, strict JSON for programs, a bar that fits its terminal."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from riverrun.base import progress as module
from riverrun.base.progress import Progress, shown

FIELDS: dict[str, Any] = {
    "loss": 1.23456,
    "tokens_per_second": 1234.5,
    "label_tokens_per_second": 456.7,
    "peak_bytes": 1_300_000_000,
    "padded_share": 0.0312,
    "mfu": 0.512,
    "dropped": 3,
    "source": "a file",
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_fields_are_shown_in_the_units_of_their_names() -> None:
    assert shown(FIELDS) == [
        *("loss 1.235", "1,234 tokens/s", "457 label tokens/s", "peak 1.30 GB", "padded 3.1 %", "MFU 51.2 %"),
        *("dropped 3", "source a file"),
    ]
    assert shown({"loss": float("nan"), "tokens_per_second": float("inf")}) == ["loss nan", "inf tokens/s"]


def test_lines_say_what_is_left_at_the_speed_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with Progress("auto", stream=out).task("train", total=1000, unit="steps", first=400) as task:
        assert task.seconds_left is None
        now[0] += 60.0
        task.advance(100, loss=2.0)
        assert task.seconds_left == 300.0
    first, last = out.getvalue().splitlines()
    assert first == last == "  train: 500/1,000 steps  loss 2  1:00, 5:00 left"


def test_json_events_are_strict_json_with_the_fields_of_the_log() -> None:
    out = io.StringIO()
    news = Progress("json", stream=out, every_seconds=0)
    with news.task("train", total=2, unit="steps", first=1) as task:
        task.advance(loss=float("nan"), peak_bytes=5)
        news.say("说明", best=float("inf"))

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    events = [json.loads(line, parse_constant=refuse) for line in out.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["progress", "message", "done"]
    assert events[0]["done"] == 2
    assert (events[0]["loss"], events[0]["peak_bytes"], events[1]["best"]) == (None, 5, None)
    assert events[1]["text"] == "说明"


@pytest.mark.parametrize("width", [50, 80, 120, 200])
def test_a_bar_stays_on_one_line_and_news_go_above_it(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out = Terminal()
    news = Progress("auto", stream=out)
    assert news.mode == "bar"
    with news.task("train", total=1000, unit="steps") as task:
        task.advance(3, **FIELDS)
        news.say("[bold]news[/bold]")
        with news.task("inner", total=2) as inner:
            inner.advance()
            assert news._live is not None
            assert len(news._live.tasks) == 2
        row = news._live.tasks[0]
        kept = str(row.fields["extra"])
        assert row.completed == 3
        assert kept == "  ".join(shown(FIELDS))[: len(kept)]
        assert len(f"train {'-' * 10} {row.fields['count']} {kept} {row.fields['times']}") <= width
    assert "[bold]news[/bold]" in out.getvalue()
    assert "loss 1.235" in out.getvalue().splitlines()[-1]
    assert ("1,234 tokens/s" in kept) == (width >= 80)
    with news.task("again") as task:
        task.advance(2)
    assert "again: 2 items" in out.getvalue()


def test_quiet_says_nothing_and_track_counts() -> None:
    out = io.StringIO()
    assert list(Progress("quiet", stream=out).track([1, 2], "x")) == [1, 2]
    assert out.getvalue() == ""
    assert list(Progress("lines", stream=out).track([1, 2], "x")) == [1, 2]
    assert out.getvalue().startswith("  x: 2/2 items")
