"""Foreign rows: what was a conversation is the same conversation, whatever form it was written in."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import InputError, IntegrityError
from riverrun.base.types import Message, ToolCall, ToolSpec
from riverrun.data.corpus import RowSource, resolve
from riverrun.data.examples import BadRow, Example
from riverrun.data.formats import FORMATS, detect, read_example
from riverrun.data.records import Place, find_files, open_file, read_records, row_files
from tests.shared_data import shared_path

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
CALL = st.builds(ToolCall, st.sampled_from(["search", "查询"]), st.dictionaries(TEXT, JSON, max_size=2))
TOOL = ToolSpec("search", "finds", {"type": "object", "properties": {"q": {"type": "string"}}})


@st.composite
def plain_talk(draw: st.DrawFn) -> tuple[str, list[tuple[str, str]]]:
    """(system text or "", turns of a user and an assistant)."""
    return draw(st.just("") | TEXT), draw(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))


@st.composite
def tool_talk(draw: st.DrawFn) -> tuple[Message, ...]:
    system, turns = draw(plain_talk())
    messages = [Message.of("system", system)] if system else []
    for asked, said in turns:
        messages.append(Message.of("user", asked))
        if draw(st.booleans()):
            call = draw(CALL)
            messages += [Message("assistant", (), (call,)), Message.of("tool", draw(TEXT), name=call.name)]
        messages.append(Message.of("assistant", said))
    return tuple(messages)


def messages_of(system: str, turns: list[tuple[str, str]]) -> tuple[Message, ...]:
    out = [Message.of("system", system)] if system else []
    for asked, said in turns:
        out += [Message.of("user", asked), Message.of("assistant", said)]
    return tuple(out)


def read(row: Any) -> Example:
    """By the format that is told from the row itself, after a trip through JSON."""
    row = json.loads(json.dumps(row))
    return read_example(detect([row], "here"), row)


@given(plain_talk())
def test_alpaca(talk: tuple[str, list[tuple[str, str]]]) -> None:
    system, turns = talk
    *before, (asked, said) = turns
    row = {"instruction": asked, "input": "", "output": said, "history": before} | (
        {"system": system} if system else {}
    )
    assert read(row) == Example(messages_of(system, turns))
    with_input = read(row | {"input": "more"})
    assert with_input.messages[-2] == Message.of("user", f"{asked}\nmore")


@given(plain_talk(), st.data())
def test_xtuner(talk: tuple[str, list[tuple[str, str]]], data: st.DataObject) -> None:
    system, turns = talk
    counts = data.draw(st.lists(st.booleans(), min_size=len(turns), max_size=len(turns)))
    rows: list[dict[str, Any]] = [{"input": asked, "output": said} for asked, said in turns]
    rows[0] |= {"system": system} if system else {}
    assert read({"conversation": rows}) == Example(messages_of(system, turns))
    for row, count in zip(rows, counts, strict=True):
        row["output_with_loss"] = count
    learn = [flag for count in counts for flag in (False, count)]
    assert read({"conversation": rows}).learn == (*([False] if system else []), *learn)


SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


@given(tool_talk(), st.booleans())
def test_sharegpt(messages: tuple[Message, ...], as_text: bool) -> None:
    rows = []
    for m in messages:
        if m.tool_calls:
            call = {"name": m.tool_calls[0].name, "arguments": dict(m.tool_calls[0].arguments)}
            rows.append({"from": "function_call", "value": json.dumps(call)})
        else:
            rows.append({"from": SHAREGPT[m.role], "value": m.text})
    bare = [{"name": TOOL.name, "description": TOOL.description, "parameters": dict(TOOL.parameters)}]
    row = {"conversations": rows, "tools": json.dumps(bare) if as_text else [TOOL.to_openai()]}
    assert read(row) == Example(messages, (TOOL,))
    other = [{"role": each["from"], "content": each["value"]} for each in rows]
    assert read({"conversations": other}).messages == messages


@given(tool_talk(), st.booleans(), st.sampled_from(["weight", "loss", "loss_weight"]))
def test_openai(messages: tuple[Message, ...], parts: bool, key: str) -> None:
    rows = [m.to_openai() for m in messages]
    if parts:
        for row in rows:
            if row["content"]:
                row["content"] = [{"type": "text", "text": row["content"]}]
    assert read({"messages": rows, "tools": [TOOL.to_openai()]}) == Example(messages, (TOOL,))
    for number, row in enumerate(rows):
        row[key] = int(row["role"] == "assistant" and number % 2)
    assert read({"messages": rows}).learn == tuple(bool(row[key]) for row in rows)


@given(plain_talk(), TEXT, st.sampled_from(["prompt", "list", "implicit", "sharegpt", "alpaca", "both"]))
def test_preference(talk: tuple[str, list[tuple[str, str]]], other: str, form: str) -> None:
    system, turns = talk
    *prompt, answer = messages_of(system, turns)
    wrong = Message.of("assistant", other)
    want = Example(tuple(prompt), chosen=(answer,), rejected=(wrong,))
    openai = [m.to_openai() for m in prompt]
    chosen, rejected = answer.to_openai(), wrong.to_openai()
    if form == "prompt":
        want = Example((Message.of("user", turns[-1][0]),), chosen=(answer,), rejected=(wrong,))
        row: dict[str, Any] = {"prompt": turns[-1][0], "chosen": answer.text, "rejected": other}
    elif form == "list":
        row = {"prompt": openai, "chosen": [chosen], "rejected": [rejected]}
    elif form == "implicit":
        row = {"chosen": [*openai, chosen], "rejected": [*openai, rejected]}
    elif form == "both":  # a prompt, and whole conversations
        row = {"prompt": openai, "chosen": [*openai, chosen], "rejected": [*openai, rejected]}
    elif form == "sharegpt":
        rows = [{"from": SHAREGPT[m.role], "value": m.text} for m in prompt]
        row = {"conversations": rows, "chosen": {"from": "gpt", "value": answer.text},
               "rejected": {"from": "gpt", "value": other}}  # fmt: skip
    else:
        *before, (asked, _) = turns
        row = {"instruction": asked, "history": before, "chosen": answer.text, "rejected": other} | (
            {"system": system} if system else {}
        )
    if answer.text == other:
        with pytest.raises(BadRow) as caught:
            read(row)
        assert caught.value.reason == "same_answers"
    else:
        assert read(row) == want


@given(plain_talk(), st.booleans(), st.sampled_from(["messages", "alpaca", "prompt"]))
def test_kto(talk: tuple[str, list[tuple[str, str]]], good: bool, form: str) -> None:
    _, turns = talk
    (asked, said), messages = turns[-1], messages_of("", turns[-1:])
    row: dict[str, Any] = {
        "messages": {"messages": [m.to_openai() for m in messages], "label": good},
        "alpaca": {"instruction": asked, "output": said, "kto_tag": good},
        "prompt": {"prompt": asked, "completion": said, "label": good},
    }[form]
    assert read(row) == Example(messages, good=good)


@given(TEXT)
def test_text_and_prompt(text: str) -> None:
    assert read({"text": text, "id": 1}) == Example(text=text)
    assert read({"prompt": text, "completion": "b"}) == Example(
        (Message.of("user", text), Message.of("assistant", "b"))
    )


def test_thoughts_stand_before_the_answer() -> None:
    row = {"role": "assistant", "content": "4", "reasoning_content": " two and two "}
    parts = [{"type": "reasoning", "value": "two and two"}, {"type": "text", "value": "4"}]
    ask = {"role": "user", "content": "2+2"}
    for answer in (row, {"role": "assistant", "content": parts}):
        assert read({"messages": [ask, answer]}).messages[-1].text == "<think>\ntwo and two\n</think>\n\n4"


ASK, SAY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
BAD = {
    "no turn": ("no_assistant", {"messages": [ASK]}),
    "says nothing": ("no_assistant", {"instruction": "a", "output": ""}),
    "role": ("unknown_role", {"messages": [ASK, {"role": "oracle", "content": "b"}]}),
    "from": ("unknown_role", {"conversations": [{"from": "alien", "value": "b"}]}),
    "image": ("image", {"messages": [ASK, SAY], "images": ["a.png"]}),
    "image part": ("image", {"messages": [ASK | {"content": [{"type": "image_url", "image_url": {"url": "a"}}]}, SAY]}),
    "audio": ("audio", {"messages": [ASK, SAY], "audios": ["a.wav"]}),
    "video": ("video", {"messages": [ASK, SAY], "videos": ["a.mp4"]}),
    "call": ("tool_call", {"conversations": [{"from": "function_call", "value": "{no"}]}),
    "arguments": ("tool_call", {"messages": [ASK, SAY | {"tool_calls": [{"name": "f", "arguments": "{"}]}]}),
    "weight": ("weight", {"messages": [ASK, SAY | {"weight": 0.5}]}),
    "weight of a user": ("weight", {"messages": [ASK | {"weight": 1}, SAY]}),
    "part": ("not_this_format", {"messages": [ASK, SAY | {"content": [{"type": "smell", "value": "b"}]}]}),
    "label": ("not_this_format", {"messages": [ASK, SAY], "kto_tag": "yes"}),
    "no prompt": ("not_this_format", {"chosen": "a", "rejected": "b"}),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named(name: str) -> None:
    reason, row = BAD[name]
    with pytest.raises(BadRow) as caught:
        read(row)
    assert caught.value.reason == reason, caught.value


def test_a_format_is_told_by_most_rows_or_refused_with_its_fields() -> None:
    odd = [{"text": "a"}, {"messages": []}, 3, {"text": "b"}]
    assert detect(odd, "x").name == "text"
    with pytest.raises(InputError, match=r"fields question, reply.*columns"):
        detect([{"question": "a", "reply": "b"}], "x.jsonl")
    columns = {"instruction": "question", "output": "reply"}
    example = read_example(FORMATS["alpaca"], {"question": "a", "reply": "b"}, columns)
    assert example.messages == messages_of("", [("a", "b")])


# ---- files ----------------------------------------------------------------------------------------------------------


def records(path: Path, start: Place = Place()) -> list[tuple[int, Any]]:
    return [(record.number, json.loads(record.data)) for record in read_records(open_file(path), start)]


@settings(max_examples=40, deadline=None)
@given(st.lists(JSON, max_size=8), st.sampled_from(["list", "indented", "lines"]), st.booleans(), st.data())
def test_records_of_lists_and_lines(
    tmp_path_factory: pytest.TempPathFactory, items: list[Any], form: str, packed: bool, data: st.DataObject
) -> None:
    text = {
        "list": json.dumps(items),
        "indented": json.dumps(items, indent=1, ensure_ascii=False),
        "lines": "".join(json.dumps(item) + "\n" for item in items),
    }[form]
    path = tmp_path_factory.mktemp("r") / f"rows.{'jsonl' if form == 'lines' else 'json'}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    found = records(path)
    assert found == list(enumerate(items, 1))
    if items:
        after = data.draw(st.sampled_from([record.after for record in read_records(open_file(path))]))
        assert records(path, after) == found[after.record :]


def test_items_may_straddle_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [{"a": 'x"]}[{,' * n, "b": "\\" * n} for n in range(40)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    for block in (1, 2, 7, 64):
        monkeypatch.setattr("riverrun.data.records.BLOCK", block)
        assert records(path) == list(enumerate(items, 1))


def test_broken_containers_name_the_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    for text, number in (('[{"a": 1}, {"a": 2', 1), ("3", 0), ('[{"a": 1}', 0)):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(IntegrityError, match=rf"rows\.json, after item {number}"):
            list(read_records(open_file(path)))
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"text": "a"}\n' * 9000)[:-9])
    with pytest.raises(IntegrityError, match=r"damaged after record"):
        list(read_records(open_file(packed)))


def test_a_record_that_is_too_big_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riverrun.data.records.MAX_RECORD", 100)
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "{"x" * 1000}"}}\n{{"text": "b"}}\n', encoding="utf-8")
    found = list(read_records(open_file(path)))
    assert [(record.number, record.whole) for record in found] == [(1, False), (2, True)]


@settings(max_examples=30, deadline=None)
@given(st.text(st.sampled_from("aß字\n "), max_size=400), st.integers(4, 64))
def test_pieces_of_a_text_are_the_text(tmp_path_factory: pytest.TempPathFactory, text: str, size: int) -> None:
    path = tmp_path_factory.mktemp("t") / "a.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("riverrun.data.records.TEXT_PIECE", size)
        pieces = list(read_records(open_file(path)))
        assert "".join(piece.data.decode() for piece in pieces) == text
        for piece in pieces:
            rest = list(read_records(open_file(path), piece.after))
            assert b"".join(each.data for each in rest) == b"".join(p.data for p in pieces[piece.number :])


def test_files_of_a_folder(tmp_path: Path) -> None:
    names = ["data/b.jsonl", "data/a.json.gz", "README.md", "LICENSE.txt", "notes.txt", ".git/x.json", "config.json"]
    assert row_files(names) == ["data/b.jsonl", "data/a.json.gz"]
    assert row_files(["a.txt", "LICENSE.txt", "x.png"]) == ["a.txt"]
    with pytest.raises(InputError, match="no file of rows"):
        find_files(tmp_path)
    with pytest.raises(InputError, match="is no file of rows"):
        open_file(tmp_path / "x.bin")


def test_pairs_are_not_mixed_with_other_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="all pairs or none"):
        resolve([RowSource(path=str(tmp_path))])


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="not run here: pyarrow is not installed")
    from pyarrow import parquet

    rows = [{"text": f"row {n}", "data": b"\xff"} for n in range(10)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), str(tmp_path / "a.parquet"), row_group_size=4)
    found = records(tmp_path / "a.parquet")
    assert [(number, row["text"]) for number, row in found] == [(n + 1, f"row {n}") for n in range(10)]
    assert records(tmp_path / "a.parquet", Place(5, 0)) == found[5:]


DEMO = {
    "alpaca_en_demo.json": ("alpaca", 999),
    "alpaca_zh_demo.json": ("alpaca", 1000),
    "identity.json": ("alpaca", 91),
    "c4_demo.jsonl": ("text", 300),
    "dpo_en_demo.json.gz": ("preference", 300),
    "dpo_zh_demo.json": ("preference", 300),
    "v1_dpo_demo.jsonl": ("preference", 10),
    "kto_en_demo.json.gz": ("kto", 300),
    "glaive_toolcall_en_demo.json": ("sharegpt", 300),
    "glaive_toolcall_zh_demo.json": ("sharegpt", 300),
    "v1_sft_demo.jsonl": ("openai", 500),
    "reason_tool_use_demo_50.jsonl": ("openai", 50),
}


@pytest.mark.parametrize("name", DEMO)
def test_real_files(name: str) -> None:
    form, count = DEMO[name]
    (each,) = resolve([RowSource(path=str(shared_path("corpora", "sft_llamafactory_demo", name)))])
    examples = [read_example(each.form, json.loads(record.data)) for record in read_records(each.file)]
    assert (each.form.name, len(examples)) == (form, count)
    if "toolcall" in name or "tool_use" in name:
        assert sum(bool(m.tool_calls) for example in examples for m in example.messages) >= 50
        assert all(example.tools for example in examples if any(m.tool_calls for m in example.messages))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("mllm_demo.json", "image"), ("mllm_audio_demo.json", "audio"), ("mllm_video_demo.json", "video"),
     ("v1_multimodal_demo.jsonl", "image")],
)  # fmt: skip
def test_real_files_of_pictures_and_sound_are_refused_by_name(name: str, reason: str) -> None:
    (each,) = resolve([RowSource(path=str(shared_path("corpora", "sft_llamafactory_demo", name)))])
    for record in read_records(each.file):
        with pytest.raises(BadRow) as caught:
            read_example(each.form, json.loads(record.data))
        assert caught.value.reason in (reason, "audio", "image", "video")
