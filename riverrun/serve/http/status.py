"""How a server does: ready or not, Prometheus' text, and the same as JSON for the status page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Response

from riverrun.serve.aside import run_in_thread
from riverrun.serve.http.desk import HttpDesk
from riverrun.serve.metrics import Counted, Snapshot, page, summed
from riverrun.web.errors import json_bytes

__all__ = ["add_status"]


def add_status(app: FastAPI, desk: HttpDesk) -> None:
    """GET /ready, /metrics and /status."""

    def counts() -> dict[str, Sequence[Snapshot | None]]:
        return {name: model.snapshots() for name, model in list(desk.models.items()) if isinstance(model, Counted)}

    async def ready() -> Response:
        """Whether requests are taken: not before there is a model, and not while the server ends."""
        draining, models = bool(getattr(app.state, "draining", False)), list(desk.models)
        body = {"ready": bool(models) and not draining, "models": models, "draining": draining, "running": desk.running}
        status = 200 if body["ready"] else 503
        return Response(json_bytes(body), status, media_type="application/json")

    async def prometheus() -> Response:
        content, kind = await run_in_thread(lambda: page(counts()))
        return Response(content, media_type=kind)

    async def status() -> Response:
        body: dict[str, Any] = {"running": desk.running}
        body["models"] = {name: summed(each) for name, each in (await run_in_thread(counts)).items()}
        return Response(json_bytes(body), media_type="application/json")

    add: Callable[..., None] = app.add_api_route
    add("/ready", ready, methods=["GET"], response_model=None, summary="Whether requests are taken")
    add("/metrics", prometheus, methods=["GET"], response_model=None, summary="Counts for Prometheus")
    add("/status", status, methods=["GET"], response_model=None, summary="Counts of now, as JSON")
