"""Random and changed messages for every method of riverrun.proto, and what a server says to them.

Half of the payloads are messages with random fields, half are such messages with bytes changed, cut, doubled or put
in. They go through plain calls that send bytes and return bytes, so that what no client library would send is sent too.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from riverrun.base.optional import require
from riverrun.serve.grpc.messages import SERVICE, descriptor, message

__all__ = ["Outcome", "attack", "payloads"]

MUTATED = 0.5
USUAL = 0.95
"""Of the fields that have usual values, those that get one of them: a request that is wrong at once proves little."""
MOST = 3
"""Items of a list."""
REFUSALS = {"INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNIMPLEMENTED"}
"""How a request may be refused; anything else is an error of the server."""
GONE = {"UNAVAILABLE"}
INTEGERS = (0, 1, 2, 3, 7, 20, 127, 300, 319, 320, 10**6, 2**31 - 1, -1, -2, -(2**31))
LONGS = (*INTEGERS, 2**63 - 1, -(2**63))
DOUBLES = (0.0, 0.5, 1.0, 2.0, -1.0, 100.0, 1e308, -1e308, 5e-324, math.inf, -math.inf, math.nan)
WORDS = ("", "a", "hello", "你好", "\x00", "<|im_end|>", "<tool_call>", "{}", "[1]", '{"type": "object"}', "%", "(",
         '"\\ud800"', "你" * 9000, "\U0001f600", "x" * 700, "\n\r\t", "-1", "0", "[a-z]{2}", 'start: "a"',
         "\ufeff", "a\u0301")  # fmt: skip
SCHEMAS = ('{"type": "object"}', '{"type": "string"}', "{}", "{", "true", "[]", '{"type": 5}', '{"$ref": "#/x"}',
           '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}')  # fmt: skip
ARGUMENTS = ("{}", '{"a": 1}', '{"a": "\\ud800"}', "[]", "{", "1" * 5000, "[" * 3000, '{"a": NaN}')
SESSIONS = ("fuzz-0", "fuzz-1", "fuzz-2")
USUAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "role": ("system", "user", "assistant", "tool"),
    "arguments": ARGUMENTS,
    "parameters": SCHEMAS,
    "json_schema": SCHEMAS,
    "regex": ("[a-z]{1,3}", "(", "a*", "\\d+", "(a|b)+c", "[", "(?=a)", "a{1000}"),
    "grammar": ('start: "a" | "b"', "start: x", "", "start: /a+/", 'start: start "a"', "%%"),
    "max_tokens": (1, 2, 3, 5, 8),
    "min_tokens": (0, 1),
    "temperature": (0.0, 0.7, 1.0, 2.0),
    "top_p": (0.1, 1.0),
    "min_p": (0.0, 0.1),
    "top_k": (0, 1, 40, 10**6),
    "repetition_penalty": (0.5, 1.0, 1.3),
    "presence_penalty": (-2.0, 0.0, 2.0),
    "frequency_penalty": (-2.0, 0.0, 2.0),
    "no_repeat_ngram": (0, 1, 3, 10**6),
    "logprobs": (0, 2, 20),
    "prompt_logprobs": (0, 2, 20),
    "timeout_seconds": (0.0, 60.0),
    "pooling": ("", "mean", "last"),
    "session_id": SESSIONS,
    "request_id": ("", "mine"),
    "forced_tools": ("look", "find"),
    "name": ("look", "find", ""),
}


class Dice:
    """Random messages of one seed."""

    def __init__(self, seed: int, model: str) -> None:
        self.random, self.model = random.Random(seed), model

    def message(self, kind: Any, depth: int = 0) -> Any:
        """A message of this descriptor with some of its fields."""
        out = message(kind.name)()
        for each in kind.fields:
            wanted = each.name in ("model", "prompt", "messages", "texts", "continuations", "ids")
            if self.random.random() > (0.85 if wanted else 0.3 if depth else 0.45):
                continue
            if each.message_type is not None and each.message_type.GetOptions().map_entry:
                for _ in range(self.random.randrange(MOST)):
                    getattr(out, each.name)[self.value(each.message_type.fields_by_name["key"])] = self.bias()
            elif each.is_repeated:
                items = [self.item(each, depth) for _ in range(self.random.randrange(1, MOST + 1))]
                getattr(out, each.name).extend(items)
            elif each.message_type is not None:
                getattr(out, each.name).CopyFrom(self.message(each.message_type, depth + 1))
            else:
                setattr(out, each.name, self.value(each))
        return out

    def item(self, each: Any, depth: int) -> Any:
        return self.message(each.message_type, depth + 1) if each.message_type is not None else self.value(each)

    def bias(self) -> float:
        return self.random.choice((-100.0, 0.0, 5.5, 100.0) if self.random.random() < USUAL else DOUBLES)

    def value(self, each: Any) -> Any:
        """A value of a plain field."""
        usual = self.random.random() < USUAL
        if each.name == "model" and usual:
            return self.model
        if each.name in USUAL_VALUES and usual:
            return self.random.choice(USUAL_VALUES[each.name])
        kinds: dict[int, Callable[[], Any]] = {
            each.CPPTYPE_BOOL: lambda: self.random.random() < 0.5,
            each.CPPTYPE_STRING: self.text,
            each.CPPTYPE_DOUBLE: lambda: self.random.choice(DOUBLES),
            each.CPPTYPE_INT64: lambda: self.random.choice(LONGS),
            each.CPPTYPE_INT32: lambda: self.random.choice(INTEGERS if not usual else INTEGERS[:8]),
        }
        return kinds[each.cpp_type]()

    def text(self) -> str:
        if self.random.random() < 0.7:
            return self.random.choice(WORDS)
        return "".join(chr(self.random.choice((32, 65, 97, 0x4F60, 0x1F600, 7, 0x301))) for _ in range(5))

    def changed(self, payload: bytes) -> bytes:
        """A payload that is no longer what a library wrote."""
        out = bytearray(payload)
        for _ in range(self.random.randrange(1, 5)):
            at = self.random.randrange(len(out) + 1)
            what = self.random.randrange(5)
            if what == 0 and out:
                out[at % len(out)] = self.random.randrange(256)
            elif what == 1:
                out[at:at] = self.random.randbytes(self.random.randrange(1, 6))
            elif what == 2:
                del out[at : at + self.random.randrange(1, 8)]
            elif what == 3:
                out[at:at] = out[: self.random.randrange(len(out) + 1)]
            else:
                out = out[:at]
        return bytes(out)


def payloads(count: int, seed: int, model: str) -> Iterator[tuple[str, bytes, bool]]:
    """(method, payload, whether its bytes were changed), the methods by turns."""
    methods = list(descriptor().services_by_name["Riverrun"].methods)
    for number in range(count):
        dice = Dice(seed * 1_000_003 + number, model)
        method = methods[number % len(methods)]
        payload = dice.message(method.input_type).SerializeToString()
        changed = dice.random.random() < MUTATED
        yield method.name, dice.changed(payload) if changed else payload, changed


@dataclass
class Outcome:
    """What became of the calls; `failed` and `broken` tell the method and the payload of each."""

    codes: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    slowest: float = 0.0
    sessions: set[str] = field(default_factory=set)

    @property
    def told(self) -> str:
        return ", ".join(f"{name}: {number}" for name, number in sorted(self.codes.items()))


def attack(address: str, count: int, seed: int, *, model: str = "tiny", seconds: float = 120.0) -> Outcome:
    """Send `count` payloads; a call that is not over after `seconds` hangs. Sessions it opened are closed again."""
    grpc = require("grpc", extra="grpc")
    out = Outcome()
    with grpc.insecure_channel(address) as channel:
        calls = {
            method.name: (channel.unary_stream if method.server_streaming else channel.unary_unary)(
                f"/{SERVICE}/{method.name}"
            )
            for method in descriptor().services_by_name["Riverrun"].methods
        }
        for method, payload, changed in payloads(count, seed, model):
            began = time.monotonic()
            try:
                reply = calls[method](payload, timeout=seconds)
                if not isinstance(reply, bytes):
                    reply = b"".join(reply)
                if method == "OpenSession":
                    out.sessions.add(message("Session").FromString(reply).session_id)
                code = "OK"
            except grpc.RpcError as error:
                code = error.code().name
                hung = code == "DEADLINE_EXCEEDED" and time.monotonic() - began >= seconds
                if hung or code in GONE:
                    out.broken.append(f"{method} {payload.hex()}: {code} {error.details()}")
                elif code not in REFUSALS:
                    out.failed.append(f"{method} {payload.hex()}: {code} {error.details()}")
            out.slowest = max(out.slowest, time.monotonic() - began)
            out.codes[f"{code}, bytes changed" if changed else code] += 1
        for name in out.sessions:
            try:
                calls["CloseSession"](message("Session")(session_id=name).SerializeToString(), timeout=seconds)
            except grpc.RpcError as error:  # the attack closed it itself
                out.codes[f"closing: {error.code().name}"] += 1
    return out
