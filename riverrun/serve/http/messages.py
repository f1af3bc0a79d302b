"""Anthropic's Messages API: POST /v1/messages and /v1/messages/count_tokens.

Not offered: images, documents, built-in tools, citations, a budget of thinking, an answer begun by the client.
"""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from riverrun.serve.aside import run_in_thread
from riverrun.serve.http.desk import HttpDesk, key_of, read_request
from riverrun.serve.http.messages_body import CountBody, MessagesBody, messages_request
from riverrun.serve.http.messages_events import MessageEvents
from riverrun.serve.http.openai import add_post
from riverrun.web.errors import json_bytes

__all__ = ["add_messages"]


def add_messages(app: FastAPI, desk: HttpDesk) -> None:
    """Mount the routes."""
    routes = _Routes(desk)
    add_post(app, "/v1/messages", routes.create, MessagesBody, "Answer a conversation, in blocks")
    add_post(app, "/v1/messages/count_tokens", routes.count, CountBody, "Tokens of a conversation")


class _Routes:
    def __init__(self, desk: HttpDesk) -> None:
        self.desk = desk

    async def create(self, request: Request) -> Response:
        body = await read_request(request, MessagesBody)
        place, asked = self.desk.find(body.model), messages_request(body, key=key_of(request))
        events = MessageEvents(body)
        if body.stream:
            return self.desk.stream(request, place, [asked], events)
        [done] = await self.desk.run(request, place, [asked])
        return Response(json_bytes(events.whole(done)), media_type="application/json")

    async def count(self, request: Request) -> Response:
        body = await read_request(request, CountBody)
        place, asked = self.desk.find(body.model), messages_request(body)
        ids = await run_in_thread(lambda: place.texts().tokenize(asked))
        return Response(json_bytes({"input_tokens": len(ids)}), media_type="application/json")
