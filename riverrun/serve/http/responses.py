"""OpenAI's Responses API: POST /v1/responses, and what was kept of it by id.

A response is kept in memory only (`responses_store`), and found by the API key that made it alone. An answer that
failed, or whose client went away, is not kept. Not offered: background, conversations, built-in tools, images, files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response

from riverrun.serve.http.desk import HttpDesk, key_of, read_request
from riverrun.serve.http.openai import add_post
from riverrun.serve.http.reading import invalid, unsupported
from riverrun.serve.http.responses_body import ResponsesBody, responses_request
from riverrun.serve.http.responses_events import ResponseEvents, response_head
from riverrun.serve.http.responses_items import Item, read_input
from riverrun.serve.http.responses_store import ResponseStore, Stored
from riverrun.web.errors import HttpError, json_bytes

__all__ = ["add_responses"]

PATH = "/v1/responses"
_PAGE, _LONGEST_PAGE = 20, 100


def add_responses(app: FastAPI, desk: HttpDesk, store: ResponseStore | None = None) -> None:
    """Mount the routes; `store` keeps the responses."""
    routes = _Routes(desk, store or ResponseStore())
    add: Callable[..., None] = app.add_api_route
    one = f"{PATH}/{{response_id}}"
    add_post(app, PATH, routes.create, ResponsesBody, "Answer a conversation, in items")
    add(one, routes.retrieve, methods=["GET"], response_model=None, summary="A response that was kept")
    add(one, routes.delete, methods=["DELETE"], response_model=None, summary="Forget a response")
    add(f"{one}/input_items", routes.input_items, methods=["GET"], response_model=None, summary="What it answers")


class _Routes:
    def __init__(self, desk: HttpDesk, store: ResponseStore) -> None:
        self.desk, self.store = desk, store

    async def create(self, request: Request) -> Response:
        body = await read_request(request, ResponsesBody)
        place, key = self.desk.find(body.model), key_of(request)
        before = self._previous(key, body.previous_response_id)
        said: Sequence[Item] = before.conversation if before else ()
        new = read_input(body.input, said)
        asked = responses_request(body, [*said, *new], key=key)

        def keep(response: dict[str, Any]) -> None:
            if body.store:
                self.store.keep(key, response, new, before)

        events = ResponseEvents(response_head(body), keep)
        if body.stream:
            return self.desk.stream(request, place, [asked], events)
        [done] = await self.desk.run(request, place, [asked])
        return _json(events.whole(done))

    async def retrieve(self, request: Request, response_id: str) -> Response:
        _query(request)
        return _json(self._find(request, response_id).body)

    async def delete(self, request: Request, response_id: str) -> Response:
        _query(request)
        if not self.store.delete(key_of(request), response_id):
            raise _unknown(response_id)
        return _json({"id": response_id, "object": "response", "deleted": True})

    async def input_items(self, request: Request, response_id: str) -> Response:
        """A page of the whole conversation that the response answers."""
        given = _query(request, "limit", "order", "after")
        limit, order, after = given.get("limit", str(_PAGE)), given.get("order", "desc"), given.get("after")
        if not re.fullmatch("[0-9]{1,3}", limit) or not 1 <= int(limit) <= _LONGEST_PAGE:
            raise invalid("limit", limit, f"give 1 to {_LONGEST_PAGE}")
        if order not in ("asc", "desc"):
            raise invalid("order", order, "give asc or desc")
        items = list(self._find(request, response_id).items)
        items = items if order == "asc" else items[::-1]
        if after is not None:
            places = [place for place, item in enumerate(items) if item["id"] == after]
            if not places:
                raise invalid("after", after, "no item of this response has this id")
            items = items[places[0] + 1 :]
        page = items[: int(limit)]
        ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
        return _json({"object": "list", "data": page, **ends, "has_more": len(page) < len(items)})

    def _previous(self, key: str, name: str) -> Stored | None:
        found = self.store.get(key, name) if name else None
        if name and found is None:
            raise HttpError(
                400, f"{_missing(name)}: send the whole conversation", code="previous_response_not_found",
                param="previous_response_id",
            )  # fmt: skip
        return found

    def _find(self, request: Request, name: str) -> Stored:
        found = self.store.get(key_of(request), name)
        if found is None:
            raise _unknown(name)
        return found


def _unknown(name: str) -> HttpError:
    return HttpError(404, _missing(name), code="not_found", param="response_id")


def _missing(name: str) -> str:
    return f"there is no response '{name[:80]}': it was not kept, or not for this key, or is forgotten by now"


def _query(request: Request, *known: str) -> dict[str, str]:
    """The parameters behind the path; others than the known ones are refused."""
    given = dict(request.query_params)
    for name, value in given.items():
        if name not in known:
            raise unsupported(name, value, f"known: {', '.join(known) or 'none'}")
    return given


def _json(value: Any) -> Response:
    return Response(json_bytes(value), media_type="application/json")
