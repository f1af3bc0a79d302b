"""Checks around an agent: on what comes in, on each tool call, on the text that goes out.

Thin on purpose: patterns, not understanding. A pattern finds addresses and numbers in their usual forms, not
"ada at x dot org", and it does not judge whether a text is abusive.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from riverrun.base.types import Message, ToolCall

__all__ = ["DenyCalls", "Guard", "MaskContacts", "Outlet"]


class Guard:
    """Override what is needed. `by_sentence`: check_output gives the same whether it sees a text whole or sentence
    by sentence, so that answers can still be streamed."""

    by_sentence = False

    def check_input(self, messages: Sequence[Message]) -> str:
        """ "" to go on, or the answer to give instead of asking the model."""
        return ""

    def check_call(self, call: ToolCall) -> str:
        """ "" to go on, or why the call is refused, as the model reads it."""
        return ""

    def check_output(self, text: str) -> str:
        """The text as it may be shown."""
        return text


class MaskContacts(Guard):
    """E-mail addresses and telephone numbers in answers become "[email]" and "[phone]"; `allow` are shown (the shop's
    own). A telephone number has 9 to 15 digits with usual separators; dates, prices, shorter numbers and numbers in a
    row ("10001 10002") stay."""

    by_sentence = True
    _EMAIL = re.compile(r"[\w.+%-]+@[\w-]+(?:\.[\w-]+)+")
    _PHONE = re.compile(r"(?<![\w.,@-])\+?(?:\(\d{1,5}\)|\d)(?:(?:[ /()-]{0,2}|\.)\d){4,14}(?![\w@]|[.,]\d)")
    _DATE = re.compile(r"((?<![\d-])(?:19|20)\d\d-[01]\d-[0-3]\d(?![\d-]))")

    def __init__(self, allow: Sequence[str] = ()) -> None:
        self.allow = frozenset(_bare(item) for item in allow)

    def check_output(self, text: str) -> str:
        text = self._EMAIL.sub(lambda found: self._mask(found[0], "[email]"), text)
        parts = self._DATE.split(text)  # dates stand at the odd places
        parts[::2] = [self._PHONE.sub(lambda found: self._mask(found[0], "[phone]"), part) for part in parts[::2]]
        return "".join(parts)

    def _mask(self, found: str, mark: str) -> str:
        if _bare(found) in self.allow or (mark == "[phone]" and not _is_phone(found)):
            return found
        return mark


def _is_phone(found: str) -> bool:
    if not 9 <= len(_bare(found)) <= 15 or re.fullmatch(r"\d+\.\d+", found):
        return False
    return found[0] in "+0(" or " " not in found or bool(re.search(r"[-/.(]", found))


def _bare(text: str) -> str:
    return text.lower() if "@" in text else re.sub(r"\D", "", text)


class DenyCalls(Guard):
    """Refuses calls of a tool ("" for any) whose arguments, as JSON, match a pattern."""

    def __init__(self, pattern: str, reason: str, *, tool: str = "") -> None:
        self.pattern, self.reason, self.tool = re.compile(pattern, re.IGNORECASE), reason, tool

    def check_call(self, call: ToolCall) -> str:
        if self.tool and call.name != self.tool:
            return ""
        text = json.dumps(call.arguments, ensure_ascii=False)
        return self.reason if self.pattern.search(text) else ""


class Outlet:
    """Lets the text of one turn out through the guards: at once without guards, by sentence or whole with them.
    White space around the text stays behind."""

    _END = re.compile(r"(?:[.!?][\"'”’)]*\s|\n)(?=\S)")

    def __init__(self, guards: Sequence[Guard]) -> None:
        self.guards = [guard for guard in guards if type(guard).check_output is not Guard.check_output]
        self.by_sentence = all(guard.by_sentence for guard in self.guards)
        self.held = ""
        self.begun = False

    def feed(self, text: str) -> str:
        self.held += text
        if not self.begun:
            self.held = self.held.lstrip()
        if not self.guards:
            ready = len(self.held.rstrip())
        elif self.by_sentence:
            ready = max((found.end() for found in self._END.finditer(self.held)), default=0)
        else:
            ready = 0
        out, self.held = self.held[:ready], self.held[ready:]
        return self._check(out)

    def close(self) -> str:
        out, self.held = self.held.rstrip(), ""
        return self._check(out)

    def _check(self, text: str) -> str:
        self.begun = self.begun or bool(text)
        for guard in self.guards if text else ():
            text = guard.check_output(text)
        return text
