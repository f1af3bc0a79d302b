"""Bodies drawn from a server's own /openapi.json, whole and changed, and what the server says to them.

A third of the bodies are what the document allows, a third have values changed, a third have bytes changed. Most ask
for the model that is there and for few tokens: a body that is refused at its first field proves little.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

__all__ = ["Outcome", "attack", "bodies"]

USUAL = 0.95
EITHER = ("prompt", "messages", "prefix")
"""One of these is what a body is about."""
TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "request_output_len")
TEXTS = ("", "a", "hello", "你好", "\x00", "<|im_end|>", "{}", "x" * 700, "\U0001f600", "-1", "[a-z]", 'start: "a"')
USUAL_TEXTS = {
    "name": ("shop", "look"),
    "path": ("shop",),
    "file": ("kept",),
    "session_id": ("fuzz-0", "fuzz-1"),
    "role": ("system", "user", "assistant", "tool"),
    "arguments": ("{}", '{"a": "\\ud800"}'),
    "tool_choice": ("auto", "none", "required"),
    "guided_json": ('{"type": "string"}', "{"),
    "guided_regex": ("[a-z]{2}", "(", "(?=a)"),
    "guided_grammar": ('start: "a"', "%%"),
}
NUMBERS = (0, 1, -1, 2, 0.5, 20, 2**31, -(2**63), 2**63 - 1, 10**30, 1e308, 5e-324)
ANYTHING: tuple[Any, ...] = (None, True, [], {}, "", "x", [[]], {"a": 1}, *NUMBERS)


class Dice:
    """Random values of one seed by the schemas of one document."""

    def __init__(self, document: Mapping[str, Any], seed: int, model: str) -> None:
        self.random, self.document, self.model = random.Random(seed), document, model

    def draw(self, schema: Mapping[str, Any], name: str = "", depth: int = 0) -> Any:
        """A value that the schema allows."""
        if "$ref" in schema:
            found: Any = self.document
            for part in schema["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            return self.draw(found, name, depth)
        for key in ("anyOf", "oneOf"):
            if key in schema and "properties" not in schema:
                return self.draw(self.random.choice(schema[key]), name, depth)
        if "const" in schema or "enum" in schema:
            return schema["const"] if "const" in schema else self.random.choice(schema["enum"])
        kinds = schema.get("type", ["object", "string", "integer", "boolean"])
        kind = self.random.choice(kinds) if isinstance(kinds, list) else kinds
        return {
            "object": self.object,
            "array": self.array,
            "string": self.string,
            "integer": self.number,
            "number": self.number,
            "boolean": lambda *_: self.random.random() < 0.5,
            "null": lambda *_: None,
        }[kind](schema, name, depth)

    def object(self, schema: Mapping[str, Any], name: str, depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        wanted = {*schema.get("required", ()), "session_id", "interactive_mode", "content"}
        if either := [key for key in EITHER if key in properties]:
            wanted.add(self.random.choice(either))
        return {
            key: self.draw(each, key, depth + 1)
            for key, each in properties.items()
            if key in wanted or (self.random.random() < (0.3 if depth else 0.12) and key not in EITHER)
        }

    def array(self, schema: Mapping[str, Any], name: str, depth: int) -> list[Any]:
        least = schema.get("minItems", 0)
        count = self.random.randrange(max(least, 1), max(least, 1) + 3) if depth < 5 else least
        return [self.draw(schema.get("items", {}), name, depth + 1) for _ in range(count)]

    def string(self, schema: Mapping[str, Any], name: str, depth: int) -> str:
        usual = self.random.random() < USUAL
        if usual and name == "model":
            return self.model
        if usual and name in USUAL_TEXTS:
            return self.random.choice(USUAL_TEXTS[name])
        return self.random.choice(TEXTS if not usual else TEXTS[1:4])

    def number(self, schema: Mapping[str, Any], name: str, depth: int) -> float:
        whole = schema.get("type", "integer") == "integer"
        if self.random.random() < USUAL:
            most = 8 if name in TOKENS else 2 if name == "n" else schema.get("maximum", 300)
            least = max(schema.get("minimum", schema.get("exclusiveMinimum", -1)), -300)
            value = self.random.uniform(least, most)
            return round(value) if whole else max(value, 0.01) if "exclusiveMinimum" in schema else value
        value = self.random.choice([each for each in NUMBERS if isinstance(each, int) or not whole])
        return value

    def changed(self, value: Any) -> Any:
        """The value with one part of it replaced, left out or put elsewhere."""
        inside = isinstance(value, (dict, list)) and value and self.random.random() < 0.85
        if not inside:
            return self.random.choice(ANYTHING)
        out = value.copy()
        key = self.random.choice(list(out) if isinstance(out, dict) else range(len(out)))
        if self.random.random() < 0.15:
            del out[key]
        elif isinstance(out, dict) and self.random.random() < 0.1:
            out[self.random.choice(("x", "", "model", "stream", "n"))] = out[key]
        else:
            out[key] = self.changed(out[key])
        return out

    def broken(self, payload: bytes) -> bytes:
        """The payload with some of its bytes changed."""
        out = bytearray(payload)
        for _ in range(self.random.randrange(1, 4)):
            at = self.random.randrange(len(out) + 1)
            what = self.random.randrange(4)
            if what == 0:
                out[at:at] = self.random.choice(
                    (b"\xff", b"\\ud800", b"[" * 200, b"{", b'"', b"NaN", b"1e999", b"\x00")
                )
            elif what == 1 and out:
                out[at % len(out)] = self.random.randrange(256)
            elif what == 2:
                del out[at : at + self.random.randrange(1, 9)]
            else:
                out[at:at] = out[at : at + 12]
        return bytes(out)


def bodies(document: Mapping[str, Any], count: int, seed: int, model: str) -> Iterator[tuple[str, bytes]]:
    """(path, body), the routes that take one by turns."""
    schemas = {
        path: operations["post"]["requestBody"]["content"]["application/json"]["schema"]
        for path, operations in document["paths"].items()
        if "post" in operations
    }
    for number in range(count):
        dice = Dice(document, seed * 1_000_003 + number, model)
        path = list(schemas)[number % len(schemas)]
        value, how = dice.draw(schemas[path]), dice.random.randrange(3)
        if how == 1:
            for _ in range(dice.random.randrange(1, 4)):
                value = dice.changed(value)
        payload = json.dumps(value, ensure_ascii=dice.random.random() < 0.5).encode()
        yield path, dice.broken(payload) if how == 2 else payload


@dataclass
class Outcome:
    """What became of the bodies; the lists tell path, body and answer."""

    statuses: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    undocumented: list[str] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def told(self) -> str:
        return ", ".join(f"{name}: {number}" for name, number in sorted(self.statuses.items()))


def attack(url: str, count: int, seed: int, *, model: str = "tiny", seconds: float = 120.0) -> Outcome:
    """Send `count` bodies; one that is not answered after `seconds` hangs. Their sessions are closed again."""
    out = Outcome()
    with httpx.Client(base_url=url, timeout=seconds, trust_env=False) as http:
        document = http.get("/openapi.json").json()
        sessions = set(USUAL_TEXTS["session_id"])
        for path, body in bodies(document, count, seed, model):
            shown, began = f"{path} {body[:600]!r}", time.monotonic()
            try:
                answer = http.post(path, content=body, headers={"Content-Type": "application/json"})
            except httpx.HTTPError as error:
                out.broken.append(f"{shown}: {error!r}")
                continue
            out.slowest = max(out.slowest, time.monotonic() - began)
            out.statuses[str(answer.status_code)] += 1
            problem = _problem(answer, document["paths"][path]["post"]["responses"])
            if answer.status_code >= 500 or '"type": "server_error"' in answer.text:
                out.failed.append(f"{shown}: {answer.status_code} {answer.text[:300]}")
            elif problem:
                out.undocumented.append(f"{shown}: {problem}")
            sessions |= _sessions(answer)
        for name in sessions:
            http.post("/v1/sessions/close", json={"model": model, "session_id": name})
    return out


def _sessions(answer: httpx.Response) -> set[str]:
    """Names of sessions that an answer or its events tell."""
    found = set()
    for line in answer.text.splitlines():
        try:
            value = json.loads(line.removeprefix("data: "))
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("session_id"), str):
            found.add(value["session_id"])
    return found


def _problem(answer: httpx.Response, documented: Mapping[str, Any]) -> str:
    """How an answer differs from the document, as far as its status and its form go; "" when it does not."""
    if str(answer.status_code) not in documented:
        return f"status {answer.status_code} is not in the document"
    if answer.status_code == 200:
        kind = answer.headers["content-type"].partition(";")[0]
        return "" if kind in documented["200"]["content"] else f"{kind} is not in the document"
    error = answer.json().get("error", {})
    return "" if isinstance(error, dict) and error.get("message") else f"no error is told: {answer.text[:200]}"
