"""SQLite's date and time functions for a server: date('now', '-7 days'), strftime('%Y-%m', ordered), julianday(x)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from riverrun.base.errors import ToolError

__all__ = ["MOMENTS", "moment"]

MOMENTS = frozenset({"date", "datetime", "time", "julianday", "unixepoch", "strftime"})
_FORMATS = {"date": "%Y-%m-%d", "datetime": "%Y-%m-%d %H:%M:%S", "time": "%H:%M:%S"}
_PARTS = {  # https://sqlite.org/lang_datefunc.html
    "postgres": {"Y": "YYYY", "m": "MM", "d": "DD", "H": "HH24", "M": "MI", "S": "SS", "j": "DDD"},
    "mysql": {"Y": "%Y", "m": "%m", "d": "%d", "H": "%H", "M": "%i", "S": "%S", "j": "%j", "w": "%w"},
}
_SHIFT = re.compile(r"([+-]?\d{1,6}) (second|minute|hour|day|month|year)s?")
_NOW = {"postgres": "(now() AT TIME ZONE 'UTC')", "mysql": "UTC_TIMESTAMP()"}
_READ = {
    "postgres": "CASE WHEN _x ~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}' THEN CAST(_x AS TIMESTAMP) END",
    "mysql": "CAST(_x AS DATETIME)",
}
_START = {
    "postgres": {unit: f"DATE_TRUNC('{unit}', _x)" for unit in ("day", "month", "year")},
    "mysql": {
        unit: f"CAST(DATE_FORMAT(_x, '{pattern}') AS DATETIME)"
        for unit, pattern in (("day", "%Y-%m-%d"), ("month", "%Y-%m-01"), ("year", "%Y-01-01"))
    },
}
_SECONDS = {
    "postgres": "CAST(EXTRACT(EPOCH FROM _x) AS DOUBLE PRECISION)",
    "mysql": "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', _x) / 1000000e0)",
}


def moment(dialect: str, name: str, arguments: Sequence[Any]) -> Any:
    """The server's expression for SQLite's function `name` (of MOMENTS) of these arguments."""
    from sqlglot import exp

    arguments = list(arguments)
    pattern = _FORMATS.get(name, "")
    if name == "strftime":
        if not arguments or not (isinstance(arguments[0], exp.Literal) and arguments[0].is_string):
            raise ToolError("strftime() takes a format such as '%Y' and a date")
        pattern = arguments.pop(0).this
    value = _text(arguments[0]) if arguments else "now"
    time = _template(dialect, _NOW[dialect]) if value == "now" else _template(dialect, _READ[dialect], arguments[0])
    for modifier in arguments[1:]:
        time = _modified(dialect, name, time, _text(modifier))
    if name == "julianday":
        return _template(dialect, f"({_SECONDS[dialect]} / 86400e0 + {_number(dialect, '2440587.5')})", time)
    if name == "unixepoch":
        return _template(
            dialect, f"CAST({_SECONDS[dialect]} AS {'BIGINT' if dialect == 'postgres' else 'SIGNED'})", time
        )
    return _format(dialect, pattern, time)


def _text(node: Any) -> str | None:
    from sqlglot import exp

    return str(node.this) if isinstance(node, exp.Literal) and node.is_string else None


def _number(dialect: str, text: str) -> str:
    return f"CAST({text} AS DOUBLE PRECISION)" if dialect == "postgres" else f"{text}e0"


def _modified(dialect: str, name: str, time: Any, modifier: str | None) -> Any:
    text = (modifier or "").strip().lower()
    if found := _SHIFT.fullmatch(text):
        if dialect == "postgres":
            return _template(dialect, f"(_x + INTERVAL '{int(found[1])} {found[2]}')", time)
        return _template(dialect, f"DATE_ADD(_x, INTERVAL {int(found[1])} {found[2]})", time)
    unit = text.removeprefix("start of ")
    if text.startswith("start of ") and unit in _START[dialect]:
        return _template(dialect, _START[dialect][unit], time)
    raise ToolError(
        f"{name}() does not know the modifier {modifier!r} here: use '-7 days', 'start of month' and the like"
    )


def _format(dialect: str, pattern: str, time: Any) -> Any:
    """strftime's pattern in the server's own letters."""
    from sqlglot import exp

    if pattern == "%w" and dialect == "postgres":
        return _template(dialect, "CAST(CAST(EXTRACT(DOW FROM _x) AS INT) AS TEXT)", time)
    out = []
    for found in re.finditer(r"%(.)|([^%]+)|%", pattern):
        part, plain = _PARTS[dialect].get(found[1] or ""), found[2] or ""
        if part is None and not re.fullmatch(r"[-:/., TZ]+", plain):
            raise ToolError(f"strftime() does not know {found[0]!r} here: use %Y, %m, %d, %H, %M, %S and %j")
        out.append(part or (f'"{plain}"' if dialect == "postgres" else plain))
    text = exp.Literal.string("".join(out))
    # Not parsed: sqlglot would translate the letters once more.
    return exp.Anonymous(this="TO_CHAR" if dialect == "postgres" else "DATE_FORMAT", expressions=[time, text])


def _template(dialect: str, text: str, value: Any = None) -> Any:
    """The expression `text` with `value` for _x. Only text of this file is parsed, never the model's."""
    import sqlglot
    from sqlglot import exp

    tree = sqlglot.parse_one(text, read=dialect)
    return tree.transform(lambda n: value.copy() if isinstance(n, exp.Column) and n.name == "_x" else n)
