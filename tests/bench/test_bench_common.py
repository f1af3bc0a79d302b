"""What all benches share: rows and their verdicts, the table, the JSON, options, measured processes, peers' folders."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench import common
from bench.common import ROOT, Row, child, interleave, peer_python, read_options, table, write_report
from riverrun.base.errors import InputError, RiverrunError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for what a bench makes."""
    monkeypatch.setenv("RIVERRUN_BENCH", str(tmp_path / "bench"))
    return tmp_path / "bench"


@pytest.mark.parametrize(
    ("sense", "value", "passed"),
    [
        ("at most", 2.0, True),
        ("at most", 2.1, False),
        ("at least", 2.0, True),
        ("at least", 1.9, False),
        ("below", 2.0, False),
        ("above", 2.0, False),
        ("above", 2.1, True),
        ("within", -2.0, True),
        ("within", -2.1, False),
        ("at least", None, None),
    ],
)
def test_verdict(sense: Any, value: float | None, passed: bool | None) -> None:
    assert Row("x", value, limit=2.0, sense=sense).passed is passed


def test_verdict_asks_for_more_than_the_figure() -> None:
    assert Row("x", 1.0, limit=2.0, holds=False).passed is False
    assert Row("x", 1.0, limit=2.0, holds=None).passed is None
    assert Row("x", 1.0).passed is None


def test_table_and_json_agree(tmp_path: Path) -> None:
    rows = [
        Row("speed", 1234.5, "tokens/s", 900, "at least", {"other": 450.25}, "a note"),
        Row("memory", 3.5, "GB", 2, runs={"ours": [3.4, 3.5]}),
        Row("nothing", None),
    ]
    lines = table(rows).splitlines()
    assert lines[1].split("  ")[0] == "speed"
    assert all(word in lines[1] for word in ("1234 tokens/s", "at least 900", "pass", "other 450.2"))
    assert lines[2].strip() == "a note"
    assert "MISS" in lines[3]
    write_report(tmp_path / "out.json", {"cores": 2}, rows, more=1)
    stored = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert stored["machine"] == {"cores": 2}
    assert stored["more"] == 1
    assert [row["name"] for row in stored["rows"]] == ["speed", "memory", "nothing"]
    assert {"name", "value", "unit", "peers", "limit"} <= set(stored["rows"][0])
    assert stored["rows"][1]["passed"] is False
    assert stored["rows"][1]["runs"] == {"ours": [3.4, 3.5]}


def test_options() -> None:
    assert read_options(Namespace(quick=True, peers="all", json=None), ("a", "b")).peers == ("a", "b")
    assert read_options(Namespace(quick=True, peers="none", json=None), ("a", "b")).peers == ()
    assert read_options(Namespace(quick=True, peers="b", json=None), ("a", "b")).peers == ("b",)
    with pytest.raises(InputError, match=r"no peer is named 'trk'\. Did you mean 'trl'"):
        read_options(Namespace(quick=True, peers="trk", json=None), ("trl", "transformers"))


def test_run_measures_the_process(tmp_path: Path) -> None:
    # from a small process: a child's peak begins at that of its parent, and this one has run other tests
    program = (
        "import sys; from pathlib import Path; from bench.common import run\n"
        "body = \"x = b'1' * 200_000_000; print('made'); raise SystemExit(3)\"\n"
        "done = run([sys.executable, '-c', body], log=Path(sys.argv[1]))\n"
        "print(done.code, done.peak_bytes, done.seconds, done.output, end='')"
    )
    asked = [sys.executable, "-c", program, str(tmp_path / "log")]
    told = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    code, peak, seconds, output = told.split(" ", 3)
    assert (code, output) == ("3", "made\n")
    assert 200_000_000 < int(peak) < 600_000_000
    assert float(seconds) > 0


def test_child_hands_over_a_job_and_takes_the_answer(place: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import json, sys\n"
        "job = json.load(open(sys.argv[1]))\n"
        "assert job['a'] == 4, 'a is not four'\n"
        "json.dump({'double': 2 * job['a']}, open(sys.argv[2], 'w'))\n",
        encoding="utf-8",
    )
    answer = child(sys.executable, [program], {"a": 4}, "double")
    assert answer["double"] == 8
    assert answer["peak_bytes"] > 1_000_000
    with pytest.raises(RiverrunError, match=r"double ended with code 1 \(AssertionError: a is not four\)"):
        child(sys.executable, [program], {"a": 5}, "double")


def test_interleave_lets_all_take_turns() -> None:
    order: list[str] = []

    def contest(name: str) -> int:
        order.append(name)
        return len(order)

    results = interleave({name: partial(contest, name) for name in ("a", "b")}, 3)
    assert order == ["a", "b"] * 3
    assert results == {"a": [1, 3, 5], "b": [2, 4, 6]}


def test_a_peer_is_installed_once_and_again_when_a_pin_changes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "PEERS", tmp_path)
    (tmp_path / "first.txt").write_text("torch==1\n", encoding="utf-8")
    (tmp_path / "second.txt").write_text("-r first.txt\n\nmore==2\n", encoding="utf-8")
    commands: list[list[str]] = []

    def pretend(command: list[object], **_: object) -> common.Done:
        commands.append([str(part) for part in command])
        return common.Done(0, 0.0, 0, "")

    monkeypatch.setattr(common, "run", pretend)
    python = peer_python("second")
    assert [command[-1] for command in commands] == [str(python.parents[1]), str(tmp_path / "second.txt")]
    assert peer_python("second") == python
    assert len(commands) == 2
    (tmp_path / "first.txt").write_text("torch==3\n", encoding="utf-8")
    assert peer_python("second") != python
    assert len(commands) == 4


def test_a_peer_that_cannot_be_installed_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = common.Done(1, 0.0, 0, "looking\nno such package: trl")
    monkeypatch.setattr(common, "run", lambda *_, **__: failed)
    with pytest.raises(InputError, match=r"peer 'trl' could not be installed \(no such package: trl\).*--peers"):
        peer_python("trl")
    assert not list(place.rglob("ready"))


def test_pins_are_exact() -> None:
    for file in common.PEERS.glob("*.txt"):
        lines = common._lines(file)
        assert lines
        assert all("==" in line for line in lines), file
