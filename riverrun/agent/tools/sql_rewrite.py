"""What SQLite means and a server would read otherwise, written out on a parsed and typed query (sqlglot's tree)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from riverrun.agent.tools.sql_moments import MOMENTS, moment
from riverrun.base.errors import ToolError
from riverrun.base.servers import Server

__all__ = ["Rewriter", "kind_of", "wrap"]

_KINDS = {
    "text": {"TEXT", "VARCHAR", "CHAR", "NVARCHAR", "NCHAR"},
    "integer": {"INT", "BIGINT", "SMALLINT", "TINYINT", "UBIGINT"},
    "number": {"DOUBLE", "FLOAT", "DECIMAL"},
    "bool": {"BOOLEAN"},
}
_COMPARED = frozenset({"EQ", "NEQ", "GT", "GTE", "LT", "LTE", "NullSafeEQ", "NullSafeNEQ"})
_PREDICATES = _COMPARED | {"Is", "Like", "ILike", "RegexpLike", "Escape", "In", "Between", "Exists", "And", "Or", "Not"}
_ON_TEXT = frozenset({"Lower", "Upper", "Trim", "Replace", "StrPosition", "Substring", "DPipe"})
_TYPES = {
    "postgres": {"text": "TEXT", "integer": "BIGINT", "number": "DOUBLE PRECISION"},
    "mysql": {"text": "CHAR", "integer": "SIGNED", "number": "DOUBLE"},
}


def kind_of(node: Any) -> str:
    """text, integer, number, bool, or "" where it is not known."""
    name = type(node).__name__
    if name in ("Paren", "Alias", "Collate", "Window", "Filter"):
        return kind_of(node.this)
    if name in _PREDICATES:
        return "bool"
    if name in ("DPipe", "GroupConcat"):
        return "text"
    kind = node.type.this.name if node.type is not None else ""
    return next((key for key, names in _KINDS.items() if kind in names), "")


def wrap(node: Any, make: Callable[[Any], Any], kind: str = "") -> Any:
    """Put `make(node)` where the node stands; the node itself stays in the tree, below it."""
    from sqlglot import exp

    place = exp.Null()
    node.replace(place)
    made = make(node)
    if kind:
        made.type = exp.DataType.build(
            {"text": "text", "integer": "bigint", "number": "double", "bool": "boolean"}[kind]
        )
    place.replace(made)
    return made


class Rewriter:
    """For one server's dialect; `rewrite` changes the tree."""

    def __init__(self, server: Server) -> None:
        self.server, self.postgres = server, server.dialect == "postgres"

    def rewrite(self, tree: Any) -> None:
        from sqlglot import exp

        for select in list(tree.find_all(exp.Select)):
            self._order(select)
        for select in list(tree.find_all(exp.Select)):
            self._group(select)
        for node in list(tree.walk(bfs=False))[::-1]:
            rule = getattr(self, f"_on_{type(node).__name__.lower()}", None)
            if rule is not None:
                rule(node)
            elif type(node).__name__ in _COMPARED:
                self._compare(node)
            if type(node).__name__ in _ON_TEXT:
                self._as_texts(node)
        if self.postgres:
            self._booleans(tree)
        for select in list(tree.find_all(exp.Select)):
            self._sort(select)
        for literal in list(tree.find_all(exp.Literal)) if not self.postgres else ():
            self._literal(literal)

    # -- clauses

    def _order(self, select: Any) -> None:
        """ORDER BY says the expression instead of its name, unless it is a column's."""
        from sqlglot import exp

        order = select.args.get("order")
        named = {item.alias: item.this for item in select.expressions if isinstance(item, exp.Alias)}
        for column in list(order.find_all(exp.Column)) if order is not None else ():
            if not column.table and column.name in named and column.parent_select is select:
                column.replace(named[column.name].copy())

    def _group(self, select: Any) -> None:
        """A column neither grouped nor in an aggregate: of the row of MIN or MAX, else the least of the group."""
        from sqlglot import exp

        group = select.args.get("group")
        groups = list(group.expressions) if group is not None else []
        parts = [
            *select.expressions,
            *(a for a in (select.args.get("having"), select.args.get("order")) if a is not None),
        ]
        aggregates: list[Any] = []
        bare: list[Any] = []

        def visit(node: Any) -> None:
            if any(node == key for key in groups) or isinstance(node, exp.Query | exp.Subquery):
                return
            inside = node.this if isinstance(node, exp.Filter) else node
            windowed = isinstance(inside.parent if inside is node else node.parent, exp.Window)
            total = isinstance(inside, exp.Anonymous) and inside.name.lower() == "total"
            if (isinstance(inside, exp.AggFunc) or total) and not windowed:
                aggregates.append(inside)
                return
            if isinstance(node, exp.Column):
                bare.append(node)
            for child in list(node.iter_expressions()):
                visit(child)

        for part in parts:
            visit(part.this if isinstance(part, exp.Alias) else part)
        if not aggregates and group is None:
            return
        extremes = [node for node in aggregates if isinstance(node, exp.Max | exp.Min)]
        one = extremes[0] if len({node.sql() for node in extremes}) == 1 else None
        outer = {column.table for column in bare} - {source.alias_or_name for source in self._sources(select)}
        for column in bare:
            if column.table in outer or not column.table:
                continue
            if one is None:
                kind = kind_of(column)
                wrap(column, lambda node: exp.Min(this=node), kind)
            elif self.postgres:
                wrap(column, lambda node: self._at_extreme(node, one), kind_of(column))
            else:
                raise ToolError(
                    f"column {column.name} stands beside {one.key.upper()}() without GROUP BY: "
                    f"write ORDER BY ... LIMIT 1 for the row of the extreme"
                )

    def _sources(self, select: Any) -> list[Any]:
        found = [select.args["from_"].this] if select.args.get("from_") is not None else []
        return found + [join.this for join in select.args.get("joins") or ()]

    def _at_extreme(self, column: Any, extreme: Any) -> Any:
        import sqlglot
        from sqlglot import exp

        down = "DESC" if isinstance(extreme, exp.Max) else "ASC"
        text = f"(ARRAY_AGG(_x ORDER BY _y {down} NULLS LAST))[1]"
        tree = sqlglot.parse_one(text, read="postgres")
        values = {"_x": column, "_y": extreme.this.copy()}
        return tree.transform(lambda n: values.get(n.name, n) if isinstance(n, exp.Column) and not n.table else n)

    def _sort(self, select: Any) -> None:
        """Text by its bytes also where the column keeps the server's collation."""

        order = select.args.get("order")
        if order is None or select.args.get("distinct"):
            return
        for ordered in order.expressions:
            if kind_of(ordered.this) == "text":
                wrap(ordered.this, self._bytes)

    def _bytes(self, node: Any) -> Any:
        from sqlglot import exp

        name = exp.to_identifier("C", quoted=True) if self.postgres else exp.Var(this="utf8mb4_bin")
        return exp.Collate(
            this=node if isinstance(node, exp.Column | exp.Func) else exp.Paren(this=node), expression=name
        )

    # -- values

    def _cast(self, node: Any, kind: str) -> Any:
        """The value as text, integer or number, where it is not that already."""
        from sqlglot import exp

        if kind_of(node) == kind and not isinstance(node, exp.Avg):
            return node
        if kind == "number" and not self.postgres:
            return wrap(node, lambda n: exp.Paren(this=exp.Add(this=n, expression=exp.Literal.number("0e0"))), kind)
        to = exp.DataType.build(_TYPES[self.server.dialect][kind], dialect=self.server.dialect)
        return wrap(node, lambda n: exp.Cast(this=n, to=to), kind)

    def _as_texts(self, node: Any) -> None:
        for name in ("this", "expression", "substr"):
            part = node.args.get(name)
            if hasattr(part, "replace") and kind_of(part) in ("integer", "number"):
                self._cast(part, "text")

    def _literal(self, node: Any) -> None:
        from sqlglot import exp

        if (
            node.is_string
            and node.this
            and not isinstance(node.parent, exp.GroupConcat | exp.Introducer | exp.Anonymous)
        ):
            code = exp.HexString(this=node.this.encode().hex())
            node.replace(exp.Introducer(this="_utf8mb4", expression=code))

    def _on_literal(self, node: Any) -> None:
        from sqlglot import exp

        if node.is_string or node.this.isdigit() or isinstance(node.parent, exp.Limit | exp.Offset):
            return
        if self.postgres:
            wrap(node, lambda n: exp.Cast(this=n, to=exp.DataType.build("DOUBLE")), "number")
        elif "e" not in node.this.lower():
            node.set("this", f"{node.this}e0")

    def _on_avg(self, node: Any) -> None:
        inner = node.this.expressions[0] if type(node.this).__name__ == "Distinct" else node.this
        self._cast(inner, "number")

    def _on_sum(self, node: Any) -> None:
        from sqlglot import exp

        inner = node.this.expressions[0] if isinstance(node.this, exp.Distinct) else node.this
        if kind_of(inner) == "text":
            inner = self._cast(inner, "number")
        if kind_of(inner) in ("integer", "bool"):
            holder = node
            while isinstance(holder.parent, exp.Window | exp.Filter):
                holder = holder.parent
            to = exp.DataType.build(_TYPES[self.server.dialect]["integer"], dialect=self.server.dialect)
            wrap(holder, lambda n: exp.Cast(this=n, to=to), "integer")

    def _on_anonymous(self, node: Any) -> None:
        from sqlglot import exp

        name = node.name.lower()
        if name == "total":
            inner = self._cast(node.expressions[0], "number")
            zero = exp.Literal.number("0e0")
            node.replace(exp.Coalesce(this=exp.Sum(this=inner.copy()), expressions=[zero]))
        elif name in MOMENTS:
            self._moment(node, name, node.expressions)

    def _moment(self, node: Any, name: str, arguments: list[Any]) -> None:
        from sqlglot import exp

        made = moment(self.server.dialect, name, arguments)
        if len(list(made.walk())) > 400:  # the argument stands in it twice
            raise ToolError(f"{name}() of so long a value is not allowed: give it a column")
        made.type = exp.DataType.build({"julianday": "double", "unixepoch": "bigint"}.get(name, "text"))
        node.replace(made)

    def _on_timetostr(self, node: Any) -> None:
        inner = node.this
        while type(inner).__name__ == "TsOrDsToTimestamp":
            inner = inner.this
        self._moment(node, "strftime", [node.args["format"], inner])

    def _on_date(self, node: Any) -> None:
        self._moment(node, "date", [part for part in (node.this, *node.expressions) if part is not None])

    def _on_tsordstodate(self, node: Any) -> None:
        self._moment(node, "date", [node.this])

    def _on_datetime(self, node: Any) -> None:
        self._moment(node, "datetime", [part for part in (node.this, node.args.get("expression")) if part is not None])

    def _on_time(self, node: Any) -> None:
        self._moment(node, "time", [part for part in (node.this, node.args.get("zone")) if part is not None])

    def _on_tsordstotime(self, node: Any) -> None:
        self._moment(node, "time", [node.this])

    def _on_currentdate(self, node: Any) -> None:
        self._moment(node, "date", [])

    def _on_currenttime(self, node: Any) -> None:
        self._moment(node, "time", [])

    def _on_currenttimestamp(self, node: Any) -> None:
        self._moment(node, "datetime", [])

    def _on_groupconcat(self, node: Any) -> None:
        from sqlglot import exp

        separator = node.args.get("separator")
        if separator is not None and not (isinstance(separator, exp.Literal) and separator.is_string):
            raise ToolError("group_concat() takes a text as separator here")
        text = separator.this if separator is not None else ","
        plain = exp.Literal.string(text) if self.postgres or not text else exp.HexString(this=text.encode().hex())
        node.set("separator", plain)
        inner = node.this.expressions[0] if isinstance(node.this, exp.Distinct) else node.this
        self._cast(inner, "text")

    def _on_round(self, node: Any) -> None:
        """Half away from zero and a number with a point, also of a whole one."""
        from sqlglot import exp

        exact = exp.DataType.build("DECIMAL" if self.postgres else "DECIMAL(50, 15)", dialect=self.server.dialect)
        wrap(node.this, lambda n: exp.Cast(this=n, to=exact))
        node.type = exp.DataType.build("decimal")
        if self.postgres:
            wrap(node, lambda n: exp.Cast(this=n, to=exp.DataType.build("DOUBLE")), "number")
        else:
            zero = exp.Literal.number("0e0")
            wrap(node, lambda n: exp.Paren(this=exp.Add(this=n, expression=zero)), "number")

    def _on_length(self, node: Any) -> None:
        from sqlglot import exp

        if kind_of(node.this) in ("integer", "number"):
            self._cast(node.this, "text")
        blob = node.this.type is not None and node.this.type.this.name in ("BLOB", "VARBINARY")
        if not self.postgres and not blob:
            node.replace(exp.Anonymous(this="CHAR_LENGTH", expressions=[node.this.copy()]))

    def _on_substring(self, node: Any) -> None:
        """A start below zero counts from the end."""
        from sqlglot import exp

        start = node.args.get("start")
        if self.postgres and isinstance(start, exp.Neg) and isinstance(start.this, exp.Literal):
            size = start.this.copy()
            node.set("start", exp.Literal.number(1))
            wrap(node.this, lambda n: exp.Anonymous(this="RIGHT", expressions=[n, size]), "text")
            if node.args.get("length") is None:
                node.set("length", size.copy())

    def _on_filter(self, node: Any) -> None:
        """MySQL has no FILTER: what the condition leaves out is NULL."""
        from sqlglot import exp

        if self.postgres:
            return
        inner, condition = node.this, node.expression.this
        value = inner.this if inner.this is not None and not isinstance(inner.this, exp.Star) else exp.Literal.number(1)
        if isinstance(value, exp.Distinct):
            raise ToolError("FILTER with DISTINCT is not allowed here: write WHERE")
        inner.set("this", exp.Case(ifs=[exp.If(this=condition.copy(), true=value.copy())]))
        node.replace(inner.copy())

    def _on_min(self, node: Any) -> None:
        if self.postgres and kind_of(node.this) == "text":
            wrap(node.this, self._bytes)

    _on_max = _on_min

    def _on_div(self, node: Any) -> None:
        from sqlglot import exp

        if not self.postgres and kind_of(node.this) == kind_of(node.expression) == "integer":
            node.replace(exp.IntDiv(this=node.this.copy(), expression=node.expression.copy()))
        for side in (node.this, node.expression):
            if kind_of(side) == "text":
                self._cast(side, "number")

    def _on_mod(self, node: Any) -> None:
        from sqlglot import exp

        for side in (node.this, node.expression):
            if kind_of(side) == "number":
                self._cast(side, "integer")
        if self.postgres:
            wrap(node.expression, lambda n: exp.Nullif(this=n, expression=exp.Literal.number(0)), "integer")

    def _on_cast(self, node: Any) -> None:
        """CAST of a text takes the number it begins with; of a number to an integer cuts the fraction off."""
        from sqlglot import exp

        name = node.to.this.name
        want = next((kind for kind, names in _KINDS.items() if name in names and kind != "bool"), "")
        if not want:
            raise ToolError(f"CAST to {name} is not allowed: use TEXT, INTEGER or REAL")
        if want != "text" and self.postgres and kind_of(node.this) == "text":
            digits = "^ *([+-]?[0-9]{1,18})" if want == "integer" else r"^ *([+-]?[0-9]+[.]?[0-9]*)"
            found = wrap(
                node.this, lambda n: exp.Anonymous(this="SUBSTRING", expressions=[n, exp.Literal.string(digits)])
            )
            wrap(found, lambda n: exp.Coalesce(this=n, expressions=[exp.Literal.string("0")]))
        elif want == "integer" and kind_of(node.this) == "number":
            trunc = [exp.Literal.number(0)] if not self.postgres else []
            wrap(
                node.this,
                lambda n: exp.Anonymous(this="TRUNC" if self.postgres else "TRUNCATE", expressions=[n, *trunc]),
            )
        if want == "number" and not self.postgres:
            node.replace(exp.Paren(this=exp.Add(this=node.this.copy(), expression=exp.Literal.number("0e0"))))
            return
        node.set("to", exp.DataType.build(_TYPES[self.server.dialect][want], dialect=self.server.dialect))

    def _on_coalesce(self, node: Any) -> None:
        self._unify([node.this, *node.expressions])

    def _on_case(self, node: Any) -> None:
        values = [branch.args["true"] for branch in node.args["ifs"]]
        self._unify([*values, *([node.args["default"]] if node.args.get("default") is not None else [])])

    def _on_if(self, node: Any) -> None:
        if type(node.parent).__name__ != "Case" and node.args.get("false") is not None:
            self._unify([node.args["true"], node.args["false"]])

    def _unify(self, nodes: list[Any]) -> None:
        """Branches of one type: text where one is."""
        if any(kind_of(node) == "text" for node in nodes):
            for node in nodes:
                if kind_of(node) in ("integer", "number"):
                    self._cast(node, "text")

    # -- conditions

    def _compare(self, node: Any) -> None:
        from sqlglot import exp

        left, right = node.this, node.expression
        self._alike(left, right)
        if self.postgres and isinstance(node, exp.GT | exp.GTE | exp.LT | exp.LTE) and kind_of(node.this) == "text":
            wrap(node.this, self._bytes)

    def _alike(self, left: Any, right: Any) -> None:
        """A number beside a text: a text that is a number is read as one, else the number is written as text."""
        from sqlglot import exp

        kinds = kind_of(left), kind_of(right)
        if "text" not in kinds or not {"integer", "number", "bool"} & set(kinds):
            return
        text, other = (left, right) if kinds[0] == "text" else (right, left)
        if isinstance(text, exp.Literal) and not isinstance(other, exp.Literal) and _is_number(text.this):
            text.replace(exp.Literal.number(text.this.strip()))
        elif kind_of(other) != "bool":
            self._cast(other, "text")

    def _on_in(self, node: Any) -> None:
        for item in list(node.expressions):
            self._alike(node.this, item)

    def _on_between(self, node: Any) -> None:
        for bound in (node.args["low"], node.args["high"]):
            self._alike(node.this, bound)
        if self.postgres and kind_of(node.this) == "text":
            wrap(node.this, self._bytes)

    def _on_is(self, node: Any) -> None:
        from sqlglot import exp

        if isinstance(node.expression, exp.Null):
            return
        if isinstance(node.expression, exp.Boolean):
            zero, true = exp.Literal.number(0), bool(node.expression.this)
            value = exp.Coalesce(this=node.this.copy(), expressions=[exp.Literal.number(0 if true else 1)])
            node.replace((exp.NEQ if true else exp.EQ)(this=value, expression=zero))
            return
        made = exp.NullSafeEQ(this=node.this.copy(), expression=node.expression.copy())
        node.replace(made)
        self._compare(made)

    def _on_like(self, node: Any) -> None:
        """Blind to case, on the value's text; nothing escapes unless ESCAPE says so."""
        from sqlglot import exp

        for side in (node.this, node.expression):
            if kind_of(side) != "text":
                self._cast(side, "text")
        if self.postgres:
            wrap(node.this, self._bytes)
            made = exp.ILike(**node.copy().args)  # NOT LIKE is one of them
        else:
            for side in (node.this, node.expression):
                wrap(side, lambda n: exp.Lower(this=n), "text")
            made = node.copy()
        escaped = isinstance(node.parent, exp.Escape)
        node.replace(made if escaped else exp.Escape(this=made, expression=exp.Literal.string("")))

    def _on_collate(self, node: Any) -> None:
        from sqlglot import exp

        name = node.expression.name.upper()
        if name == "NOCASE":
            node.replace(exp.Lower(this=node.this.copy()))
        elif name == "BINARY":
            node.replace(node.this.copy())
        else:
            raise ToolError(f"COLLATE {name} is not allowed: use NOCASE or BINARY")

    def _on_subquery(self, node: Any) -> None:
        """A query as a value is its first row's."""
        from sqlglot import exp

        beside = exp.From | exp.Join | exp.In | exp.Exists | exp.SetOperation | exp.With | exp.CTE | exp.Subquery
        if isinstance(node.parent, beside) or node.parent is None or not isinstance(node.this, exp.Select):
            return
        if node.this.args.get("limit") is None:
            node.this.set("limit", exp.Limit(expression=exp.Literal.number(1)))

    def _booleans(self, tree: Any) -> None:
        """SQLite's conditions are numbers; PostgreSQL takes a condition where one belongs, and nowhere else."""
        from sqlglot import exp

        for node in list(tree.walk(bfs=False)):
            if not isinstance(node, exp.Condition | exp.Paren) or isinstance(node, exp.Query):
                continue
            wanted, given = _condition_belongs(node), kind_of(node) == "bool"
            if isinstance(node, exp.Paren) or (isinstance(node.parent, exp.Escape)):
                continue
            if isinstance(node, exp.Boolean):
                if not wanted:
                    node.replace(exp.Literal.number(int(bool(node.this))))
            elif type(node).__name__ in _PREDICATES and not wanted:
                wrap(node, lambda n: exp.Cast(this=n, to=exp.DataType.build("INT")), "integer")
            elif wanted and not given and not isinstance(node, exp.Null):
                wrap(node, lambda n: exp.NEQ(this=n, expression=exp.Literal.number(0)), "bool")


def _condition_belongs(node: Any) -> bool:
    """Whether a condition, not a value, is wanted where the node stands."""
    from sqlglot import exp

    parent = node.parent
    if isinstance(parent, exp.Paren):
        return _condition_belongs(parent)
    if isinstance(parent, exp.Where | exp.Having | exp.And | exp.Or | exp.Not):
        return True
    if isinstance(parent, exp.Join):
        return bool(node.arg_key == "on")
    if isinstance(parent, exp.If):
        simple = isinstance(parent.parent, exp.Case) and parent.parent.this is not None
        return bool(node.arg_key == "this" and not simple)
    return False


def _is_number(text: str) -> bool:
    body = text.strip().lstrip("+-").replace(".", "", 1)
    return body.isascii() and body.isdigit()
