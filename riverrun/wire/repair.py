"""JSON as models write it, read without guessing.

`repair` accepts strict JSON as it is. Otherwise it mends what has one reading only (fences and prose around an object,
full-width and curly punctuation, Python literals, trailing or missing commas, missing brackets, raw line breaks,
comments, unescaped inner quotes) on top of the json-repair library, then proves the result: the keys and values must
stand in the source, in order, each whole, with nothing but JSON's own punctuation between them. What fails the proof,
or has two readings, is refused with a ToolError whose sentence is meant for the model. No value is invented or dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import json_repair

from riverrun.base.errors import ToolError
from riverrun.wire.proof import proven

__all__ = ["Repaired", "check_keys", "repair"]

MAX_CHARACTERS = 8_000  # longer or deeper texts are read when they are strict JSON, never mended: json-repair takes
MAX_DEPTH = 64  # time that grows with the square of the length, or worse with the depth

_INVISIBLE = re.compile("[\ufeff\u200b\u2060]|(?<![\\w\"'])\u00a0(?![\\w\"'])")
_FENCE = re.compile(r"```[\w-]*(.*?)```", re.DOTALL)
_LATEX = re.compile(r"(\\\\)|(\\u[0-9a-fA-F]{4})|\\([bf](?=[A-Za-z]))|\\([^\"\\/bfnrtu]|u(?![0-9a-fA-F]{4}))")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\([\"\\/bfnrt])")
_THOUSANDS = re.compile(r"[:\[,(=]\s*\d{1,3}(?:,\d{3})+\s*(?:[,}\])\n]|$)")
_FULL_WIDTH = str.maketrans("：，｛｝［］（）＂", ':,{}[]()"')
_QUOTES = {'"': '"', "“": "”", "”": "”", "„": "“"}


@dataclass(frozen=True, slots=True)
class Repaired:
    """The value, what had to be mended, and whether the text ended inside a string, word or number (`truncated`)."""

    value: Any
    edits: tuple[str, ...] = ()
    truncated: bool = False


def repair(text: str, schema: Mapping[str, Any] | None = None) -> Repaired:
    """Read one JSON object or list. `schema` (JSON Schema of an object) makes a mended reading prove its keys, too.

    ToolError when there is no reading or more than one.
    """
    edits: list[str] = []
    body = _unwrap(text.strip(), edits)
    value, truncated = _read(body, edits)
    if isinstance(value, str) and value.strip()[:1] in ("{", "["):
        edits.append("the JSON was encoded twice")
        inner = repair(value, schema)
        return Repaired(inner.value, (*edits, *inner.edits), truncated or inner.truncated)
    if not isinstance(value, dict | list):
        raise ToolError(f"expected a JSON object, got {json.dumps(value, ensure_ascii=False)[:80]}")
    if edits and schema and isinstance(value, dict):
        check_keys(value, schema)
    return Repaired(value, tuple(edits), truncated)


def _unwrap(body: str, edits: list[str]) -> str:
    bare = _INVISIBLE.sub(" ", body).strip() if not _strictly(body) else body
    if bare != body:
        edits.append("removed invisible characters")
    if bare.startswith("```") and (match := _FENCE.fullmatch(bare)):
        edits.append("removed a code fence")
        bare = match[1].strip()
    return bare


def _strictly(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read(body: str, edits: list[str]) -> tuple[Any, bool]:
    """The value and whether the text was cut inside a scalar."""
    if not body:
        raise ToolError("expected a JSON object, got nothing")
    mended = _LATEX.sub(_keep_backslash, body)
    if mended != body:
        edits.append("mended a backslash that is no JSON escape")
        body = mended
    try:
        return _loads(body), False
    except RecursionError:
        raise ToolError("the JSON is nested too deeply") from None
    except ValueError as error:
        first = error
    if len(body) > MAX_CHARACTERS:
        raise ToolError(f"not valid JSON ({first}), and with {len(body)} characters too long to mend")
    body = _pick(body, first, edits)
    try:
        return _loads(body), False
    except ValueError:
        pass
    try:
        value = _loads(body, strict=False)
        edits.append("escaped a line break inside a string")
        return value, False
    except ValueError:
        pass
    return _mend(body, first, edits)


def _loads(text: str, *, strict: bool = True) -> Any:
    return json.loads(text, strict=strict, object_pairs_hook=_unique, parse_constant=_no_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out and out[key] != value:
            raise ToolError(f"the key {key!r} stands twice with different values")
        out[key] = value
    return out


def _no_constant(name: str) -> Any:
    raise ToolError(f"{name} is not a JSON number")


def _keep_backslash(match: re.Match[str]) -> str:
    if match[1] or match[2]:
        return match[0]
    if match[4] in ("'", "_"):
        return str(match[4])
    return "\\\\" + (match[3] or match[4])


def _pick(body: str, error: ValueError, edits: list[str]) -> str:
    """The one object in the text, with prose and fences around it removed."""
    fenced = _FENCE.findall(body)
    if len(fenced) == 1 and fenced[0].strip()[:1] in ("{", "["):
        edits.append("removed a code fence and the text around it")
        return str(fenced[0]).strip()
    found = list(_strict_objects(body))
    if len({json.dumps(value, sort_keys=True) for _, value in found}) > 1:
        raise ToolError(f"there are {len(found)} different JSON objects where one is expected")
    if found:
        source = found[0][0]
        edits.append("removed the text around the JSON")
        return source
    starts = [index for index in (body.find("{"), body.find("[")) if index >= 0]
    if body[0] in "｛［“'\"" or not starts:
        if not starts and body[0] not in "｛［":
            raise ToolError(f"not valid JSON ({error})")
        return body
    start = min(starts)
    end = max(body.rfind("}"), body.rfind("]"))
    if start:
        edits.append("removed the text before the JSON")
    if end > start and body[end + 1 :].strip() and _balanced(body[start : end + 1]):
        edits.append("removed the text after the JSON")
        return body[start : end + 1]
    return body[start:]


def _balanced(text: str) -> bool:
    return text.count("{") <= text.count("}") and text.count("[") <= text.count("]")


def _strict_objects(body: str) -> Iterator[tuple[str, Any]]:
    """Every outermost strict JSON object that is not empty, with its source."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
    index, tries = body.find("{"), 0
    while index >= 0 and tries < 64:
        tries += 1
        try:
            value, end = decoder.raw_decode(body, index)
        except (ValueError, RecursionError):
            if body[:index].strip():  # prose with a brace in it: look further; a broken object is not searched inside
                index = body.find("{", index + 1)
                continue
            return
        if value and not _inside(body, index):
            yield body[index:end], value
        index = body.find("{", end)


def _inside(body: str, index: int) -> bool:
    """Whether a bracket before `index` is still open, so that the object there is only a part of a broken one."""
    before = body[:index]
    return before.count("{") > before.count("}") or before.count("[") > before.count("]")


def _mend(body: str, error: ValueError, edits: list[str]) -> tuple[Any, bool]:
    source = _plain_punctuation(body)
    if source != body:
        edits.append("replaced full-width or curly punctuation")
    bare = _without_comments(source)
    if bare != source:
        edits.append("removed a comment")
    if _depth(bare) > MAX_DEPTH:
        raise ToolError(f"not valid JSON ({error}), and too deep to mend")
    if _THOUSANDS.search(bare):
        raise ToolError("a number with thousands commas has two readings: write it without commas or in quotes")
    try:
        value = json_repair.loads(bare, skip_json_loads=True)
    except (ValueError, RecursionError, IndexError, TypeError):
        raise ToolError(f"not valid JSON ({error})") from None
    if not value or not isinstance(value, dict if bare[:1] == "{" else list):
        raise ToolError(f"not valid JSON ({error})")
    if _empty_strings(value) > bare.count('""') + bare.count("''"):
        raise ToolError(f"not valid JSON ({error}): a value is missing")
    if not proven(value, _ESCAPE.sub(_unescape, bare)):
        raise ToolError(f"not valid JSON ({error}), and it has more than one reading")
    edits.append(f"mended the JSON ({error})")
    return value, _open_string(bare) or bare.rstrip()[-1:] not in ("}", "]", '"', "'", ",")


def _depth(text: str) -> int:
    deepest = depth = 0
    for char in text:
        depth += (char in "{[") - (char in "}]")
        deepest = max(deepest, depth)
    return deepest


def _open_string(text: str) -> bool:
    return len(re.sub(r'\\.|[^"]', "", text, flags=re.DOTALL)) % 2 == 1


def _plain_punctuation(body: str) -> str:
    """Full-width punctuation outside strings and curly quotes around strings as ASCII."""
    out, closing, escaped = [], "", False
    for char in body:
        if closing:
            ends = not escaped and (char == closing or (closing == "”" and char in '“"'))
            if ends:
                out.append('"')
                closing = ""
            else:
                out.append(char)
            escaped = char == "\\" and not escaped
        elif char in _QUOTES:
            closing = _QUOTES[char]
            out.append('"')
        else:
            out.append(char.translate(_FULL_WIDTH))
    return "".join(out)


def _without_comments(body: str) -> str:
    out, index, in_string = [], 0, False
    while index < len(body):
        char = body[index]
        if in_string and char == "\\":
            out.append(body[index : index + 2])
            index += 2
            continue
        if char == '"':
            in_string = not in_string
        if not in_string and body.startswith(("//", "/*"), index):
            mark = "\n" if body[index + 1] == "/" else "*/"
            end = body.find(mark, index)
            index = len(body) if end < 0 else end + (0 if mark == "\n" else 2)
            continue
        out.append(char)
        index += 1
    return "".join(out)


def _empty_strings(value: Any) -> int:
    if isinstance(value, dict):
        return sum(_empty_strings(item) for item in value.values())
    if isinstance(value, list):
        return sum(_empty_strings(item) for item in value)
    return int(value == "")


def _unescape(match: re.Match[str]) -> str:
    if match[1]:
        return chr(int(match[1], 16))
    return {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}.get(match[2], match[2])


def check_keys(value: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """A mended object must have the schema's keys and its required ones, else ToolError."""
    properties = schema.get("properties") or {}
    for key in value:
        if properties and key not in properties:
            raise ToolError(f"after mending the JSON there is an argument {key!r} that does not exist")
    for key in schema.get("required") or ():
        if key not in value:
            raise ToolError(f"the JSON is broken and the required argument {key!r} is missing")
