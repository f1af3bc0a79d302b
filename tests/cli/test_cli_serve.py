"""`riverrun serve` and `riverrun keys` from outside: a real process, real clients, SIGTERM."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from riverrun.base.errors import InputError
from riverrun.cli.serve import Serving, model_options
from tests.tiny_model import write_tiny

ROOT = Path(__file__).parents[2]
SECRET = "the word that no log may hold"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "riverrun.cli.main", *arguments]


ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


@contextmanager
def served(*arguments: str) -> Iterator[str]:
    """The line that a server says when it is ready; it is ended by SIGTERM, and must end well."""
    process = subprocess.Popen(
        command("serve", *arguments), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        assert line.startswith("http"), line + process.stderr.read()
        yield line
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 0, rest
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("not run here: there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost"]
    also = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(["openssl", "req", "-x509", *made, *also], check=True, capture_output=True)
    return cert, key


def test_all_at_once(folder: Path, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("grpc", reason="not run here: grpcio is not installed")
    keys, log = tmp_path / "keys.yaml", tmp_path / "requests.jsonl"
    adding = command("keys", "add", str(keys), "shop", "--concurrency", "4", "--tokens-per-minute", "100000")
    key = subprocess.run(adding, capture_output=True, text=True, check=True, env=ENVIRONMENT, cwd=ROOT).stdout.strip()
    assert key not in keys.read_text()
    assert keys.stat().st_mode & 0o777 == 0o600
    again = subprocess.run(adding, capture_output=True, text=True, check=False, env=ENVIRONMENT, cwd=ROOT)
    assert again.returncode == 2
    assert "has a key named 'shop'" in again.stderr

    cert, tls_key = certificate
    options = ["--keys", str(keys), "--tls-cert", str(cert), "--tls-key", str(tls_key), "--grpc-port", "0"]
    options += ["--log", str(log), "--sessions", str(tmp_path), "--adapters", str(tmp_path), "--no-page"]
    options += ["--slots", "2", "--context", "128", "--kv", "int8", "--dtype", "float32", "--cache-gb", "0.01"]
    options += ["--lookup", "2", "--step-ms", "50", "--timeout", "60", "--max-body-mb", "0.01", "--threads", "1"]
    options += ["--device", "cpu"]
    with served(str(folder), "--port", "0", *options, "--origin", "https://shop.example") as line:
        url, _, rest = line.partition(" ")
        assert url.startswith("https://127.0.0.1:")
        asked: dict[str, Any] = {
            "model": folder.name,
            "messages": [{"role": "user", "content": SECRET}],
            "max_tokens": 4,
        }
        context = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(base_url=url, verify=context, trust_env=False, timeout=60) as http:
            assert http.post("/v1/chat/completions", json=asked).status_code == 401
            http.headers["Authorization"] = f"Bearer {key}"
            done = http.post("/v1/chat/completions", json=asked, headers={"Origin": "https://shop.example"})
            assert done.json()["usage"]["completion_tokens"] >= 1
            assert done.headers["access-control-allow-origin"] == "https://shop.example"
            assert http.get("/").status_code == 404
            assert http.get("/status").status_code == 200
            assert http.post("/tokenize", content=b" " * 20_000).status_code == 413
            asked["messages"][0]["content"] = "books and maps " * 60
            refused = http.post("/v1/chat/completions", json=asked)
            assert refused.status_code == 400
            assert "the context is 128" in refused.text
        from riverrun.serve.grpc.client import GrpcClient

        address = rest.rpartition("gRPC on ")[2].strip()
        with GrpcClient(address, api_key=key, root_certificates=cert.read_bytes()) as client:
            assert client.tokenize("a book")
    lines = [json.loads(each) for each in log.read_text().splitlines()]
    answered = [each for each in lines if each["status"] == 200 and each["path"] == "/v1/chat/completions"]
    assert answered[0]["key"] == "shop"
    assert answered[0]["prompt_tokens"] > 0
    assert {each["status"] for each in lines} >= {200, 401, 404, 413}
    assert SECRET not in log.read_text()


def test_texts_are_logged_on_demand_and_the_page_is_there(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "deep" / "requests.jsonl"
    with served(str(folder), "--port", "0", "--log", str(log), "--log-texts") as line:
        url = line.split()[0]
        body = {"model": folder.name, "prompt": SECRET, "max_tokens": 1}
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200
        assert "<html" in httpx.get(url, timeout=60).text
    assert SECRET in log.read_text()


def test_two_replicas(folder: Path) -> None:
    if find_spec("ray") is None:
        pytest.skip("not run here: ray is not installed")
    with served(str(folder), "--port", "0", "--replicas", "2", "--dtype", "float32", "--no-page") as line:
        body = {"model": folder.name, "prompt": "The sea", "max_tokens": 4, "n": 3}
        done = httpx.post(f"{line.split()[0]}/v1/completions", json=body, timeout=60)
        assert len(done.json()["choices"]) == 3


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"kv": "int9"}, "--kv int9 is not one of model, int8, int4"),
        ({"dtype": "float8"}, "--dtype float8 is not one of"),
        ({"slots": 0}, "--slots is 0: give 1 or more"),
        ({"step_ms": 0.0}, "--step-ms is 0: give 1 or more"),
        ({"waiting": -1}, "--waiting is -1"),
        ({"adapters": ["shop"]}, "--adapter shop: give NAME=FOLDER"),
        ({"adapters": ["a=x", "a=y"]}, "each name once"),
    ],
)
def test_options_of_the_model_that_cannot_be(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        model_options(**given)  # type: ignore[arg-type]


def test_a_device_reaches_the_engine(tmp_path: Path) -> None:
    from riverrun.serve.llm import LLM

    with pytest.raises(InputError, match="device 'gpu' is not cpu, cuda or cuda:N"):
        LLM(write_tiny(tmp_path), **model_options(device="gpu"))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"tls": (Path("a"), None)}, "give both --tls-cert and --tls-key"),
        ({"timeout": -1.0}, "--timeout is -1 seconds"),
        ({"max_body_mb": 0.0}, "--max-body-mb is 0"),
        ({"log_texts": True}, "--log-texts needs --log FILE"),
        ({"replicas": 0}, "--replicas is 0"),
    ],
)
def test_options_of_the_server_that_cannot_be(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Serving(**given)  # type: ignore[arg-type]
