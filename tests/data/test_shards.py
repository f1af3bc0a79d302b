"""Shards: what went in comes out, the same bytes for any number of workers and after any kill, bad rows by name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.artifacts import digest_file
from riverrun.base.errors import ConfigError, InputError, IntegrityError
from riverrun.base.types import Message
from riverrun.data import build as build_module
from riverrun.data.build import build, tokenizer_digest
from riverrun.data.corpus import RowSource
from riverrun.data.encoding import EncodeConfig, RowEncoder, check_template
from riverrun.data.examples import Example
from riverrun.data.loading import read_rows
from riverrun.data.shards import Shards
from riverrun.data.tokens import encode_conversation, encode_text
from riverrun.models.chat import ChatTemplate
from riverrun.models.tokenizer import Tokenizer
from riverrun.wire.codec import get_codec
from tests.data.shard_build import CHATML, CONFIG, load
from tests.tiny_model import write_tokenizer

ROOT = Path(__file__).parent.parent.parent
FILES = ("tokens.u16", "offsets.u64", "learned.bits", "labels.u32", "origins.u64", "bad_rows.jsonl", "manifest.json")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, ChatTemplate]:
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer(folder)
    return load(folder)


def talk(n: int, size: int = 1) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"How much is book {n}?"},
            {"role": "assistant", "content": "x" * size + f" {n} 书"},
        ]
    }


def write(path: Path, rows: list[Any]) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def everything(shards: Shards) -> list[tuple[str, list[int], list[bool]]]:
    rows = [shards.row(index) for index in range(len(shards))]
    return [(row.id, [int(i) for i in row.ids], [bool(b) for b in row.learned]) for row in rows]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: digest_file(path) for path in sorted(folder.iterdir())}


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=9), st.integers(1, 9)),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 4),
)
def test_what_goes_in_comes_out(
    parts: tuple[Tokenizer, ChatTemplate],
    tmp_path_factory: pytest.TempPathFactory,
    said: list[tuple[str, int]],
    chunk: int,
) -> None:
    """Rows of shards, rows in memory, and rows encoded one by one by the older way are the same."""
    tokenizer, template = parts
    folder = tmp_path_factory.mktemp("s")
    rows: list[Any] = [
        {"messages": [{"role": "user", "content": "a" + t}, {"role": "assistant", "content": t * n + "b"}]}
        for t, n in said
    ]
    path = write(folder / "rows.jsonl", rows)
    config = EncodeConfig(max_tokens=4096)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "CHUNK_RECORDS", chunk)
        shards = build([RowSource(path=str(path))], folder / "out", tokenizer, template, config)
    memory, counts = read_rows([RowSource(path=str(path))], tokenizer, template, config)
    assert counts.records == counts.kept == len(rows)
    assert everything(shards) == [(row.id, list(row.ids), list(row.learned)) for row in memory.rows]
    for number, (row, (_, ids, learned)) in enumerate(zip(rows, everything(shards), strict=True)):
        messages = [Message.from_openai(message) for message in row["messages"]]
        one = encode_conversation(messages, (), tokenizer=tokenizer, template=template, codec=get_codec("hermes"))
        assert (list(one.ids), list(one.learned)) == (ids, learned), number
    assert shards.lengths.tolist() == [len(ids) for _, ids, _ in everything(shards)]
    assert shards.labels.tolist() == [shards.row(i).label_tokens for i in range(len(shards))]
    assert shards.manifest["tokenizer_sha256"] == tokenizer_digest(tokenizer)


def corpus(folder: Path, rows: int = 400) -> list[RowSource]:
    """Conversations with a bad row now and then, and texts that are split."""
    talks: list[Any] = [talk(n, n % 30) if n % 37 else "{no" for n in range(rows)]
    write(folder / "a.jsonl", talks)
    write(folder / "b.jsonl", [{"text": "Salt and light. " * (n % 40)} for n in range(rows // 4)])
    return [RowSource(path=str(folder / name)) for name in ("a.jsonl", "b.jsonl")]


def test_any_number_of_workers_gives_the_same_bytes(
    parts: tuple[Tokenizer, ChatTemplate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "CHUNK_RECORDS", 16)
    sources = corpus(tmp_path)
    made = [build(sources, tmp_path / f"w{n}", *parts, CONFIG, workers=n, bad_rows=0.1) for n in (1, 2, 3)]
    assert {frozenset(digests(shards.folder).items()) for shards in made} == {
        frozenset(digests(made[0].folder).items())
    }
    assert set(FILES) == set(digests(made[0].folder))
    counts = [file["counts"] for file in made[0].manifest["files"]]
    assert [each["records"] for each in counts] == [400, 100]
    assert counts[0]["bad"] == {"not_json": 11, "too_long": 32}
    assert counts[1]["bad"] == {"empty": 3}
    for each in counts:
        assert each["records"] == each["kept"] + sum(each["bad"].values())
    lines = [json.loads(line) for line in (tmp_path / "w1" / "bad_rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["file"], line["line"]) for line in lines if line["reason"] == "not_json"][:2] == [
        ("a.jsonl", 1),
        ("a.jsonl", 38),
    ]
    assert lines[0]["row"] == "{no"


@pytest.mark.parametrize(("workers", "times"), [(1, 2), (2, 1)])
def test_a_killed_build_goes_on_and_ends_in_the_same_bytes(
    parts: tuple[Tokenizer, ChatTemplate], tmp_path: Path, workers: int, times: int
) -> None:
    write_tokenizer(tmp_path)
    parts = load(tmp_path)
    sources = corpus(tmp_path)
    command = [sys.executable, "-m", "tests.data.shard_build", str(tmp_path), str(workers)]
    kills, began, seen = 0, time.monotonic(), 0
    while kills < times and time.monotonic() - began < 60:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"TOKENIZERS_PARALLELISM": "false"})
        log, lines = tmp_path / "out" / "commit.log", seen
        while process.poll() is None and lines < seen + 2:
            lines = log.read_text(encoding="utf-8").count("\n") if log.exists() else 0
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        kills, seen = kills + 1, lines
    assert kills, "the build ended before it could be killed"
    assert seen >= 2
    done = build(sources, tmp_path / "out", *parts, CONFIG, bad_rows=0.1)
    whole = build(sources, tmp_path / "whole", *parts, CONFIG, bad_rows=0.1)
    assert digests(done.folder) == digests(whole.folder)


def test_finished_shards_are_opened_and_others_are_made_anew(
    parts: tuple[Tokenizer, ChatTemplate], tmp_path: Path
) -> None:
    source = RowSource(path=str(write(tmp_path / "a.jsonl", [talk(n) for n in range(4)])))
    first = build([source], tmp_path / "out", *parts, CONFIG)
    labels = first.labels.sum()
    before = (tmp_path / "out" / "tokens.u16").stat().st_mtime_ns
    assert everything(build([source], tmp_path / "out", *parts, CONFIG)) == everything(first)
    assert (tmp_path / "out" / "tokens.u16").stat().st_mtime_ns == before
    again = build([source], tmp_path / "out", *parts, EncodeConfig(max_tokens=64, train_on="all"))
    assert again.labels.sum() > labels
    (tmp_path / "out" / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds mine\.txt"):
        build([source], tmp_path / "out", *parts, CONFIG)


def test_damaged_and_foreign_shards_are_refused(parts: tuple[Tokenizer, ChatTemplate], tmp_path: Path) -> None:
    source = RowSource(path=str(write(tmp_path / "a.jsonl", [talk(n) for n in range(4)])))
    build([source], tmp_path / "out", *parts, CONFIG)
    assert len(Shards(tmp_path / "out", tokenizer_sha256=tokenizer_digest(parts[0]))) == 4
    with pytest.raises(InputError, match="another tokenizer"):
        Shards(tmp_path / "out", tokenizer_sha256="0" * 64)
    with pytest.raises(InputError, match="another template"):
        Shards(tmp_path / "out", template_sha256="0" * 64)
    with open(tmp_path / "out" / "tokens.u16", "ab") as handle:
        handle.write(b"\0")
    with pytest.raises(IntegrityError, match=r"tokens\.u16 has \d+ bytes, its manifest says"):
        Shards(tmp_path / "out")
    (tmp_path / "out" / "tokens.u16").unlink()
    with pytest.raises(IntegrityError, match=r"tokens\.u16 is missing"):
        Shards(tmp_path / "out")
    with pytest.raises(InputError, match="holds no shards"):
        Shards(tmp_path)


LONG = {"messages": [m for n in range(9) for m in talk(n)["messages"]]}
NAMED = {
    "not_json": '{"messages": [',
    "not_utf8": '{"messages": "\udcff"}',
    "unknown_role": {"messages": [{"role": "oracle", "content": "a"}]},
    "no_assistant": {"messages": [{"role": "user", "content": "a"}]},
    "image": talk(1) | {"images": ["a.png"]},
    "audio": talk(1) | {"audios": ["a.wav"]},
    "nothing_learned": {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    },
    "not_this_format": {"text": "a"},
    "too_long": LONG,
}  # fmt: skip


def test_every_bad_row_is_set_aside_by_name_and_counted(parts: tuple[Tokenizer, ChatTemplate], tmp_path: Path) -> None:
    rows = [row for n, bad in enumerate(NAMED.values()) for row in (talk(n), bad)]
    source = RowSource(path=str(write(tmp_path / "a.jsonl", rows)))
    with pytest.raises(InputError, match=r"8 rows cannot be used, 1 % of 18 are allowed.*bad_rows\.jsonl"):
        build([source], tmp_path / "out", *parts, CONFIG)
    with pytest.raises(InputError, match="8 rows cannot be used, 7 are allowed"):
        build([source], tmp_path / "out", *parts, CONFIG, bad_rows=7)
    shards = build([source], tmp_path / "out", *parts, CONFIG, bad_rows=8)
    lines = [
        json.loads(line) for line in (tmp_path / "out" / "bad_rows.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [(line["reason"], line["line"]) for line in lines] == [(reason, 2 * n + 2) for n, reason in enumerate(NAMED)]
    assert [row_id for row_id, _, _ in everything(shards)] == [f"a.jsonl:{2 * n + 1}" for n in range(len(NAMED))]
    with pytest.raises(InputError, match="no row is left to learn from"):
        build([RowSource(path=str(write(tmp_path / "b.jsonl", [LONG])))], tmp_path / "o2", *parts, CONFIG)


def test_long_conversations_by_each_policy(parts: tuple[Tokenizer, ChatTemplate]) -> None:
    tokenizer, template = parts
    messages = (Message.of("system", "s"), *(Message.from_openai(m) for m in LONG["messages"]))
    whole = RowEncoder(tokenizer, template, EncodeConfig(max_tokens=4096)).encode([Example(messages)])[0].rows[0]  # type: ignore[union-attr]
    cut = RowEncoder(tokenizer, template, EncodeConfig(max_tokens=100, overlong="cut_right"))
    row = cut.encode([Example(messages)])[0].rows[0]  # type: ignore[union-attr]
    assert row.ids == whole.ids[:100]
    assert row.labels == sum(any(a <= i < b for a, b in whole.learned) for i in range(1, 100))
    turns = RowEncoder(tokenizer, template, EncodeConfig(max_tokens=100, overlong="cut_left_turns"))
    row = turns.encode([Example(messages)])[0].rows[0]  # type: ignore[union-attr]
    text = tokenizer.decode(row.ids, skip_special=False)
    assert text.startswith("<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n")
    assert text.endswith(tokenizer.decode(whole.ids, skip_special=False)[-40:])
    assert 50 < len(row.ids) <= 100
    told = turns.encode([Example((messages[1], Message.of("assistant", "x" * 400)))])[0]
    assert getattr(told, "reason", "") == "too_long"


def test_train_on(parts: tuple[Tokenizer, ChatTemplate]) -> None:
    tokenizer, template = parts
    messages = tuple(Message.from_openai(m) for n in range(2) for m in talk(n)["messages"])

    def learned(train_on: str, **more: Any) -> str:
        config = EncodeConfig(train_on=train_on, max_tokens=999)  # type: ignore[arg-type]
        row = RowEncoder(tokenizer, template, config).encode([Example(messages, **more)])[0].rows[0]  # type: ignore[union-attr]
        return "|".join(tokenizer.decode(row.ids[a:b], skip_special=False) for a, b in row.learned)

    assert learned("assistant") == "x 0 书<|im_end|>|x 1 书<|im_end|>"
    assert learned("last") == "x 1 书<|im_end|>"
    assert learned("assistant", learn=(False, True, False, False)) == "x 0 书<|im_end|>"
    assert learned("all").startswith("<|im_start|>user\nHow much")


def test_pairs_and_judged_answers(parts: tuple[Tokenizer, ChatTemplate], tmp_path: Path) -> None:
    rows = [{"prompt": f"How much is book {n}?", "chosen": "a" * (n + 1), "rejected": "b b"} for n in range(5)]
    shards = build([RowSource(path=str(write(tmp_path / "p.jsonl", rows)))], tmp_path / "p", *parts, CONFIG)
    assert shards.paired
    assert len(shards) == 10
    for index in range(0, 10, 2):
        one, other, shared = shards.row(index), shards.row(index + 1), shards.shared(index)
        assert (shards.tag(index), shards.tag(index + 1)) == (1, 2)
        assert shared == shards.shared(index + 1) > 16
        assert list(one.ids[:shared]) == list(other.ids[:shared])
        assert not any(one.learned[: shared + 1])
        assert one.label_tokens == shards.labels[index]
    memory, _ = read_rows([RowSource(path=str(tmp_path / "p.jsonl"))], *parts, CONFIG)
    assert [memory.shared(i) for i in range(10)] == [shards.shared(i) for i in range(10)]
    judged = [{"messages": talk(n)["messages"], "label": n % 2 == 0} for n in range(4)]
    kto = build([RowSource(path=str(write(tmp_path / "k.jsonl", judged)))], tmp_path / "k", *parts, CONFIG)
    assert [kto.tag(i) for i in range(4)] == [1, 2, 1, 2]


def test_long_texts_are_split_and_nothing_is_lost(parts: tuple[Tokenizer, ChatTemplate]) -> None:
    tokenizer, _ = parts
    text = "Salt and light and 盐. " * 200
    encoder = RowEncoder(tokenizer, None, EncodeConfig(max_tokens=50, end_texts=False))
    rows = encoder.encode([Example(text=text)])[0].rows  # type: ignore[union-attr]
    whole = encode_text(text, tokenizer=tokenizer)
    assert [i for row in rows for i in row.ids[1:]] == list(whole.ids[1:])
    assert all(len(row.ids) <= 50 and row.ids[0] == whole.ids[0] for row in rows)
    ended = RowEncoder(tokenizer, None, EncodeConfig(max_tokens=50))
    last = ended.encode([Example(text=text)])[0].rows[-1]  # type: ignore[union-attr]
    assert last.ids[-1] == tokenizer.eos_id


def test_texts_longer_than_a_stretch_are_tokenised_as_a_whole(
    parts: tuple[Tokenizer, ChatTemplate], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, _ = parts
    monkeypatch.setattr("riverrun.data.encoding.STRETCH", 5000)
    text = " ".join(f"word{n % 7}s of salt" for n in range(3000))
    encoder = RowEncoder(tokenizer, None, EncodeConfig(max_tokens=1 << 20, end_texts=False))
    (row,) = encoder.encode([Example(text=text)])[0].rows  # type: ignore[union-attr]
    assert list(row.ids) == list(encode_text(text, tokenizer=tokenizer).ids)


def test_a_template_that_trains_no_end_token_is_refused(parts: tuple[Tokenizer, ChatTemplate]) -> None:
    tokenizer, template = parts
    facts = check_template(tokenizer, template)
    assert (facts.begin_tokens, facts.end_token) == (0, "<|im_end|>")
    never = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}"
    with pytest.raises(
        ConfigError, match=r"ends what an assistant says with '<\|endoftext\|>'.*'<\|im_end\|>'.*never stop"
    ):
        RowEncoder(tokenizer, ChatTemplate(never), CONFIG)
    with pytest.raises(ConfigError, match="names no token that ends an answer"):
        check_template(Tokenizer(tokenizer._backend), template)


def test_begin_tokens(parts: tuple[Tokenizer, ChatTemplate]) -> None:
    tokenizer = Tokenizer(parts[0]._backend, bos_id=0, end_ids=[2])
    with pytest.raises(ConfigError, match=r"begins a conversation with 2 begin tokens \('<\|endoftext\|>'\)"):
        check_template(tokenizer, ChatTemplate("<|endoftext|><|endoftext|>" + CHATML))
    odd = "{% if messages[0].role != 'system' %}<|endoftext|>{% endif %}" + CHATML
    encoder = RowEncoder(tokenizer, ChatTemplate(odd), CONFIG)
    talk = (Message.of("user", "a"), Message.of("assistant", "b"))
    rows = [Example(talk), Example((Message.of("system", "s"), *talk))]
    good, bad = encoder.encode(rows)
    assert getattr(bad, "reason", "") == "begin_token"
    assert not hasattr(good, "reason")


def test_tokens_beyond_sixteen_bits(parts: tuple[Tokenizer, ChatTemplate], tmp_path: Path) -> None:
    from riverrun.data.chunks import EncodedChunk
    from riverrun.data.shards import ShardWriter

    assert ShardWriter(tmp_path / "a", 65_536, tagged=False).tokens_file == "tokens.u16"
    writer = ShardWriter(tmp_path / "b", 65_537, tagged=True)
    assert writer.tokens_file == "tokens.u32"
    ids = np.array([70_000, 3, 65_535], dtype=np.uint32)
    one = np.array([3], dtype=np.uint32)
    chunk = EncodedChunk(
        0, 1, 1, ids, np.array([0, 1, 1], bool), one, one - 1, one.astype(np.uint8), one, one.astype(np.uint64), ()
    )
    again = EncodedChunk.from_bytes(chunk.to_bytes())
    assert again.to_bytes() == chunk.to_bytes()
    writer.append(chunk, "a")
    writer.finish()
    assert np.fromfile(tmp_path / "b" / "tokens.u32", dtype="<u4").tolist() == ids.tolist()
