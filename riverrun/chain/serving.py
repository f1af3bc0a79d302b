"""The application on a live server: started on a free port for the length of a stage, and checked from outside."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from riverrun.chain.application import Application

__all__ = ["check_server", "serving"]

SECONDS = 120.0


@contextmanager
def serving(application: Application) -> Iterator[str]:
    """The URL of a server of this application on the loopback address."""
    from riverrun.serve.http.app import make_app
    from riverrun.serve.http.server import BackgroundServer

    app = make_app(application.models, title=application.name)
    with BackgroundServer(app, "127.0.0.1", 0) as server:
        yield server.url


def check_server(url: str, application: Application) -> list[dict[str, Any]]:
    """What a client relies on: health, models, the page, an answer, a stream, a tool call. One row a check."""
    with httpx.Client(base_url=url, timeout=SECONDS) as client:
        checker = _Checker(client, application)
        checks = (
            ("health", checker.health),
            ("models", checker.models),
            ("page", checker.page),
            ("answer", checker.answer),
            ("stream", checker.stream),
            ("tools", checker.tools),
            ("agent", checker.agent),
            ("refusal", checker.refusal),
        )
        return [_row(name, check) for name, check in checks]


def _row(name: str, check: Callable[[], str]) -> dict[str, Any]:
    """An empty text is success; anything else says what was found instead."""
    try:
        found = check()
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        found = f"{type(error).__name__}: {error}"
    return {"check": name, "ok": not found, "found": found}


class _Checker:
    def __init__(self, client: httpx.Client, application: Application) -> None:
        self.client, self.application = client, application

    def _ask(self, model: str, **more: Any) -> httpx.Response:
        messages = [{"role": "user", "content": "How many rows are there?"}]
        body = {"model": model, "messages": messages, "max_tokens": 24, "temperature": 0, **more}
        return self.client.post("/v1/chat/completions", json=body)

    def health(self) -> str:
        response = self.client.get("/health")
        return "" if response.status_code == 200 else f"status {response.status_code}"

    def models(self) -> str:
        ids = [model["id"] for model in self.client.get("/v1/models").json()["data"]]
        return "" if ids == list(self.application.models) else f"models {ids}"

    def page(self) -> str:
        response = self.client.get("/")
        ok = response.status_code == 200 and "text/html" in response.headers.get("content-type", "")
        return "" if ok else f"status {response.status_code}, type {response.headers.get('content-type')}"

    def answer(self) -> str:
        response = self._ask(self.application.name)
        if response.status_code != 200:
            return f"status {response.status_code}: {response.text[:200]}"
        body = response.json()
        used = body["usage"]
        total = used["prompt_tokens"] + used["completion_tokens"] == used["total_tokens"]
        return "" if body["choices"][0]["message"]["role"] == "assistant" and total else response.text[:200]

    def stream(self) -> str:
        """The pieces joined must be the answer that comes without streaming (greedy, so the same twice)."""
        whole = self._ask(self.application.name).json()["choices"][0]["message"]["content"] or ""
        response = self._ask(self.application.name, stream=True)
        lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
        if not lines or lines[-1] != "[DONE]":
            return f"the stream ends with {lines[-1:]!r} instead of [DONE]"
        chunks = [json.loads(line) for line in lines[:-1]]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        joined = "".join(delta.get("content") or "" for delta in deltas)
        return "" if joined == whole else f"streamed {joined[:80]!r}, whole {whole[:80]!r}"

    def tools(self) -> str:
        """The model with tools in the request: a well-formed answer, calls with JSON arguments if there are any."""
        tools = [spec.to_openai() for spec in self.application.assistant.specs]
        response = self._ask(self.application.name, tools=tools)
        if response.status_code != 200:
            return f"status {response.status_code}: {response.text[:200]}"
        for call in response.json()["choices"][0]["message"].get("tool_calls") or []:
            if not isinstance(json.loads(call["function"]["arguments"]), dict):
                return f"arguments {call['function']['arguments'][:80]!r} are no object"
        return ""

    def agent(self) -> str:
        response = self._ask(f"{self.application.name}-agent", max_tokens=48)
        ok = response.status_code == 200 and "message" in response.json()["choices"][0]
        return "" if ok else f"status {response.status_code}: {response.text[:200]}"

    def refusal(self) -> str:
        """An unknown model must be refused with a JSON error, not with a crash."""
        response = self._ask("no-such-model")
        ok = 400 <= response.status_code < 500 and "error" in response.json()
        return "" if ok else f"status {response.status_code}: {response.text[:200]}"
