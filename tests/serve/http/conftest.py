"""A real server on a free port for each test module."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from http_models import PATIENCE_SECONDS, echo

from riverrun.base.fakes import FakeModel
from riverrun.serve.http.app import make_app
from riverrun.serve.http.server import BackgroundServer


@pytest.fixture(scope="module")
def models() -> dict[str, FakeModel]:
    """What the module's server serves; tests add models under names of their own."""
    return {"echo": FakeModel(echo, name="echo")}


@pytest.fixture(scope="module")
def server(models: dict[str, FakeModel]) -> Iterator[BackgroundServer]:
    with BackgroundServer(make_app(models, keep_alive_seconds=0.2)) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: BackgroundServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE_SECONDS, trust_env=False) as client:
        yield client
