"""Cases that schemathesis makes from a server's /openapi.json, right ones and wrong ones, and what became of them.

Called as `schemathesis_cases.py JOB.json ANSWER.json` by bench/soak/fuzz.py in the peer's environment. The job:
url, known (texts that are known to the server, by field), cases, seed, seconds (of a request at most). Most bodies get
known names and few tokens to write, else nearly every case would end at a name.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
GET, POST = 1, 8
"""Cases of a route with and without a body, as shares."""
ROUNDS = 10
"""Through all routes, so that what one makes (sessions, adapters) is there for the others."""
USUAL = 0.9
"""Of the bodies that ask for what is there, and for few tokens."""
MOST_TOKENS, MOST_ANSWERS = 8, 2
SHOWN = 40
_SESSION = re.compile(rb'"session_id": ?("(?:[^"\\]|\\.)*")')


class Cases:
    """Sends cases and counts what comes back."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.http = requests.Session()
        self.http.trust_env = False
        self.statuses: Counter[str] = Counter()
        self.modes: Counter[str] = Counter()
        self.told: dict[str, list[str]] = {"failed": [], "broken": [], "hung": [], "undocumented": []}
        self.counts: Counter[str] = Counter()
        self.sessions: set[str] = set()
        self.slowest = 0.0

    @property
    def sent(self) -> int:
        return self.modes.total()

    def run(self, operation: Any, mode: GenerationMode, count: int, seed: int) -> None:
        """`count` cases of one operation at most; fewer where there are no more."""

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(operation.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            self.send(case, mode.value)

        send()

    def send(self, case: Any, mode: str) -> None:
        self.modes[mode] += 1
        case.body = self.usual(case.body)
        shown = f"{case.method} {case.path} {str(case.body)[:600]} {dict(case.headers or {})}"
        began = time.monotonic()
        try:
            response = case.call(session=self.http, timeout=self.job["seconds"])
        except requests.Timeout as error:
            self.tell("hung", f"{shown}: {error!r}")
            return
        except requests.exceptions.InvalidHeader:  # schemathesis drew what no client can send
            self.statuses["not sent"] += 1
            return
        except requests.RequestException as error:
            self.tell("broken", f"{shown}: {error!r}")
            return
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.statuses[str(response.status_code)] += 1
        for found in _SESSION.findall(response.content):
            self.sessions.add(json.loads(found))
        if response.status_code >= 500 or b'"type": "server_error"' in response.content:
            self.tell("failed", f"{shown}: {response.status_code} {response.text[:300]}")
        try:
            case.validate_response(response, checks=CHECKS)
        except FailureGroup as group:
            what = "; ".join(f"{type(each).__name__} {each.message}" for each in group.exceptions)
            self.tell("undocumented", f"{shown}: {response.status_code} {what[:300]} {response.text[:200]}")

    def tell(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        if len(self.told[kind]) < SHOWN:
            self.told[kind].append(text)

    def usual(self, body: Any) -> Any:
        """The body, most often for what is there and with little to write."""
        dice = random.Random(f"{self.job['seed']} {self.sent}")
        if not isinstance(body, dict) or dice.random() > USUAL:
            return body
        out = {key: whole(value) for key, value in body.items()}
        for name, values in self.job["known"].items():
            if isinstance(out.get(name), str):
                out[name] = dice.choice(values)
        for name, most in (("max_tokens", MOST_TOKENS), ("max_completion_tokens", MOST_TOKENS), ("n", MOST_ANSWERS),
                           ("request_output_len", MOST_TOKENS), ("max_output_tokens", MOST_TOKENS)):  # fmt: skip
            if isinstance(out.get(name), int) and not isinstance(out[name], bool) and out[name] > most:
                out[name] = out[name] % most + 1
        return out


def whole(value: Any) -> Any:
    """1.0 as 1: both are integers by JSON Schema, the server takes the second alone."""
    if isinstance(value, list):
        return [whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    location = f"{job['url']}/openapi.json"
    own = requests.Session()
    own.trust_env = False
    faults = [error.message for error in OpenAPIV31SpecValidator(own.get(location, timeout=30).json()).iter_errors()]
    operations = [found.ok() for found in schemathesis.openapi.from_url(location).get_all_operations()]
    cases, shares = Cases(job), {each: GET if each.method == "get" else POST for each in operations}
    parts, seed = 2 * ROUNDS * sum(shares.values()), int(job["seed"])
    for number in range(ROUNDS):
        for operation, share in shares.items():
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                cases.run(operation, mode, max(1, job["cases"] * share // parts), seed + number)
        print(f"{cases.sent} cases: {dict(cases.statuses)}", flush=True)
    bodies = [operation for operation, share in shares.items() if share == POST]
    for number in range(1, 1000):  # what small routes left over
        if (left := job["cases"] - cases.sent) <= 0:
            break
        mode = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)[number % 2]
        for operation in bodies:
            cases.run(operation, mode, max(1, left // len(bodies)), seed + ROUNDS + number)
    answer = {
        "cases": cases.sent,
        "operations": len(operations),
        "modes": dict(cases.modes),
        "statuses": dict(cases.statuses),
        "counts": dict(cases.counts),
        "told": cases.told,
        "faults": faults,
        "sessions": sorted(cases.sessions),
        "slowest": cases.slowest,
    }
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
