"""Chat templates as programs of a stranger: jinja in a sandbox, with the names that transformers gives them, bounded.

What `apply_chat_template` offers is offered here: `tojson` without escapes, `raise_exception`, `strftime_now`, loop
controls, `{% generation %}` (source: transformers, utils/chat_template_utils.py). Attributes with underscores, changes
of what is handed in, loops without end and texts without end are refused; errors show the template's line.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from riverrun.base.errors import ConfigError, InputError
from riverrun.models.opaque import Opaque, finalize, guard_filter, guard_test

__all__ = ["GENERATION", "TemplateCode"]

MAX_STEPS = 1_000_000
"""Turns of all loops of one rendering."""
MAX_LENGTH = 16 << 20
"""Characters of a rendered text, and of any text on the way there."""
MAX_ITEMS = 1 << 18
"""Items of a list that an expression makes."""
MAX_NUMBER = 1_000_000
"""Largest number handed to a filter or a method (widths, counts)."""
GENERATION = ("\ufdd4", "\ufdd5")
"""Written around what stands in a `{% generation %}` block when a rendering is tracked."""
_BUDGET = "_budget"
_WIDTH = re.compile(r"\d{6,}")


class _Budget:
    """Steps that one rendering has left."""

    def __init__(self, track: bool) -> None:
        self.steps, self.track = MAX_STEPS, track

    def each(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.steps -= 1
            if self.steps < 0:
                raise SecurityError(f"its loops take more than {MAX_STEPS} turns")
            yield value


class _Guard(Extension):
    """The `generation` tag, and what loops and `~` are compiled to."""

    tags = {"generation"}  # noqa: RUF012 - the name and form that jinja asks for

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("marked", [nodes.ContextReference()])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def marked(self, context: Any, caller: Callable[[], str]) -> str:
        opened, closed = GENERATION if context.parent[_BUDGET].track else ("", "")
        return opened + caller() + closed

    def each(self, context: Any, values: Any) -> Any:
        budget: _Budget = context.parent[_BUDGET]
        return _Sized(values, budget) if hasattr(values, "__len__") else budget.each(values)

    def joined(self, *parts: Any) -> str | Opaque:
        if any(isinstance(part, Opaque) for part in parts):
            return Opaque._joined(*parts)
        texts = [str(part) for part in parts]
        _fits(sum(map(len, texts)))
        return "".join(texts)


class _Sized:
    """A counted iterable that still knows its length, as `loop.length` and `loop.last` want it."""

    def __init__(self, values: Any, budget: _Budget) -> None:
        self._values, self._budget = values, budget

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return self._budget.each(self._values)


class _Rewrite(NodeTransformer):
    """Puts the guard between a loop and what it goes over, and into `~`."""

    def __init__(self, guard: _Guard) -> None:
        self._guard = guard

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        inside: list[Any] = [nodes.ContextReference(), node.iter]
        node.iter = self._guard.call_method("each", inside).set_lineno(node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._guard.call_method("joined", list(node.nodes)).set_lineno(node.lineno)

    def visit_NSRef(self, node: nodes.NSRef) -> nodes.Node:  # noqa: N802
        if node.attr.startswith("_"):
            raise TemplateSyntaxError(f"a namespace cannot hold '{node.attr}'", node.lineno)
        return node


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox with bounds on what one operation may make."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, *, opaque: bool = False) -> None:
        more: dict[str, Any] = {"finalize": finalize} if opaque else {}
        extensions = ["jinja2.ext.loopcontrols", _Guard]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, **more)
        self.filters = {name: _guarded(name, function) for name, function in self.filters.items()}
        self.filters["tojson"] = _guarded("tojson", _tojson)
        if opaque:
            self.filters = {name: guard_filter(name, function) for name, function in self.filters.items()}
            self.tests = {name: guard_test(name, cast(Any, test)) for name, test in self.tests.items()}
        self.globals = {name: value for name, value in self.globals.items() if name != "lipsum"}
        self.globals |= {"raise_exception": _raise, "strftime_now": _now, "dict": _dict}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _fits(len(left) + len(right), left)
        elif operator in ("*", "**") and numbers:
            _fits(left.bit_length() * max(right, 0) if operator == "**" else left.bit_length() + right.bit_length())
        elif operator == "*":
            times, items = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(times, int) and hasattr(items, "__len__"):
                _fits(len(items) * max(times, 0), items)
        elif operator == "%" and isinstance(left, str):
            _check_width(left)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
        _check(getattr(method, "__name__", ""), getattr(method, "__self__", None), *args, *kwargs.values())
        return super().call(context, function, *args, **kwargs)


def _guarded(name: str, function: Any) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        own = args[1:] if hasattr(function, "jinja_pass_arg") else args
        _check(name, *own, *kwargs.values())
        return function(*args, **kwargs)

    return call


def _check(name: str, value: Any = None, *args: Any) -> None:
    """Refuse a method or filter that would make a text without end."""
    for number in args:
        if isinstance(number, int) and abs(number) > MAX_NUMBER:
            raise SecurityError(f"{name} is asked for {number}, at most {MAX_NUMBER} is allowed")
    if not isinstance(value, str):
        if name == "join" and hasattr(value, "__len__"):
            _fits(sum(len(str(item)) for item in value) + len(value) * sum(len(str(arg)) for arg in args))
        return
    if name in ("format", "format_map"):
        _check_width(value)
    elif name == "replace":
        _fits((len(value) + 1) * max((len(arg) for arg in args if isinstance(arg, str)), default=1))
    elif name == "join" and args and hasattr(args[0], "__len__"):
        _fits(sum(len(str(item)) for item in args[0]) + len(args[0]) * len(value))


def _check_width(text: str) -> None:
    if _WIDTH.search(text):
        raise SecurityError("a format asks for a width or a precision of six digits")


def _fits(size: int, value: Any = "") -> None:
    limit = MAX_LENGTH if isinstance(value, str) else MAX_ITEMS
    if size > limit:
        raise SecurityError(f"it makes a text or a list of {size}, at most {limit} is allowed")


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> Any:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


class TemplateCode:
    """One compiled template. `names` are the variables it asks for, `tracks` says whether it has generation blocks,
    `captures` whether it works on texts it has written. `opaque` compiles it for contents that are `Opaque`."""

    def __init__(self, source: str, *, opaque: bool = False) -> None:
        self.source = source
        environment = _Sandbox(opaque=opaque)
        try:
            tree = environment.parse(source)
            # what these write is a plain text, in which an opaque one could no longer be told from a literal
            captures = (nodes.Macro, nodes.CallBlock, nodes.AssignBlock, nodes.FilterBlock)
            self.captures = next(tree.find_all(captures), None) is not None
            self.names = frozenset(find_undeclared_variables(tree))
            guard = environment.extensions[_Guard.identifier]
            assert isinstance(guard, _Guard)
            self._template = environment.from_string(_Rewrite(guard).visit(tree))
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            raise ConfigError(f"the chat template is not valid jinja {self._line(line)}: {error.message}") from None
        except (RecursionError, MemoryError, SyntaxError):
            raise ConfigError("the chat template is not valid jinja: it is nested too deeply") from None
        self.tracks = re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", source) is not None

    def render(self, values: Mapping[str, Any], *, track: bool = False) -> str:
        """The text; InputError with the template's line and words when it refuses the values or fails."""
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate({**values, _BUDGET: _Budget(track)}):
                size += len(part)
                _fits(size)
                parts.append(part)
        except TemplateError as error:
            raise InputError(f"the chat template refused these messages {self._where(error)}: {error}") from None
        except Exception as error:  # a template can do anything that an expression can do wrong
            kind = type(error).__name__
            raise InputError(f"the chat template failed {self._where(error)}: {kind}: {error}") from None
        return "".join(parts)

    def _where(self, error: BaseException) -> str:
        line, frame = None, error.__traceback__
        while frame is not None:  # jinja gives the frames of a template its own lines
            if frame.tb_frame.f_code.co_filename == "<template>":
                line = frame.tb_lineno
            frame = frame.tb_next
        return self._line(line)

    def _line(self, number: int | None) -> str:
        lines = self.source.splitlines()
        if number is None or not 0 < number <= len(lines):
            return f"(line {number or '?'})"
        text = lines[number - 1].strip()
        return f"(line {number}: {text[:120]}{'...' if len(text) > 120 else ''})"
