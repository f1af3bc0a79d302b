"""Sockets and processes: a taken port, readiness, keys over the wire, draining on SIGTERM."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from http_models import PATIENCE_SECONDS, GateModel

import riverrun
from riverrun.base.errors import InputError
from riverrun.base.fakes import FakeModel
from riverrun.serve.http.app import make_app
from riverrun.serve.http.server import BackgroundServer, open_socket, serve_app

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_a_taken_port_is_one_sentence() -> None:
    with open_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        text = f"port {port} on 127.0.0.1 is in use: choose another with --port"
        app = make_app({"m": FakeModel()})
        with pytest.raises(InputError) as caught:
            serve_app(app, "127.0.0.1", port)
        assert str(caught.value) == text
        with pytest.raises(InputError) as caught, BackgroundServer(app, "127.0.0.1", port):
            pass
        assert str(caught.value) == text


@pytest.mark.parametrize(
    ("host", "port", "part"), [("no.such.host.invalid", 0, "has no address"), ("127.0.0.1", 70000, "65535")]
)
def test_impossible_addresses(host: str, port: int, part: str) -> None:
    with pytest.raises(InputError, match=part):
        open_socket(host, port)


def test_background_server_answers_when_entered_and_is_gone_when_left() -> None:
    server = BackgroundServer(make_app({"m": FakeModel()}))
    for _ in range(2):  # it can be used again
        with server:
            assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
            port = server.port
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port))
    assert not [t for t in threading.enumerate() if t.name == "riverrun-server"]


def test_leaving_cuts_a_stream_that_does_not_end() -> None:
    gate = GateModel()
    with BackgroundServer(make_app({"m": gate}), drain_seconds=0.5) as server:
        gate.permits.release()
        client = httpx.Client(timeout=PATIENCE_SECONDS, trust_env=False)
        stream = client.stream("POST", f"{server.url}/v1/chat/completions", json={**CHAT, "stream": True})
        pieces = stream.__enter__().iter_raw()
        next(pieces)
    assert gate.wait_closed()
    with pytest.raises(httpx.TransportError):
        list(pieces)
    client.close()


PROGRAM = """
import sys
from riverrun.base.fakes import FakeModel
from riverrun.base.protocols import Delta
from riverrun.serve.http.app import make_app
from riverrun.serve.http.server import serve_app

class Waiting(FakeModel):
    def stream(self, request):
        yield Delta(text="first")
        yield Delta(text=sys.stdin.readline().strip())
        yield Delta(finish_reason="stop")

serve_app(make_app({"m": Waiting()}), port=0, on_ready=lambda url: print(url, flush=True))
print("ended", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(number: signal.Signals) -> None:
    root = str(Path(riverrun.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with (
            httpx.Client(timeout=PATIENCE_SECONDS, trust_env=False) as client,
            client.stream("POST", f"{url}/v1/chat/completions", json={**CHAT, "stream": True}) as response,
        ):
            pieces = response.iter_text()
            received = next(pieces)
            process.send_signal(number)
            while _is_open(int(url.rpartition(":")[2])):
                pass  # until no new request is taken
            process.stdin.write("second\n")
            process.stdin.flush()
            received += "".join(pieces)
        assert "first" in received
        assert "second" in received
        assert received.endswith("data: [DONE]\n\n")
        assert process.stdout.read() == "ended\n"
        assert process.wait(PATIENCE_SECONDS) == 0


def _is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS).close()
    except OSError:
        return False
    return True
