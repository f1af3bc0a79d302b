"""Running an app on a socket: blocking with a graceful end, or in the background for a `with` block.

The socket is opened before the server starts, so a taken port is one clear error. On SIGTERM or SIGINT no new request
is taken, running ones may finish within `drain_seconds`, a second SIGINT ends at once.
"""

from __future__ import annotations

import contextlib
import errno
import math
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from riverrun.base.errors import InputError
from riverrun.base.optional import require

if TYPE_CHECKING:
    import uvicorn

__all__ = ["BackgroundServer", "check_tls", "open_socket", "serve_app"]


def open_socket(host: str, port: int) -> socket.socket:
    """A listening TCP socket (port 0: any free one); InputError when the address cannot be had."""
    if not 0 <= port <= 65535:
        raise InputError(f"port {port} is not between 0 and 65535: choose another with --port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise InputError(
            f"host '{host}' has no address ({error.strerror or error}): choose another with --host"
        ) from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} on {host} is in use: choose another with --port") from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise InputError(
                f"port {port} on {host} may not be opened by this user: choose one above 1023 with --port"
            ) from None
        raise InputError(
            f"{host}:{port} cannot be listened on ({error.strerror}): choose another with --host"
        ) from None
    return listener


def check_tls(tls: tuple[Path, Path] | None) -> None:
    """InputError when certificate and key cannot be used together."""
    if tls is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*tls)
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"certificate {tls[0]} and key {tls[1]} cannot be used ({error}): give two PEM files that belong together"
        ) from None


def _url(listener: socket.socket, *, secure: bool = False) -> str:
    host, port = listener.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    return f"http{'s' if secure else ''}://{name}:{port}"


def _make_server(
    app: Any, drain_seconds: float, ready: threading.Event, tls: tuple[Path, Path] | None = None
) -> uvicorn.Server:
    require("uvicorn", extra="serve")
    require("httptools", extra="serve")
    import uvicorn

    from riverrun.serve.http.heads import LimitedProtocol

    class Server(uvicorn.Server):
        """Tells when it is ready, and ends normally after a signal, where uvicorn raises the signal again."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            ready.set()

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.force_exit = self.force_exit or (self.should_exit and sig == signal.SIGINT)
            self.should_exit = True
            with contextlib.suppress(AttributeError):  # an app that is no FastAPI app
                app.state.draining = True

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        http=LimitedProtocol,
        ws="none",
        timeout_graceful_shutdown=math.ceil(drain_seconds),
        ssl_certfile=str(tls[0]) if tls else None,
        ssl_keyfile=str(tls[1]) if tls else None,
    )
    return Server(config)


def serve_app(
    app: Any,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    drain_seconds: float = 30.0,
    on_ready: Callable[[str], None] | None = None,
    tls: tuple[Path, Path] | None = None,
) -> None:
    """Serve an ASGI app until SIGTERM or SIGINT, then let running requests finish; returns normally.

    `on_ready` is called with the URL when the port is open (requests are queued from then on). `tls`: certificate and
    key, PEM files.
    """
    check_tls(tls)
    with open_socket(host, port) as listener:
        server = _make_server(app, drain_seconds, threading.Event(), tls)
        if on_ready is not None:
            on_ready(_url(listener, secure=tls is not None))
        server.run(sockets=[listener])


class BackgroundServer:
    """A real server in a thread: `with BackgroundServer(app) as server: ... server.url`.

    It answers when the block is entered, and has ended when it is left. `host` and `port` as in `serve_app`, port 0
    takes a free one.
    """

    def __init__(self, app: Any, host: str = "127.0.0.1", port: int = 0, *, drain_seconds: float = 5.0) -> None:
        self._app, self._host, self._asked_port, self._drain_seconds = app, host, port, drain_seconds
        self._failure: BaseException | None = None
        self.url, self.port = "", 0

    def __enter__(self) -> BackgroundServer:
        ready = threading.Event()
        self._listener = open_socket(self._host, self._asked_port)
        self.url, self.port = _url(self._listener), self._listener.getsockname()[1]
        self._server = _make_server(self._app, self._drain_seconds, ready)
        self._thread = threading.Thread(target=self._run, args=(ready,), name="riverrun-server", daemon=True)
        self._thread.start()
        ready.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def _run(self, ready: threading.Event) -> None:
        try:
            self._server.run(sockets=[self._listener])
        except BaseException as error:
            self._failure = error
        finally:
            self._listener.close()
            ready.set()

    def __exit__(self, *exception: object) -> None:
        self._server.should_exit = True
        self._thread.join()
