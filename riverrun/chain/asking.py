"""Questions nobody prepared, answered through a run's own server: what was said, the SQL, its rows, the page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riverrun.base.errors import InputError, RiverrunError
from riverrun.base.protocols import Completion, LanguageModel, Request
from riverrun.base.types import Message, SamplingParams
from riverrun.chain.application import open_application
from riverrun.chain.serving import serving
from riverrun.chain.spec import AppSpec
from riverrun.chain.stage import Parts, read_json

__all__ = ["AskedQuestion", "ask_run", "read_asked"]

CONCURRENCY = 16


@dataclass(frozen=True)
class AskedQuestion:
    """One question; the id is its line's number unless one was given."""

    id: str
    question: str


def read_asked(path: Path) -> list[AskedQuestion]:
    """Questions of a JSON-lines file; keys other than id and question (a gold answer, say) are the file's own business.

    InputError names the line that is none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"--questions {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--questions {path} is not UTF-8 text: {error}") from None
    out = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: not a JSON object ({error})") from None
        if not isinstance(value, dict) or not isinstance(value.get("question"), str) or not value["question"].strip():
            raise InputError(f'{where}: an object {{"question": "..."}} is needed, got {line.strip()[:80]}')
        out.append(AskedQuestion(str(value.get("id", number)), value["question"]))
    if not out:
        raise InputError(f"--questions {path} holds no question: write one JSON object a line")
    return out


def ask_run(
    run: Path, questions: Sequence[AskedQuestion], *, database: Path | str = "", parts: Parts | None = None
) -> Iterator[dict[str, Any]]:
    """Start the run's server, ask its agent, yield an answer a question in the order given.

    An answer holds id, question, answer, sql, rows (of the last query), more (whether rows were cut), page and pages
    (of the last search), error; what was not used is null. A question that fails has an error and stops no other.
    """
    from riverrun.serve.client import RemoteModel

    with open_application(run, database=database, parts=parts) as application, serving(application) as url:
        spec = AppSpec.model_validate(read_json(run / "deploy" / "server.json")["spec"])
        params = SamplingParams(max_tokens=spec.evaluate.max_tokens)
        with RemoteModel(f"{url}/v1", f"{application.name}-agent") as remote, ThreadPoolExecutor(CONCURRENCY) as pool:
            yield from pool.map(lambda asked: _ask(remote, asked, params), questions)


def _ask(model: LanguageModel, asked: AskedQuestion, params: SamplingParams) -> dict[str, Any]:
    """One question; an error of the server becomes the answer's error."""
    request = Request(messages=(Message.of("user", asked.question),), params=params)
    row: dict[str, Any] = {"id": asked.id, "question": asked.question, "answer": "", "sql": None, "rows": None,
                           "more": None, "page": None, "pages": None, "error": ""}  # fmt: skip
    try:
        (completion,) = model.generate([request])
    except RiverrunError as error:
        return row | {"error": str(error)}
    return row | _evidence(completion)


def _evidence(completion: Completion) -> dict[str, Any]:
    """The answer with its last query and its last search; a query that failed is its error."""
    found: dict[str, Any] = {"answer": completion.message.text.strip()}
    for step in completion.steps:
        arguments: Mapping[str, Any] = step.get("arguments") or {}
        given = step.get("data")
        data: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
        failed = str(step.get("content") or "") if step.get("is_error") else ""
        if "sql" in arguments:
            found |= {
                "sql": data.get("sql") or arguments["sql"],
                "rows": data.get("rows"),
                "more": data.get("more"),
                "error": failed,
            }
        elif "query" in arguments:
            pages = list(data.get("pages") or ())
            found |= {"page": pages[0] if pages else None, "pages": pages, "error": failed}
        else:
            found["error"] = failed or f"unknown tool {step.get('tool')}"
    return found
