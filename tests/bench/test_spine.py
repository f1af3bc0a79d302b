"""The table of the spine from stored figures: every row of the issue is there, judged as it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import spine
from bench.common import ROOT, Done
from bench.parts import fresh, parity, scores, speed
from bench.parts.context import RunFolder
from bench.spine import NAMES, PARTS, QUICK, chosen_parts, drift
from riverrun.base.artifacts import write_json
from riverrun.base.errors import InputError

SUMMARY: dict[str, Any] = {
    "scores": {
        "tool": {
            "base": {"success": 0.05, "low": 0.03, "high": 0.08, "n": 308},
            "tuned": {"success": 0.9, "low": 0.86, "high": 0.93, "n": 308},
            "gain": {"difference": 0.85, "low": 0.8, "high": 0.89},
        },
        "choice": {
            "base": {"perf": 0.1, "low": 0.05, "high": 0.2, "n": 60},
            "tuned": {"perf": 0.6, "low": 0.47, "high": 0.71, "n": 60},
            "gain": {"difference": 0.5, "low": 0.35, "high": 0.62},
        },
    },
    "retention": {
        "perplexity_ratio": 1.1,
        "sums_base": 0.4,
        "sums_tuned": 0.38,
        "sums_change": {"difference": -0.02, "low": -0.09, "high": 0.05},
    },
    "quantize": {"chosen": "q4-merged", "q4-merged": {"drop": {"difference": 0.01, "low": -0.02, "high": 0.04}}},
    "drop": {"difference": 0.01, "low": -0.02, "high": 0.04},
    "agent": {"success": 0.89, "low": 0.85, "high": 0.92, "through": {"difference": 0.01, "low": -0.01, "high": 0.02}},
    "plan": {"chosen": "lora", "predicted": {"lora": {"memory_bytes": 2_000_000_000, "seconds": 100}}},
    "stages": {"finetune": {"peak_bytes": 2_200_000_000, "seconds": 90.0}},
}


def changed(dotted: str, value: float) -> dict[str, Any]:
    """The summary with one figure changed."""
    copy: dict[str, Any] = json.loads(json.dumps(SUMMARY))
    *parents, leaf = dotted.split(".")
    node = copy
    for key in parents:
        node = node[key]
    node[leaf] = value
    return copy


def test_good_figures_pass() -> None:
    rows = [*scores.score_rows(SUMMARY, judged=True), *scores.memory_rows(SUMMARY, judged=True)]
    assert all(row.passed for row in rows if row.limit is not None)
    named = {row.name: row for row in rows}
    assert named[scores.TOOLS].value == 90
    assert named[scores.TOOLS].peers == {"base": 5}
    assert named[scores.TOOLS].note == "95 % interval 86.0 to 93.0"
    assert named[scores.MEMORY].value == pytest.approx(10)


@pytest.mark.parametrize(
    ("figure", "value", "row"),
    [
        ("scores.tool.tuned.success", 0.84, scores.TOOLS),
        ("scores.tool.tuned.n", 239, f"{scores.TOOLS}: questions"),
        ("scores.choice.tuned.perf", 0.49, scores.CHOICE),
        ("scores.choice.gain.low", 0.0, f"{scores.CHOICE}: lower bound of the paired gain"),
        ("retention.perplexity_ratio", 1.16, scores.RETENTION),
        (
            "retention.sums_change.high",
            -0.01,
            f"{scores.RETENTION}: two-digit sums, upper bound of the paired change",
        ),
        ("drop.high", 0.06, scores.W4),
        ("agent.through.difference", 0.03, scores.THROUGH),
        ("agent.through.difference", -0.03, scores.THROUGH),
        ("stages.finetune.peak_bytes", 2_400_000_000, scores.MEMORY),
        ("stages.finetune.peak_bytes", 1_600_000_000, scores.MEMORY),
    ],
)
def test_one_bad_figure_misses_its_row_alone(figure: str, value: float, row: str) -> None:
    summary = changed(figure, value)
    rows = [*scores.score_rows(summary, judged=True), *scores.memory_rows(summary, judged=True)]
    assert [item.name for item in rows if item.passed is False] == [row]


def test_a_tiny_run_is_shown_and_not_judged() -> None:
    rows = [*scores.score_rows(SUMMARY, judged=False), *scores.memory_rows(SUMMARY, judged=False)]
    assert {row.passed for row in rows} == {None}
    assert rows[0].value == 90


def test_figures_that_are_not_there() -> None:
    rows = [*scores.score_rows({}, judged=True), *scores.memory_rows({}, judged=True)]
    assert {row.value for row in rows} == {None}


def answer(tokens: int, seconds: float, *, loss: float = 1.9, labels: int = 100) -> dict[str, Any]:
    return {
        "row_tokens": tokens,
        "label_tokens": labels,
        "computed_tokens": tokens // 2,
        "seconds": seconds,
        "first_loss": loss,
        "peak_bytes": 2_000_000_000,
    }


def test_speed_is_judged_by_the_best_setting_of_the_peer() -> None:
    results = {
        speed.OURS: [answer(1000, 1.0), answer(1000, 1.1), answer(1000, 0.9)],
        speed.DEFAULT: [answer(1000, 5.0)],
        "TRL grouped by length": [answer(1000, 2.5), answer(1000, 2.4), answer(1000, 9.0)],
        "TRL packed": [answer(1000, 4.0)],
    }
    assert speed.best_of(results) == "TRL grouped by length"
    rows = speed.rows_of(results)
    assert rows[0].name == speed.NAME
    assert rows[0].value == 1000
    assert rows[0].limit == pytest.approx(800)
    assert rows[1].value == pytest.approx(2.5)
    assert rows[1].passed is True
    slow = {**results, speed.OURS: [answer(1000, 1.5)]}
    assert [row.passed for row in speed.rows_of(slow)[:2]] == [False, False]


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (answer(999, 5.0), "999 row tokens, ours 1000"),
        (answer(1000, 5.0, labels=90), "90 label tokens, ours 100"),
        (answer(1000, 5.0, loss=2.5), "starts at loss 2.5000, ours at 1.9000"),
    ],
)
def test_unequal_work_is_no_comparison(theirs: dict[str, Any], said: str) -> None:
    rows = speed.rows_of({speed.OURS: [answer(1000, 1.0)], speed.DEFAULT: [theirs]})
    assert rows[0].passed is False
    assert said in rows[0].note


def test_speed_without_the_peer_says_so() -> None:
    rows = speed.rows_of({speed.OURS: [answer(1000, 1.0)], speed.PLAIN: [answer(1000, 2.0)]})
    assert rows[0].passed is None
    assert "not compared" in rows[0].note
    assert rows[0].peers == {speed.PLAIN: 500}


def test_parity_rows() -> None:
    good = parity.Tally(conversations=200, tokens=9, compared=200, positions=9, max_abs=5e-5)
    assert [row.passed for row in parity.rows_of(good)] == [True, True]
    assert parity.rows_of(parity.Tally(max_abs=2e-4))[0].passed is False
    assert parity.rows_of(parity.Tally(max_abs=5e-5, ids_differ=1))[0].passed is False
    assert [row.value for row in parity.rows_of(None)] == [None, None]


def test_parity_counts_what_differs() -> None:
    import numpy as np

    tally = parity.Tally()
    tally.count_ids([1, 2], {"ids": [1, 2], "ids_as_converted": [1, 3]})
    tally.count_ids([1, 2], {"ids": [2, 2], "ids_as_converted": [1, 2]})
    assert (tally.conversations, tally.tokens, tally.ids_differ, tally.ids_as_converted_differ) == (2, 4, 1, 1)
    ours = np.array([[1.0, 2.0], [3.0, 1.0]], dtype=np.float32)
    tally.count_logits(ours, ours + np.array([[0.0, 0.5], [-4.0, 0.0]], dtype=np.float32))
    assert (tally.max_abs, tally.positions, tally.picks_differ) == (4.0, 2, 1)


def test_evenly() -> None:
    assert parity.evenly([*range(10)], 3) == [0, 3, 6]
    assert parity.evenly([1, 2], 3) == [1, 2]


def test_quickstart_wants_the_report_and_three_answers(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "bookshop"
    for folder in ("agent", "report"):
        (run / folder).mkdir(parents=True)
    (run / "report" / "index.html").write_text("<html>", encoding="utf-8")
    questions = [f"What does book {n} cost?" for n in range(5)]
    lines = "".join(json.dumps({"question": question}) + "\n" for question in questions)
    (run / "agent" / "answers.jsonl").write_text(lines, encoding="utf-8")
    (run / "summary.json").write_text(json.dumps(SUMMARY), encoding="utf-8")
    shown = f"report: {run}/report/index.html\n" + "".join(f"  > {question}\n    12\n" for question in questions[:3])
    rows = fresh.quickstart_rows(Done(0, 600.0, 0, shown), tmp_path)
    assert rows[0].passed is True
    assert rows[0].value == 10
    assert [row.value for row in rows[1:]] == [90.0, 510.0]
    for code, output in ((1, shown), (0, shown.replace(questions[0], "?")), (0, shown.replace("report/", ""))):
        assert fresh.quickstart_rows(Done(code, 600.0, 0, output), tmp_path)[0].passed is False
    assert fresh.quickstart_rows(Done(0, 901.0, 0, shown), tmp_path)[0].passed is False


def test_test_row() -> None:
    assert fresh.test_row(Done(0, 60.0, 0, "5 passed\n")).passed is True
    assert fresh.test_row(Done(1, 60.0, 0, "1 failed\n")).passed is False


def test_parts() -> None:
    assert chosen_parts("", quick=True) == QUICK
    assert chosen_parts("", quick=False) == PARTS
    assert chosen_parts("kill,test", quick=True) == ("kill", "test")
    with pytest.raises(InputError, match="no part is named 'sped'"):
        chosen_parts("sped", quick=False)


def test_machine_at_the_end_stands_beside_the_start() -> None:
    rates = {"gemm_fp32_gflops": 1, "gemm_bf16_gflops": 2, "read_gb_per_second": 3, "load": 0}
    both = drift({"cores": 2, **rates}, {"cores": 2, **rates, "load": 4})
    assert both["at_the_end"]["load"] == 4
    assert both["load"] == 0


def test_run_folder_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"summary\.json does not exist: give a finished run with --run"):
        RunFolder(tmp_path).json("summary.json")
    with pytest.raises(InputError, match="data stage is done"):
        assert RunFolder(tmp_path).rows


def test_the_bench_writes_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command as a user gives it, on stored figures and without peers; the machine is not measured."""
    rates = {"gemm_fp32_gflops": 1.0, "gemm_bf16_gflops": 2.0, "read_gb_per_second": 3.0, "load": 0.0}
    monkeypatch.setattr(spine, "machine", lambda: {"cores": 2, "cpu": "a cpu", "torch": "2", **rates})
    write_json(tmp_path / "run" / "summary.json", SUMMARY)
    out = tmp_path / "out.json"
    given = [
        "--quick",
        "--peers",
        "none",
        "--only",
        "scores,memory",
        "--run",
        str(tmp_path / "run"),
        "--json",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", ["spine", *given])
    assert spine.main() == 0
    stored = json.loads(out.read_text(encoding="utf-8"))
    every = [name for part in PARTS for name in NAMES[part]]
    assert [row["name"] for row in stored["rows"] if row["name"] in every] == every
    assert stored["machine"]["at_the_end"] == rates
    shown = capsys.readouterr().out
    assert "MISS" not in shown
    assert shown.count("not measured") == len(every) - 6


def test_a_wrong_option_is_one_sentence() -> None:
    command = [sys.executable, "-m", "bench.spine", "--only", "nothing"]
    wrong = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: --only nothing: no part is named 'nothing'.")
    assert len(wrong.stderr.splitlines()) == 1
