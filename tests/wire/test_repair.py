"""Repair: what has one reading is mended, what has two is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverrun.base.errors import ToolError
from riverrun.wire.repair import repair

WANT = {"q": "late post", "n": 3}


@pytest.mark.parametrize(
    "text",
    [
        '{"q": "late post", "n": 3}',
        '{\n  "q": "late post",\n  "n": 3\n}',
        '```json\n{"q": "late post", "n": 3}\n```',
        '```\n{"q": "late post", "n": 3}\n```',
        'I will search: {"q": "late post", "n": 3}',
        '{"q": "late post", "n": 3} is what I need.',
        'Here:\n```json\n{"q": "late post", "n": 3}\n```\nDone.',
        '{"q": "late post", "n": 3,}',
        "{'q': 'late post', 'n': 3}",
        '{q: "late post", n: 3}',
        '{"q": "late post", "n": 3',
        '{"q": "late post", "n": 3}}',
        "{“q”: “late post”, “n”: 3}",
        '{"q"："late post"，"n"：3}',
        "｛“q”：“late post”，“n”：3｝",
        '{"q": "late post", // what\n "n": 3}',
        '{"q": "late post", /* what */ "n": 3}',
        '"{\\"q\\": \\"late post\\", \\"n\\": 3}"',
        '{"q": "late post" "n": 3}',
        '\ufeff{\u00a0"q": "late post",\u00a0"n": 3}',
        'I think {maybe} so: {"q": "late post", "n": 3}',
        '{"q": "late post", "n": 3} {"q": "late post", "n": 3}',
    ],
)
def test_mends_one_reading(text: str) -> None:
    repaired = repair(text)
    assert repaired.value == WANT
    assert bool(repaired.edits) == (text.replace("\n", "").replace(" ", "") != '{"q":"latepost","n":3}')


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ('{"a": True, "b": None, "c": False}', {"a": True, "b": None, "c": False}),
        ('{"a": "l1\nl2"}', {"a": "l1\nl2"}),
        ('{"q": "say "hi" now", "b": 2}', {"q": 'say "hi" now', "b": 2}),
        ('{"a": "x\\_y"}', {"a": "x_y"}),
        ('{"a": "O\\\'Hara"}', {"a": "O'Hara"}),
        ('{"a": "\\frac{1}{2} \\beta"}', {"a": "\\frac{1}{2} \\beta"}),
        ('{"a": "\\d+"}', {"a": "\\d+"}),
        ('{"a": {"b": [1, 2}', {"a": {"b": [1, 2]}}),
        ("{'sql': \"SELECT 'a'\"}", {"sql": "SELECT 'a'"}),
        ('[{"a": 1}, {"a": 2},]', [{"a": 1}, {"a": 2}]),
        ('{"sql": "SELECT a FROM t WHERE b = "Bonn""}', {"sql": 'SELECT a FROM t WHERE b = "Bonn"'}),
        ('{"a": "1,000"}', {"a": "1,000"}),
        ('{"sql": SELECT a FROM b}', {"sql": "SELECT a FROM b"}),
        ('{"a": " ", "b": ", c",}', {"a": " ", "b": ", c"}),
        ('{"a": "", "b": 1,}', {"a": "", "b": 1}),
    ],
)
def test_mends_values(text: str, want: object) -> None:
    assert repair(text).value == want


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json here",
        "42",
        '{"a": 1} {"a": 2}',
        '{"a": 1, "a": 2}',
        '{"amount": 1,000}',
        '{"amount": 1,000',
        '{"city":',
        '{"city": , "n": 1}',
        '{"sql": "SELECT a", b FROM books"}',
        '{"n": Infinity}',
        '{"sql": SELECT a, b FROM c}',
        "{" * 100 + '"a": 1,',
        "x{x{x{",
        "{" * 3000,
        "{}{}{",
    ],
)
def test_refuses_two_readings(text: str) -> None:
    with pytest.raises(ToolError):
        repair(text)


@pytest.mark.parametrize("text", ['{"a": "trunc', '{"a": 12', '{"a": tru', '{"a": "it is \'so\''])
def test_reports_a_cut_inside_a_value(text: str) -> None:
    assert repair(text).truncated
    assert not repair('{"a": "x"').truncated


def test_schema_proves_a_mended_object() -> None:
    schema = {"type": "object", "properties": {"q": {"type": "string"}, "n": {}}, "required": ["q"]}
    assert repair("{'q': 'x'}", schema).value == {"q": "x"}
    with pytest.raises(ToolError, match="'r'"):
        repair("{'q': 'x', 'r': 1}", schema)
    with pytest.raises(ToolError, match="'q' is missing"):
        repair("{'n': 1}", schema)
    assert repair('{"r": 1}', schema).value == {"r": 1}  # strict JSON is the tool's own affair


def test_long_broken_text_is_refused_quickly() -> None:
    with pytest.raises(ToolError, match="too long"):
        repair('{"a": "' + "x" * 200_000)


PLAIN = st.dictionaries(
    st.from_regex(r"[a-z]{1,6}", fullmatch=True),
    st.integers(0, 10**6) | st.text("abc déf.", max_size=8) | st.booleans(),
    min_size=1,
    max_size=4,
)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(PLAIN, st.sampled_from(["fence", "comma", "brace", "extra", "prose", "python", "wide"]))
def test_known_damage_is_undone(value: dict, damage: str) -> None:
    text = json.dumps(value, ensure_ascii=False)
    broken = {
        "fence": f"```json\n{text}\n```",
        "comma": text[:-1] + ",}",
        "brace": text[:-1],
        "extra": text + "}",
        "prose": f"Sure, {text}",
        "python": repr(value),
        "wide": text.replace('": ', '"： '),
    }[damage]
    assert repair(broken).value == value


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.text("{}[]\":,'\\ \n0a“，:n", max_size=40))
def test_any_text_gives_a_value_or_a_refusal(text: str) -> None:
    try:
        value = repair(text).value
    except ToolError:
        return
    assert isinstance(value, dict | list)
    assert json.loads(json.dumps(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "f", "arguments": {"sql": "SELECT a FROM t WHERE b IN (1, 2, 3")}}',
        '{"name": "f", "arguments": {"sql": "SELECT a FROM b}"}',
        '{"name": "f", "arguments": {"sql": "SELECT a FROM bo"ks WHERE c = \'d\'"}}',
        '{"name": "f", "arguments": {"sql": \'"SELECT a FROM b"}}',
    ],
)
def test_refuses_to_move_the_end_of_a_value(text: str) -> None:
    with pytest.raises(ToolError, match="more than one reading"):
        repair(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"q": "late post", n": 3}',
        '{"q: "late post", "n": 3}',
        '{"q"": "late post", "n":: 3}',
        '{{"q": "late post", "n": 3}',
    ],
)
def test_mends_marks_around_single_words(text: str) -> None:
    assert repair(text).value == WANT
