"""The pre-training bench: what it takes of the corpora, and what its rows say of a run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from bench.pretrain import FALL, MINUTES, SOURCES, documents, gather, rows_of
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
