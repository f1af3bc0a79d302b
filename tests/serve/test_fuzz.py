"""A seeded sample of the fuzz soak: made-up bodies and messages get an answer or a refusal, and nothing leaks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bench.parts import fuzz_grpc, fuzz_http
from riverrun.serve.http.app import make_app
from riverrun.serve.http.server import BackgroundServer
from riverrun.serve.llm import LLM
from tests.tiny_model import write_tiny

BODIES, MESSAGES, SECONDS = 350, 400, 120.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = write_tiny(tmp_path_factory.mktemp("fuzz"))
    with LLM(folder, dtype="float32", slots=4, context=128, threads=1, name="tiny") as opened:
        yield opened


def check_at_rest(model: LLM) -> None:
    """No request runs and no block is in use."""
    model.loop.run(model.loop.scheduler.check_integrity)
    assert model.loop.run(lambda: model.loop.scheduler.is_idle)
    assert not len(model.sessions)
    assert model.loop.pool.free == model.loop.pool.total


def test_http(model: LLM, tmp_path: Path) -> None:
    with BackgroundServer(make_app({"tiny": model}, page=False, sessions=tmp_path, adapters=tmp_path)) as server:
        found = fuzz_http.attack(server.url, BODIES, 7, seconds=SECONDS)
    assert not found.failed, found.failed[0]
    assert not found.broken, found.broken[0]
    assert not found.undocumented, found.undocumented[0]
    assert found.statuses["200"] > BODIES // 8, "most of them never reach the model"
    check_at_rest(model)


def test_grpc(model: LLM) -> None:
    pytest.importorskip("grpc", reason="not run here: grpcio is not installed")
    from riverrun.serve.grpc.server import GrpcServer

    with GrpcServer({"tiny": model}) as server:
        found = fuzz_grpc.attack(f"127.0.0.1:{server.port}", MESSAGES, 7, seconds=SECONDS)
    assert not found.failed, found.failed[0]
    assert not found.broken, found.broken[0]
    assert found.codes["OK"] > MESSAGES // 8, "most of them never reach the model"
    check_at_rest(model)


def test_the_same_seed_makes_the_same_cases(model: LLM) -> None:
    with BackgroundServer(make_app({"tiny": model}, page=False)) as server:
        document = httpx.get(f"{server.url}/openapi.json", trust_env=False).json()
    runs = [list(fuzz_http.bodies(document, 60, seed, "tiny")) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert {path for path, _ in runs[0]} == {path for path, each in document["paths"].items() if "post" in each}
    whole = [body for _, body in runs[0] if body[:1] == b"{" and _is_json(body)]
    assert len(whole) > 20


def test_the_same_seed_makes_the_same_messages() -> None:
    pytest.importorskip("google.protobuf", reason="not run here: protobuf is not installed")
    runs = [list(fuzz_grpc.payloads(60, seed, "tiny")) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert len({method for method, _, _ in runs[0]}) == 10
    assert {changed for _, _, changed in runs[0]} == {True, False}


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    return True
