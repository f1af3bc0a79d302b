"""A model's SQLite SELECT as one that a PostgreSQL or MySQL server runs, with the same rows.

Parsed by sqlglot; what is not on the lists here is refused, so nothing reaches the server that was not understood. A
table becomes a sub-select of the columns that are used, each as an SQLite value (`riverrun.base.server_tables`): flags
are 0 and 1, dates are text, private columns are not in it. Then what is left of the difference is written out: LIKE is
case-blind, whole numbers divide to whole numbers, text sorts by its bytes, a column beside an aggregate needs no GROUP
BY. Not the same: on MySQL, LIKE is also blind to the case of letters beyond ASCII; a number joined to a text is written
as the server writes it (12, not 12.0); where numbers and texts mix in one column, all are texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from riverrun.agent.tool import clip
from riverrun.agent.tools.sql_moments import MOMENTS
from riverrun.agent.tools.sql_rewrite import Rewriter, kind_of, wrap
from riverrun.base.errors import ToolError
from riverrun.base.optional import require
from riverrun.base.server_tables import ServerTable
from riverrun.base.servers import Server

__all__ = ["Statement", "Translator"]

_NODES = """
Select From Join Where Group Having Order Ordered Limit Offset Distinct Column Identifier Table TableAlias Alias Star
Literal Null Boolean Paren Subquery Union Intersect Except With CTE EQ NEQ GT GTE LT LTE Is Not Neg In Between Like
Escape Add Sub Mul Div Mod DPipe Window WindowSpec Filter DataType Tuple Collate Var NullSafeEQ NullSafeNEQ Anonymous
And Or Exists Case If Cast TsOrDsToTimestamp
"""
_FUNCTIONS = """
Abs Avg Ceil Coalesce Count CumeDist CurrentDate CurrentTime CurrentTimestamp DenseRank Exp FirstValue Floor Greatest
GroupConcat Lag LastValue Lead Least Length Ln Lower Max Min NthValue Ntile Nullif PercentRank Pow Rank Replace Round
RowNumber Sign Sqrt StrPosition Substring Sum TimeToStr Trim Upper Date Datetime Time TsOrDsToDate TsOrDsToTime
"""
NODES, FUNCTIONS = frozenset(_NODES.split()), frozenset(_FUNCTIONS.split())
NAMED = MOMENTS | {"total"}
"""Functions that sqlglot has no class for."""
NODES_MOST = 3_000
"""Parts of a query, and of what its names stand for."""
LISTED = 300
"""Values of one IN (...)."""
JOINED_TEXTS, REPLACED_TEXTS, REPLACEMENT = 16, 4, 16
"""`||` in a query, replace() in a query, characters of a replacement: together they bound how a text can grow."""
CELL_CHARACTERS = 2_000
_ENDS = {
    "FROM",
    "WHERE",
    "GROUP_BY",
    "ORDER_BY",
    "HAVING",
    "LIMIT",
    "UNION",
    "EXCEPT",
    "INTERSECT",
    "SEMICOLON",
    "WINDOW",
}


_ASCII_LOWER = {code: code + 32 for code in range(65, 91)}


def fold(name: str) -> str:
    """A name without case, as SQLite compares names: letters beyond ASCII keep theirs."""
    return name.translate(_ASCII_LOWER)


@dataclass(frozen=True)
class Statement:
    """What the server runs, and the names of its columns as SQLite would say them."""

    sql: str
    columns: tuple[str, ...]


class Translator:
    """Translates for one database. `denied` are (table, column) in lower case. Thread-safe."""

    def __init__(
        self, server: Server, tables: Sequence[ServerTable], denied: frozenset[tuple[str, str]], row_limit: int
    ) -> None:
        require("sqlglot", extra="agent")
        self.server, self.denied, self.row_limit = server, denied, row_limit
        self.tables = {fold(table.name): table for table in tables}
        types = {"integer": "BIGINT", "flag": "BIGINT", "number": "DOUBLE", "text": "TEXT", "blob": "BLOB"}
        self.types: dict[str, dict[str, str]] = {
            name: {fold(field.name): types[field.kind] for field in table.fields} for name, table in self.tables.items()
        }
        self.spelled = {fold(field.name): field.name for table in tables for field in table.fields}

    def translate(self, sql: str) -> Statement:
        """ToolError, written for the model, for what is refused."""
        from sqlglot.errors import OptimizeError, SqlglotError

        try:
            return self._translate(sql)
        except OptimizeError as error:
            column = str(error).split("'")[1:2]
            raise ToolError(f"no such column: {column[0]}" if column else clip(str(error), 200)) from None
        except SqlglotError as error:
            said = str(error).splitlines()[0].partition(". Line")[0]
            raise ToolError(f"the query cannot be read: {clip(said, 160)}") from None
        except RecursionError:
            raise ToolError("the query is nested too deeply: write a simpler one") from None

    def _translate(self, sql: str) -> Statement:
        import sqlglot
        from sqlglot import exp
        from sqlglot.optimizer.annotate_types import annotate_types
        from sqlglot.optimizer.qualify import qualify
        from sqlglot.schema import MappingSchema

        if "\0" in sql:
            raise ToolError("the query holds a NUL character: leave it out")
        parsed = [tree for tree in sqlglot.parse(sql, read="sqlite") if tree is not None]
        if len(parsed) != 1:
            raise ToolError("only one statement is allowed: write one SELECT" if parsed else "write one SELECT")
        tree: Any = parsed[0]
        self._check(tree)
        written = {
            fold(name.name): name.name for name in tree.find_all(exp.Identifier)
            if isinstance(name.parent, exp.Alias | exp.TableAlias)
        }  # fmt: skip
        self._name_columns(tree, sql, written)
        schema = MappingSchema(dict(self.types), dialect="sqlite", normalize=False)
        self._settle_aliases(tree)
        tree = qualify(tree, schema=schema, dialect="sqlite", quote_identifiers=True)
        tree = annotate_types(tree, schema=schema, dialect="sqlite")
        self._refuse_private(tree)
        names = self.spelled | written
        columns = tuple(names.get(fold(item.alias_or_name), item.alias_or_name) for item in tree.selects)
        rewriter = Rewriter(self.server)
        rewriter.rewrite(tree)
        tree = self._bound(tree)
        self._replace_tables(tree)
        return Statement(tree.sql(self.server.dialect, comments=False), columns)

    def _check(self, tree: Any) -> None:
        from sqlglot import exp

        if not isinstance(tree, exp.Query):
            raise ToolError("only SELECT is allowed: write one SELECT")
        ctes = {fold(cte.alias) for cte in tree.find_all(exp.CTE)}
        for count, node in enumerate(tree.walk()):
            if count > NODES_MOST:
                raise ToolError("the query is too long: write a simpler one")
            kind = type(node).__name__
            if kind == "Anonymous" and node.name.lower() not in NAMED:
                raise ToolError(f"function {node.name}() is not allowed")
            if isinstance(node, exp.Func) and kind not in NODES and kind not in FUNCTIONS:
                raise ToolError(f"function {node.sql_name().lower()}() is not allowed")
            if kind not in NODES and kind not in FUNCTIONS:
                raise ToolError(f"{kind.upper()} is not allowed: write one plain SELECT")
            if isinstance(node, exp.With) and node.args.get("recursive"):
                raise ToolError("WITH RECURSIVE is not allowed: join the table to itself")
            if isinstance(node, exp.In) and len(node.expressions) > LISTED:
                raise ToolError(f"IN takes at most {LISTED} values: join a table instead")
            if isinstance(node, exp.Table):
                self._check_table(node, ctes)
        if len(list(tree.find_all(exp.DPipe))) > JOINED_TEXTS or len(list(tree.find_all(exp.Replace))) > REPLACED_TEXTS:
            raise ToolError("the query joins or replaces too many texts: select the columns themselves")
        for node in tree.find_all(exp.Replace):
            other = node.args.get("replacement")
            if not isinstance(other, exp.Literal) or len(other.this) > REPLACEMENT:
                raise ToolError(f"replace() takes a text of at most {REPLACEMENT} characters here")

    def _check_table(self, table: Any, ctes: set[str]) -> None:
        from sqlglot import exp

        if not isinstance(table.this, exp.Identifier):
            raise ToolError(f"table-valued functions are not allowed: read the tables {', '.join(self._names())}")
        if table.db.lower() == "main" and not table.catalog:
            table.set("db", None)
        if table.db or (fold(table.name) not in ctes and fold(table.name) not in self.tables):
            raise ToolError(f"no such table: {f'{table.db}.' if table.db else ''}{table.name}")

    def _names(self) -> list[str]:
        return sorted(table.name for table in self.tables.values())

    def _name_columns(self, tree: Any, sql: str, written: dict[str, str]) -> None:
        """Expressions of the first SELECT are named by their own text; "abc" that is no name is a text."""
        from sqlglot import exp

        first = tree
        while not isinstance(first, exp.Select):
            first = first.this
        texts = _projections(sql)
        for index, item in enumerate(first.expressions):
            if not isinstance(item, exp.Alias | exp.Column | exp.Star) and len(texts) == len(first.expressions):
                written[fold(texts[index])] = texts[index]
                item.replace(exp.alias_(item.copy(), texts[index], quoted=True))
        known = set(self.spelled) | set(written)
        for column in list(tree.find_all(exp.Column)):
            alone = isinstance(column.this, exp.Identifier) and column.this.quoted and not column.table
            if alone and fold(column.name) not in known:
                column.replace(exp.Literal.string(column.name))

    def _settle_aliases(self, tree: Any) -> None:
        """SQLite takes a name for a column first, then for what SELECT calls so; ORDER BY x the other way round.

        sqlglot would take the alias first, also inside of SELECT, where it is none (and grows without end).
        """
        from sqlglot import exp
        from sqlglot.optimizer.scope import traverse_scope

        budget = NODES_MOST
        outputs: dict[int, set[str]] = {}
        for scope in traverse_scope(tree):
            select = scope.expression
            if not isinstance(select, exp.Select):
                first = select
                while isinstance(first, exp.SetOperation | exp.Subquery):
                    first = first.this
                outputs[id(select)] = outputs.get(id(first), set())
                continue
            owners: dict[str, list[str]] = {}
            found: dict[str, Any] = dict(scope.sources)
            for alias, source in found.items():
                table = isinstance(source, exp.Table)
                known = self.types[fold(source.name)] if table else outputs.get(id(source.expression), ())
                for name in known:
                    owners.setdefault(name, []).append(alias)
            stars = set(owners) if any(item.is_star for item in select.expressions) else set()
            outputs[id(select)] = {fold(item.alias_or_name) for item in select.expressions} | stars
            aliases = {fold(item.alias): item.this for item in select.expressions if isinstance(item, exp.Alias)}
            for column in list(select.find_all(exp.Column)) if aliases else ():
                name = fold(column.name)
                if column.table or name not in aliases or column.parent_select is not select:
                    continue
                clause = column.find_ancestor(exp.Where, exp.Group, exp.Having, exp.Order, exp.Select)
                if isinstance(clause, exp.Order) and isinstance(column.parent, exp.Ordered) and clause.parent is select:
                    continue
                if len(owners.get(name, ())) == 1:
                    column.set("table", exp.to_identifier(owners[name][0], quoted=True))
                elif name in owners or isinstance(clause, exp.Select):
                    raise ToolError(f"no such column: {column.name}")
                else:
                    budget -= len(list(aliases[name].walk()))
                    if budget < 0:
                        raise ToolError("the query is too long: write a simpler one")
                    whole = isinstance(column.parent, exp.Where | exp.Group | exp.Having)
                    column.replace(aliases[name].copy() if whole else exp.Paren(this=aliases[name].copy()))

    def _refuse_private(self, tree: Any) -> None:
        """Stars, NATURAL and USING are written out by now."""
        from sqlglot import exp
        from sqlglot.optimizer.scope import traverse_scope

        for scope in traverse_scope(tree) if self.denied else ():
            for column in scope.columns:
                source = scope.sources.get(column.table)
                table = self.tables[fold(source.name)] if isinstance(source, exp.Table) else None
                spelled = next((f.name for f in table.fields if fold(f.name) == fold(column.name)), "") if table else ""
                if table and (table.name.lower(), spelled.lower()) in self.denied:
                    raise ToolError(
                        f"column {table.name}.{spelled} is private: leave it out and name the columns you need"
                    )

    def _bound(self, tree: Any) -> Any:
        """At most one row more than is returned; long texts that are computed are cut on the server."""
        from sqlglot import exp

        limit, most = tree.args.get("limit"), self.row_limit + 1
        if limit is not None:
            text = limit.expression.sql("sqlite")
            if not text.lstrip("-").isdigit():
                raise ToolError("LIMIT takes a whole number here")
            most = min(most, int(text)) if int(text) >= 0 else most
        offset = tree.args.get("offset")
        if offset is not None and not offset.expression.sql("sqlite").isdigit():
            raise ToolError("OFFSET takes a whole number here")
        tree.set("limit", exp.Limit(expression=exp.Literal.number(most)))
        seen: set[str] = set()
        for index, item in enumerate(tree.expressions if isinstance(tree, exp.Select) else ()):
            name = item.alias_or_name
            if name in seen:
                item.set("alias", exp.to_identifier(f"{name[:20]}_{index}", quoted=True))
            seen.add(name)
            if isinstance(item, exp.Alias) and not isinstance(item.this, exp.Column) and kind_of(item.this) == "text":
                wrap(
                    item.this,
                    lambda node: exp.Anonymous(
                        this="LEFT", expressions=[node, exp.Literal.number(CELL_CHARACTERS + 1)]
                    ),
                )
        return tree

    def _replace_tables(self, tree: Any) -> None:
        import sqlglot
        from sqlglot import exp
        from sqlglot.optimizer.scope import traverse_scope

        used: dict[str, set[str]] = {}
        for column in tree.find_all(exp.Column):
            used.setdefault(fold(column.table), set()).add(fold(column.name))
        found = [
            (alias, source)
            for scope in traverse_scope(tree)
            for alias, source in scope.sources.items()
            if isinstance(source, exp.Table)
        ]
        for alias, source in found:
            table = self.tables[fold(source.name)]
            fields = [
                f"{f.sql} AS {self.server.quote(fold(f.name))}"
                for f in table.fields
                if fold(f.name) in used.get(fold(alias), ()) and (table.name.lower(), f.name.lower()) not in self.denied
            ]
            text = f"SELECT {', '.join(fields) or '1 AS one'} FROM {table.path}"
            inner = sqlglot.parse_one(text, read=self.server.dialect)
            joins = source.args.get("joins")
            source.replace(
                exp.Subquery(this=inner, alias=exp.TableAlias(this=exp.to_identifier(alias, quoted=True)), joins=joins)
            )


def _projections(sql: str) -> list[str]:
    """The texts between the first SELECT outside of parentheses and its FROM, as they are written."""
    from sqlglot import TokenType as Kind
    from sqlglot import tokenize

    depth, start, last = 0, -1, -1
    out: list[str] = []
    for token in tokenize(sql, read="sqlite"):
        depth += (token.token_type == Kind.L_PAREN) - (token.token_type == Kind.R_PAREN)
        if start < 0:
            if depth == 0 and token.token_type == Kind.SELECT:
                start = token.end + 1
            continue
        if depth == 0 and token.token_type in (Kind.DISTINCT, Kind.ALL) and not out and last < 0:
            start = token.end + 1
            continue
        ends = token.token_type.name in _ENDS
        if depth == 0 and (token.token_type == Kind.COMMA or ends):
            out.append(sql[start : token.start].strip())
            start = token.end + 1
            if ends:
                return out
        last = token.end
    return [*out, sql[start : last + 1].strip()] if start >= 0 else []
