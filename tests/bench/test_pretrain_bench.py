"""The pre-training bench: what it takes of the corpora, and what its rows say of a run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from bench.pretrain import FALL, MINUTES, SOURCES, documents, gather, main, rows_of
from riverrun.base.errors import InputError


def corpora(root: Path) -> Path:
    for name in SOURCES:
        folder = root / "corpora" / name
        folder.mkdir(parents=True)
        if name.startswith("tiny"):
            (folder / "input.txt").write_text("To be. " * 6000, encoding="utf-8")
            continue
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as handle:
            for number in range(4):
                handle.write(json.dumps({"id": number, "text": f"{name} {number} " + "字" * 100}) + "\n")
    return root


def test_whole_documents_are_taken_up_to_a_share(tmp_path: Path) -> None:
    shared = corpora(tmp_path / "shared")
    assert [len(text) for text in documents(shared / "corpora" / "tinyshakespeare_en")] == [20_000, 20_000, 2000]
    taken = gather(shared, tmp_path / "out", share=0.00007)
    assert set(taken) == set(SOURCES)
    rows = (tmp_path / "out" / "laws_zh.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1  # the first document is over 0.00007 x 4 MB already
    assert taken["laws_zh"] == len(json.loads(rows[0])["text"].encode()) > 300
    with pytest.raises(InputError, match="set RIVERRUN_SHARED"):
        gather(tmp_path / "elsewhere", tmp_path / "out")


def test_rows_compare_the_last_with_the_first(tmp_path: Path) -> None:
    lines = [
        {"event": "eval", "step": step, "name": name, "bits_per_byte": bits}
        for step, name, bits in ((5, "en", 4.0), (5, "zh", 4.0), (9, "en", 2.0), (9, "zh", 3.9))
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    rows = {row.name: row for row in rows_of(tmp_path, 12.0)}
    assert rows[MINUTES].passed
    assert rows[FALL.format("en")].value == 0.5
    assert rows[FALL.format("en")].passed
    assert rows[FALL.format("zh")].passed is False
    assert "step 5: 4.000, step 9: 3.900" in rows[FALL.format("zh")].note


def test_the_bench_runs_from_corpora_to_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a model of a few thousand parameters and for a second; what it measures is not judged."""
    shape = ("hidden_size=32", "intermediate_size=48", "num_hidden_layers=1", "num_attention_heads=2")
    monkeypatch.setattr("bench.pretrain.SHAPE", (*shape, "num_key_value_heads=2"))
    monkeypatch.setenv("RIVERRUN_SHARED", str(corpora(tmp_path / "shared")))
    report = tmp_path / "report.json"
    words = ["bench", "--seconds", "1", "--work", str(tmp_path / "work"), "--json", str(report)]
    monkeypatch.setattr("sys.argv", words)
    assert main() in (0, 3)
    shown = capsys.readouterr().out
    assert MINUTES in shown
    assert "话说" in shown
    found = json.loads(report.read_text(encoding="utf-8"))
    assert {row["name"] for row in found["rows"]} >= {MINUTES, FALL.format("en"), FALL.format("zh")}
    assert found["result"]["status"] == "done"
