"""Several replicas of a model behind one `LanguageModel`: processes on one machine, or on many, by Ray.

Each replica is a Ray actor with an `LLM` of its own. Actors, and not Ray Serve's deployments: a request goes to a
replica that is chosen by what it has computed (`serve.routing`), and its pieces come back without a proxy between. A
replica that dies is started again by Ray. What it was asked goes to another one, as long as nobody has seen a piece
of the answer; an answer that was begun fails with a clear error. A conversation of a session is kept here, its keys
and values by the replica that answered. Adapters that were loaded later are loaded again by a replica that was
started anew.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from riverrun.base.errors import InputError, RiverrunError
from riverrun.base.optional import require
from riverrun.base.protocols import Abort, Completion, Delta, ModelInfo, Request, Score
from riverrun.base.types import Message, Usage
from riverrun.models.load import load_checkpoint
from riverrun.serve.aside import AsyncCalls
from riverrun.serve.blocks import Digest, chain, root
from riverrun.serve.metrics import Snapshot
from riverrun.serve.routing import Router
from riverrun.serve.sessions import Keep, SessionTable
from riverrun.serve.text import Texts
from riverrun.wire.codec import get_codec

__all__ = ["Fleet", "Replica"]

T = TypeVar("T")
_LOG = logging.getLogger("riverrun.serve")
BLOCK = 16
START_SECONDS = 900.0
PING_SECONDS, HUNG_SECONDS = 2.0, 60.0
"""Time between two questions whether a replica is there, and after which one that says nothing is started again."""
OBJECT_STORE_BYTES = 128 << 20
CONTROL = ("ping", "abort", "info", "snapshot", "set_adapters")
"""What a replica answers while all its calls are taken."""
EARLY = 1000
"""Names of requests that were ended before they came, which a replica remembers."""
Named = tuple[Path, str]
"""Folder and digest of an adapter."""
CALLS = 256
"""Calls that a replica takes at once."""


class Replica:
    """What runs in each process."""

    def __init__(self, path: str, options: Mapping[str, Any]) -> None:
        from riverrun.base.memory import keep_freed_memory
        from riverrun.serve.llm import LLM

        keep_freed_memory(arenas=2)
        self.model = LLM(Path(path), **options)
        self._lock = threading.Lock()
        self._running: dict[str, Abort] = {}
        self._early: dict[str, None] = {}

    def ping(self) -> int:
        """Its process."""
        return os.getpid()

    def abort(self, name: str) -> None:
        """End what runs under that name, or is on its way here: this call may overtake it."""
        with self._lock:
            running = self._running.get(name)
            if running is None:
                self._early[name] = None
                while len(self._early) > EARLY:  # they were over, and never come
                    del self._early[next(iter(self._early))]
        if running is not None:
            running.set()

    def _begun(self, name: str) -> Abort:
        abort = Abort()
        with self._lock:
            self._running[name] = abort
            early = name in self._early
            self._early.pop(name, None)
        if early:
            abort.set()
        return abort

    def generate(self, requests: Seq[Request], name: str) -> list[Completion]:
        abort = self._begun(name)
        try:
            return self.model.generate([replace(each, abort=abort) for each in requests])
        finally:
            del self._running[name]

    def stream(self, request: Request, name: str) -> Iterator[Delta]:
        abort = self._begun(name)
        try:
            for delta in self.model.stream(replace(request, abort=abort)):  # noqa: UP028
                yield delta
        finally:
            del self._running[name]

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        """A method of the model."""
        return getattr(self.model, name)(*arguments, **named)

    def info(self) -> ModelInfo:
        """The model's."""
        return self.model.info

    def snapshot(self) -> Snapshot | None:
        """What it has counted since it was started."""
        return next(iter(self.model.snapshots()), None)

    def set_adapters(self, adapters: Mapping[str, Named]) -> None:
        """Load those of them that are not here, and unload all others; a name may mean another one by now."""
        for name, digest in self.model.adapter_digests.items():
            if name not in adapters or adapters[name][1] != digest:
                self.model.unload_adapter(name)
        for name, (path, digest) in adapters.items():
            if name in self.model.adapters:
                continue
            self.model.load_adapter(name, path)
            if self.model.adapter_digests[name] != digest:
                self.model.unload_adapter(name)
                raise InputError(f"the files of adapter '{name}' in {path} were changed: load them under another name")


class Fleet(AsyncCalls):
    """`with Fleet(path, replicas=3) as model: model.generate([...])`, as with one `LLM`."""

    def __init__(
        self,
        path: Path | str,
        *,
        replicas: int,
        adapter: Path | None = None,
        adapters: Mapping[str, Path] | None = None,
        name: str = "",
        threads: int = 0,
        address: str = "",
        codec: str = "hermes",
        **options: Any,
    ) -> None:
        """`address`: of a Ray cluster whose machines all have `path`; this machine alone without one. `threads`: of a
        replica; its share of the cores unless given. `options`: of each `LLM`."""
        if replicas < 1:
            raise InputError(f"there cannot be {replicas} replicas: ask for 1 or more")
        self._ray = require("ray", extra="cluster")
        self._adapters = {key: _named(folder) for key, folder in (adapters or {}).items()}
        opened = load_checkpoint(Path(path))
        shown = name or Path(path).stem
        threads = threads or max(1, (os.cpu_count() or 1) // replicas)
        self._owns = not self._ray.is_initialized()
        if self._owns:
            _start(self._ray, address)
        merged = adapter.absolute() if adapter else None
        options |= {"name": shown, "threads": threads, "codec": codec, "adapter": merged}
        cpus = threads if address else 0  # on this machine alone nothing is to be shared out
        self._actors = [self._actor(cpus).remote(str(Path(path).absolute()), options) for _ in range(replicas)]
        self.router = Router(replicas)
        self._adapting = threading.Lock()
        """Held while replicas are given adapters: none becomes live with those of before."""
        self._live: set[int] = set()
        self._unfit: dict[int, str] = {}
        self._changed = threading.Condition()
        self._closed = threading.Event()
        try:
            self._ray.get([actor.ping.remote() for actor in self._actors], timeout=START_SECONDS)
            self._ray.get([actor.set_adapters.remote(self._adapters) for actor in self._actors])
            self._live |= set(range(replicas))
            self._info: ModelInfo = self._ray.get(self._actors[0].info.remote())
        except self._ray.exceptions.RayError as error:
            self.close()
            raise RiverrunError(f"the replicas of {path} did not start: {_told(error)}") from None
        self._texts = Texts(
            opened.tokenizer, opened.template, get_codec(codec), shown, self._info.context_length,
            opened.config.vocab_size,
        )  # fmt: skip
        self._watcher = threading.Thread(target=self._watch, name="riverrun-replicas", daemon=True)
        self._watcher.start()

    def _actor(self, cpus: int) -> Any:
        for method in CONTROL:
            getattr(Replica, method).__ray_concurrency_group__ = "control"
        how = {"num_cpus": cpus, "max_restarts": -1, "max_task_retries": 0, "max_concurrency": CALLS}
        return self._ray.remote(**how, concurrency_groups={"control": 8})(Replica)

    # ---- which replica -------------------------------------------------------------------------------------------

    @property
    def live(self) -> tuple[int, ...]:
        """Numbers of the replicas that answer."""
        return tuple(sorted(self._live))

    def _digests(self, request: Request) -> list[Digest]:
        return chain(self._texts.prompt(request), BLOCK, root(request.adapter))

    def _choose(self, digests: Seq[Digest]) -> int:
        """A replica that lives; waits for one that starts."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._live or self._closed.is_set(), START_SECONDS):
                raise RiverrunError(f"no replica of model '{self._info.name}' answers: see Ray's log")
            if self._closed.is_set():
                raise RiverrunError(f"model '{self._info.name}' was closed before the answer was complete")
            return self.router.choose(digests, self._live)

    def _lost(self, number: int) -> None:
        with self._changed:
            if number in self._live:
                self._live.discard(number)
                self.router.forget(number)

    def _watch(self) -> None:
        """Ask all replicas now and then; one that is there again is used again, one that hangs is started anew."""
        ray, silent = self._ray, [0.0] * len(self._actors)
        while not self._closed.wait(PING_SECONDS):
            asked = {actor.ping.remote(): number for number, actor in enumerate(self._actors)}
            ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=PING_SECONDS)
            for ref, number in asked.items():
                try:
                    if ref not in ready:
                        raise TimeoutError
                    ray.get(ref)
                except TimeoutError:
                    silent[number] += 2 * PING_SECONDS
                    if silent[number] >= HUNG_SECONDS and number in self._live:
                        self._lost(number)
                        ray.kill(self._actors[number], no_restart=False)
                except ray.exceptions.RayError as error:
                    self._lost(number)
                    self._tell(number, f"does not answer: {_told(error)}")
                else:
                    silent[number] = 0.0
                    if number not in self._live:
                        self._back(number)

    def _back(self, number: int) -> None:
        """A replica that was started anew is used once it has all adapters."""
        with self._adapting:
            try:
                self._ray.get(self._actors[number].set_adapters.remote(self._adapters), timeout=HUNG_SECONDS)
            except self._ray.exceptions.RayError as error:  # asked again at the next turn
                self._tell(number, f"gets no requests until it has all adapters: {_told(error)}")
                return
            self._unfit.pop(number, None)
            with self._changed:
                self._live.add(number)
                self._changed.notify_all()

    def _tell(self, number: int, why: str) -> None:
        """Log once why a replica is not used."""
        if self._unfit.get(number) != why:
            self._unfit[number] = why
            _LOG.error("replica %d %s", number, why)

    def _gone(self, error: BaseException) -> bool:
        """Whether an error means that the replica, and not the request, failed."""
        known = self._ray.exceptions
        return isinstance(error, (known.RayActorError, known.ActorUnavailableError, known.WorkerCrashedError))

    def _again(self, work: Callable[[int], T], digests: Seq[Digest]) -> T:
        """What `work` returns for a replica; another one is tried when it dies, each as often as there are replicas."""
        for left in range(len(self._actors), -1, -1):
            number = self._choose(digests)
            try:
                return work(number)
            except Exception as error:
                if not self._gone(error):
                    raise
                self._lost(number)
                if not left:
                    raise RiverrunError(f"every replica died that was asked: {_told(error)}") from None
            finally:
                self.router.end(number)
        raise AssertionError("the last turn raises or returns")

    # ---- asking --------------------------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def loop(self) -> None:
        """It runs elsewhere: sessions hold no blocks here."""
        return None

    @cached_property
    def sessions(self) -> SessionTable:
        """The conversations that this model remembers."""
        return SessionTable(self)

    def snapshots(self) -> list[Snapshot | None]:
        """Of each replica by number; None of one that does not answer now."""
        refs = [actor.snapshot.remote() for actor in self._actors]
        ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=PING_SECONDS)

        def value(ref: Any) -> Snapshot | None:
            with suppress(self._ray.exceptions.RayError):
                return self._ray.get(ref) if ref in ready else None  # type: ignore[no-any-return]
            return None

        return [value(ref) for ref in refs]

    def generate(self, requests: Seq[Request], *, keep: Keep | None = None) -> list[Completion]:
        """Answer all, in order; each goes to the replica that suits it. `keep` is for a model with a loop here."""
        if len(requests) == 1:
            return [self._one(requests[0])]
        out: list[Completion | BaseException | None] = [None] * len(requests)

        def ask(place: int) -> None:
            try:
                out[place] = self._one(requests[place])
            except BaseException as error:
                out[place] = error

        threads = [threading.Thread(target=ask, args=(place,), daemon=True) for place in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed := next((each for each in out if isinstance(each, BaseException)), None):
            raise failed
        return [each for each in out if isinstance(each, Completion)]

    def _one(self, request: Request) -> Completion:
        def work(number: int) -> Completion:
            actor, name = self._actors[number], uuid.uuid4().hex
            if request.abort is not None:
                request.abort.when_set(partial(_abort, actor, name))
            [done] = self._get(actor.generate.remote([replace(request, abort=None)], name))
            return done  # type: ignore[no-any-return]

        return self._again(work, self._digests(request))

    def stream(self, request: Request, *, keep: Keep | None = None) -> Iterator[Delta]:
        """Answer one request piece by piece; closing the iterator ends it where it runs.

        Of what was left its pieces count as tokens: the replica's own counts do not come any more.
        """
        ids = self._texts.prompt(request)
        digests = chain(ids, BLOCK, root(request.adapter))
        for left in range(len(self._actors), -1, -1):
            number, name, pieces = self._choose(digests), uuid.uuid4().hex, 0
            actor = self._actors[number]
            if request.abort is not None:
                request.abort.when_set(partial(_abort, actor, name))
            over = False
            try:
                refs = actor.stream.options(num_returns="streaming").remote(replace(request, abort=None), name)
                for ref in refs:
                    delta = self._get(ref)
                    pieces += 1
                    over = delta.finish_reason is not None
                    yield delta
                return
            except Exception as error:
                if not self._gone(error):
                    raise
                self._lost(number)
                over = True
                if pieces or not left:
                    raise RiverrunError(
                        f"the replica that wrote this answer died after {pieces} pieces: ask again"
                    ) from None
            finally:
                self.router.end(number)
                if not over:
                    _abort(actor, name)
                    if request.abort is not None and pieces:
                        request.abort.left.append(Usage(len(ids), pieces))

    def score(self, prefix: str | Seq[Message], continuations: Seq[str], *, adapter: str = "") -> list[Score]:
        asked = Request(prompt=prefix) if isinstance(prefix, str) else Request(tuple(prefix))
        digests: list[Digest] = []
        with suppress(InputError):  # an empty prefix has none
            digests = self._digests(replace(asked, adapter=adapter))
        scores: list[Score] = self._call(digests, "score", prefix, continuations, adapter=adapter)
        return scores

    def perplexity(self, texts: Seq[str], **named: Any) -> list[float]:
        found: list[float] = self._call((), "perplexity", texts, **named)
        return found

    def vector_ids(self, text: str | Seq[int]) -> list[int]:
        return self._texts.vector_ids(text)

    def embed(self, texts: Seq[str | Seq[int]], **named: Any) -> list[list[float]]:
        vectors: list[list[float]] = self._call((), "embed", texts, **named)
        return vectors

    def _call(self, digests: Seq[Digest], method: str, *arguments: Any, **named: Any) -> Any:
        return self._again(lambda n: self._get(self._actors[n].call.remote(method, *arguments, **named)), digests)

    def _get(self, ref: Any) -> Any:
        """The value; an error of ours as it was raised there."""
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RiverrunError):
                raise error.cause from None
            raise

    # ---- tokens and adapters -------------------------------------------------------------------------------------

    def tokenize(self, request: Request) -> list[int]:
        return self._texts.prompt(request)

    def detokenize(self, ids: Seq[int]) -> str:
        return self._texts.tokenizer.decode(ids, skip_special=False)

    def count(self, text: str) -> int:
        return len(self._texts.tokenizer.encode(text))

    def piece(self, token: int) -> bytes:
        return self._texts.piece(token)

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self._adapters)

    def load_adapter(self, name: str, path: Path) -> None:
        """Load it in every replica that lives, and later in one that is started anew."""
        with self._adapting:
            for number in self.live:
                self._get(self._actors[number].call.remote("load_adapter", name, Path(path).absolute()))
            self._adapters = self._adapters | {name: _named(path)}

    def unload_adapter(self, name: str) -> None:
        with self._adapting:
            for number in self.live:
                self._get(self._actors[number].call.remote("unload_adapter", name))
            self._adapters = {key: each for key, each in self._adapters.items() if key != name}

    # ---- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all replicas; what still runs fails with a clear error."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        for actor in self._actors:
            with suppress(Exception):
                self._ray.kill(actor)
        if self._owns:
            self._ray.shutdown()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _start(ray: Any, address: str) -> None:
    """Join a cluster, or be one of this machine alone; nothing is reported to anybody."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    given: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address:
        given |= {"address": address}
    else:
        given |= {"address": "local", "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    try:
        ray.init(**given)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"the Ray cluster {address or 'of this machine'} cannot be used: {error}") from None


def _named(folder: Path) -> Named:
    from riverrun.serve.llm import adapter_digest

    path = Path(folder).absolute()
    return path, adapter_digest(path)


def _abort(actor: Any, name: str) -> None:
    with suppress(Exception):
        actor.abort.remote(name)


def _told(error: BaseException) -> str:
    """The last line of what Ray says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:300]
