"""LLM: a checkpoint as a LanguageModel. Lists in, lists out; any number of threads may ask, one loop answers.

    with LLM(path) as model:
        model.chat("Which books about maps do you have?")
        model.generate([Request(prompt="The sea"), Request(messages=(Message.of("user", "Hello"),))])

What requests share is computed once: the blocks of keys and values are found by their content, whoever computed them.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from riverrun.base.artifacts import digest_file
from riverrun.base.errors import CapacityError, InputError, RiverrunError, UnsupportedError, nearest
from riverrun.base.memory import free_memory
from riverrun.base.optional import require
from riverrun.base.protocols import Completion, Delta, ModelInfo, Request, Score
from riverrun.base.types import Guide, Message, SamplingParams, Usage
from riverrun.models.load import load_checkpoint
from riverrun.serve.aside import AsyncCalls, call_soon, close, run_in_thread
from riverrun.serve.blocks import root
from riverrun.serve.draft import Lookup
from riverrun.serve.engine import Engine
from riverrun.serve.guided import Grammars, Guided
from riverrun.serve.loop import Loop, Observer
from riverrun.serve.metrics import Metrics, Snapshot
from riverrun.serve.pace import Pace
from riverrun.serve.request import Sequence, Wanted
from riverrun.serve.sampler import Sampler
from riverrun.serve.sessions import Keep, Session, SessionTable
from riverrun.serve.stream import TextStream
from riverrun.serve.text import Texts
from riverrun.wire.codec import get_codec

__all__ = ["LLM"]

CACHE_SHARE = 0.25
"""Of the free memory, for keys and values, unless `cache_gb` says how much."""
GPU_SHARE = 0.8
"""Of what a GPU has free beside the weights."""
Pooling = Literal["mean", "last"]


class LLM(AsyncCalls):
    """`with LLM(path) as model: model.generate([...])`. Text only."""

    def __init__(
        self,
        path: Path,
        *,
        adapter: Path | None = None,
        adapters: Mapping[str, Path] | None = None,
        name: str = "",
        threads: int = 0,
        slots: int = 32,
        context: int = 0,
        dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto",
        kv: Literal["model", "int8", "int4"] = "model",
        weights: Literal["auto", "full", "stored"] = "auto",
        device: str = "cpu",
        cache_gb: float = 0.0,
        waiting: int = 0,
        step_seconds: float = 0.1,
        lookup: int = 0,
        parallel: int = 1,
        codec: str = "hermes",
        engine: Engine | None = None,
        observer: Observer | None = None,
    ) -> None:
        """`context` 0 takes the model's own length, at most 4096 tokens.

        `adapter` is merged into the weights, `adapters` are asked for by name. `slots`: requests that run at once;
        `waiting`: those that may wait beside them (0: any). `kv`: how keys and values are kept: as they are, or in
        codes of 8 or 4 bits; `weights` of few bits: laid out in `dtype` (full), or as they are (stored). `device`: cpu,
        cuda or cuda:N.
        `step_seconds`: a prompt is computed in pieces so small that running answers wait about so long for their next
        token.
        `lookup`: tokens that are guessed from what was said before and verified in one step (0: none).
        `parallel`: processes of this machine that each hold a part of every layer. `engine` replaces the torch engine.
        """
        if parallel > 1 and weights == "stored":
            raise UnsupportedError("weights are laid out in full in several processes: leave out stored, or parallel")
        if parallel > 1 and device != "cpu":
            raise UnsupportedError(f"several processes work on the cpu: leave out device {device}, or parallel")
        self._opened = load_checkpoint(Path(path), adapter=adapter)
        longest = self._opened.config.longest
        if longest is not None and context > longest:
            raise CapacityError(f"context {context} is more than the model's {longest}: choose at most {longest}")
        self._context = context or min(longest or 4096, 4096)
        shown = name or Path(path).stem
        tokenizer, template = self._opened.tokenizer, self._opened.template
        self._texts = Texts(tokenizer, template, get_codec(codec), shown, self._context, self._opened.config.vocab_size)
        self._info = ModelInfo(shown, self._opened.digest(), self._context, template.sha256)
        self._adapters: dict[str, str] = {}
        self._grammars: Grammars | None = None
        self.observer = observer or Metrics(lambda: self._loop)
        self._lock = threading.Lock()
        self.on_answer: Callable[[], None] | None = None
        """Called in the asking thread for each finished answer of `generate` (in order) and each `score`: progress."""

        def open_engine() -> Engine:
            if engine is not None:
                return engine
            require("torch", extra="serve")
            from riverrun.serve.engines.torch import TorchEngine

            room = partial(self._cache_tokens, slots, cache_gb)
            if parallel > 1:
                from riverrun.serve.engines.parallel import ParallelEngine

                how: dict[str, Any] = {"tokens": room, "threads": threads, "dtype": dtype, "kv": kv}
                return ParallelEngine.start(self._opened, parallel, **how)
            more: dict[str, Any] = {"weights": weights, "device": device}
            return TorchEngine.open(self._opened, tokens=room, threads=threads, dtype=dtype, kv=kv, **more)

        self._loop = Loop(
            open_engine,
            name=shown,
            ends=frozenset(tokenizer.end_ids),
            running=slots,
            waiting=waiting,
            pace=Pace(step_seconds),
            stop_of=self._stopped,
            draft=Lookup(lookup) if lookup else None,
            observer=self.observer,
        )
        for key, folder in (adapters or {}).items():
            self.load_adapter(key, folder)

    def _cache_tokens(self, slots: int, cache_gb: float, bytes_per_token: int, gpu_free: int | None) -> int:
        """Tokens that the cache has room for: in the system's memory, or in so many free bytes of a GPU."""
        wanted = slots * self._context
        system = CACHE_SHARE * (free_memory() or wanted * bytes_per_token / CACHE_SHARE)
        given = cache_gb * 1e9 or (system if gpu_free is None else GPU_SHARE * gpu_free)
        fits = int(given / bytes_per_token)
        if fits < self._context:
            raise CapacityError(
                f"keys and values of one context of {self._context} tokens take "
                f"{self._context * bytes_per_token / 1e9:.2f} GB, the cache has {given / 1e9:.2f} GB: choose a shorter "
                "context, kv int8 or int4, or a larger cache_gb"
            )
        return min(wanted, fits)

    # ---- asking -------------------------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def loop(self) -> Loop:
        """The loop behind this model: its scheduler's and pool's counts may be read at any time."""
        return self._loop

    def snapshots(self) -> list[Snapshot | None]:
        """What was counted until now, by its one engine; none where `observer` is not `Metrics`."""
        return [self.observer.snapshot()] if isinstance(self.observer, Metrics) else []

    def generate(self, requests: Seq[Request], *, keep: Keep | None = None) -> list[Completion]:
        """Answer all requests; they run together, as many at a time as there are slots.

        `keep` is called in the loop's thread with each sequence that ends, before its blocks go (`serve.sessions`).
        """
        sequences = [self._sequence(request, keep) for request in requests]
        self._submit(sequences)
        out = []
        try:
            for request, sequence in zip(requests, sequences, strict=True):
                sequence.done.wait()
                out.append(self._texts.completion(request, sequence))
                if self.on_answer:
                    self.on_answer()
        finally:  # one that failed takes the others with it: nobody would get their answers
            for sequence in sequences:
                sequence.aborted = True
        return out

    def chat(
        self, messages: str | Seq[Message] | Seq[Mapping[str, Any]], params: SamplingParams | None = None, **rest: Any
    ) -> Completion:
        """The answer to a question, to messages, or to messages in OpenAI's form. `rest` goes to `Request`."""
        return self.generate([Request(read_messages(messages), params=params or SamplingParams(), **rest)])[0]

    def stream(self, request: Request, *, keep: Keep | None = None) -> Iterator[Delta]:
        """Answer one request as it is generated; closing the iterator frees its blocks within one step."""
        return cast("Iterator[Delta]", self._streamed(self._sequence(request, keep), request))

    def poll(self, request: Request, ring: Callable[[], object]) -> Iterator[Delta | None]:
        """As `stream`, for an event loop: the iterator never waits, it gives None where there is nothing yet.

        `ring` is called in the loop's thread when there is something again.
        """
        sequence = self._sequence(request)
        sequence.ring = ring
        return self._streamed(sequence, request)

    def _streamed(self, sequence: Sequence, request: Request) -> _Deltas:
        sequence.news = queue.SimpleQueue()
        self._submit([sequence])
        left = request.abort.left if request.abort is not None else []
        return _Deltas(sequence, self._texts.deltas(request, sequence), self._loop.wake, left)

    def score(self, prefix: str | Seq[Message], continuations: Seq[str], *, adapter: str = "") -> list[Score]:
        """Log-probabilities of the continuations; what they share with one another or the past is there already."""
        pairs = [self._texts.split(prefix, continuation) for continuation in continuations]
        sequences = []
        for before, after in pairs:
            if len(before) + len(after) > self._context:
                raise CapacityError(
                    f"prefix ({len(before)}) and continuation ({len(after)}) have {len(before) + len(after)} tokens, "
                    f"the context is {self._context}: shorten them"
                )
            ids = [*before, *after]
            key = self._loop.engine.position_key(len(before))
            sequences.append(
                self._new(
                    ids[:-1],
                    SamplingParams(),
                    adapter,
                    "score",
                    looked_from=len(before) - 1,
                    targets=after,
                    position_key=key,
                )
            )
        self._submit(sequences)
        scores = []
        for sequence in sequences:
            sequence.done.wait()
            self._texts.result(sequence)
            judged = sequence.judged
            scores.append(Score(tuple(each.logprob for each in judged), all(each.greedy for each in judged)))
        if self.on_answer:
            self.on_answer()
        return scores

    def perplexity(self, texts: Seq[str], *, adapter: str = "") -> list[float]:
        """exp of the mean loss over the tokens of each text, the first after the begin token where there is one.

        A text longer than the context is read in windows that follow one another without overlap.
        """
        counts, sequences = [], []
        for text in texts:
            ids = self._texts.tokenizer.encode(text)
            with suppress(InputError):
                ids = [self._texts.start(), *ids]
            if len(ids) < 2:
                raise InputError(f"the text {text[:40]!r} has {len(ids)} token: nothing is foretold in it")
            step = self._context
            windows = [ids[at : at + step + 1] for at in range(0, len(ids) - 1, step)]
            counts.append(len(windows))
            sequences += [
                self._new(window[:-1], SamplingParams(), adapter, "score", looked_from=0, targets=window[1:])
                for window in windows
            ]
        self._submit(sequences)
        out, place = [], 0
        for count in counts:
            logprobs: list[float] = []
            for sequence in sequences[place : place + count]:
                sequence.done.wait()
                self._texts.result(sequence)
                logprobs += [each.logprob for each in sequence.judged]
            place += count
            out.append(float(np.exp(-np.mean(logprobs))))
        return out

    def embed(self, texts: Seq[str | Seq[int]], *, pooling: Pooling = "mean", adapter: str = "") -> list[list[float]]:
        """One unit-length vector per text or list of token ids: the mean of its last hidden states, or the last one."""
        if pooling not in get_args(Pooling):
            raise InputError(f"pooling '{pooling}' is not one of {', '.join(get_args(Pooling))}")
        sequences = []
        for text in texts:
            ids = self.vector_ids(text)
            wanted: Wanted = "sum" if pooling == "mean" else "last"
            sequences.append(self._new(ids, SamplingParams(), adapter, wanted))
        self._submit(sequences)
        out = []
        for sequence in sequences:
            sequence.done.wait()
            self._texts.result(sequence)
            assert sequence.sum is not None
            out.append([float(x) for x in sequence.sum / max(float(np.linalg.norm(sequence.sum)), 1e-12)])
        return out

    # ---- tokens --------------------------------------------------------------------------------------------------

    def vector_ids(self, text: str | Seq[int]) -> list[int]:
        """The ids that `embed` reads for it."""
        return self._texts.vector_ids(text)

    def tokenize(self, request: Request) -> list[int]:
        """The ids of a request's prompt, as the model would see it."""
        return self._texts.prompt(request)

    def detokenize(self, ids: Seq[int]) -> str:
        """The text of ids, special tokens as they are written."""
        return self._texts.tokenizer.decode(self._texts.existing(ids), skip_special=False)

    def count(self, text: str) -> int:
        """Tokens of a text, however long it is."""
        return len(self._texts.tokenizer.encode(text))

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        return self._texts.piece(token)

    # ---- the same for callers in an event loop, beside those of `AsyncCalls` -------------------------------------

    async def achat(
        self, messages: str | Seq[Message] | Seq[Mapping[str, Any]], params: SamplingParams | None = None, **rest: Any
    ) -> Completion:
        """As `chat`."""
        asked = Request(read_messages(messages), params=params or SamplingParams(), **rest)
        return (await self.agenerate([asked]))[0]

    async def astream(self, request: Request) -> AsyncGenerator[Delta]:
        """As `stream`."""
        news = asyncio.Event()
        ring = partial(call_soon, asyncio.get_running_loop(), news.set)
        deltas = await run_in_thread(partial(self.poll, request, ring))
        try:
            for delta in deltas:
                if delta is not None:
                    yield delta
                    continue
                await news.wait()
                news.clear()
        finally:
            close(deltas)

    # ---- adapters and weights ------------------------------------------------------------------------------------

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names that a request may ask for."""
        return tuple(self._adapters)

    @property
    def adapter_digests(self) -> dict[str, str]:
        """What stands behind each name."""
        return dict(self._adapters)

    def load_adapter(self, name: str, path: Path) -> None:
        """Load an adapter in PEFT's layout while requests run; a name that is taken is refused."""
        if not name or name in self._adapters:
            raise InputError(
                f"an adapter named '{name}' is loaded already: unload it first" if name else "name the adapter"
            )
        self._loop.run(lambda: self._loop.engine.load_adapter(name, Path(path)))
        # blocks are named by what the adapter is: another one under this name finds none of them
        self._adapters[name] = adapter_digest(Path(path))

    def unload_adapter(self, name: str) -> None:
        """Requests that use it are ended first."""
        if not name:
            raise InputError("name the adapter that is to be unloaded")
        self._adapter(name)
        del self._adapters[name]

        def unload() -> None:
            for sequence in [*self._loop.scheduler.running, *self._loop.scheduler.queue]:
                if sequence.adapter == name:
                    self._loop.end(sequence, RiverrunError(f"adapter '{name}' was unloaded"))
            self._loop.engine.unload_adapter(name)

        self._loop.run(unload)

    def _adapter(self, name: str) -> str:
        """What names its blocks."""
        if name and name not in self._adapters:
            known = ", ".join(self._adapters) or "none"
            raise InputError(
                f"model '{self._info.name}' has no adapter '{name}' (loaded: {known}).{nearest(name, self._adapters)}"
            )
        return self._adapters[name] if name else ""

    def forget(self) -> None:
        """Drop every cached beginning, because the engine's weights were changed; what still runs must end first."""

        def forget() -> None:
            if count := len(self._loop.scheduler.running):
                raise RiverrunError(
                    f"{count} answers of model '{self._info.name}' still run: "
                    "its caches can be dropped when they are done"
                )
            self._loop.pool.forget()

        self._loop.run(forget)

    @cached_property
    def sessions(self) -> SessionTable:
        """Conversations that are remembered here."""
        return SessionTable(self)

    def session(self, name: str = "", messages: Seq[Message] = (), *, adapter: str = "") -> Session:
        """Open a conversation: `session.ask("And in green?")` sends the new turn alone."""
        return self.sessions.open(name, messages, adapter=adapter)

    def close(self) -> None:
        """End the loop; requests that still run fail with a clear error."""
        self._loop.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- sequences ----------------------------------------------------------------------------------------------

    def _submit(self, sequences: Seq[Sequence]) -> None:
        self._loop.submit(sequences)

    def _new(self, ids: list[int], params: SamplingParams, adapter: str, wanted: Wanted, **rest: Any) -> Sequence:
        engine = self._loop.engine
        key = rest.pop("position_key", None)
        key = engine.position_key(len(ids)) if key is None else key
        begin = root(self._info.digest, self._adapter(adapter), key, engine.kind)
        return Sequence(
            ids, params, self._context, root=begin, block_size=engine.block_size, position_key=key, adapter=adapter,
            wanted=wanted, **rest,
        )  # fmt: skip

    def _sequence(self, request: Request, keep: Keep | None = None) -> Sequence:
        params = request.params
        ids = self._texts.prompt(request)
        self._texts.existing([*params.logit_bias, *params.stop_ids])
        wanted = self._texts.guide(request)
        guide = self._guided(wanted) if wanted else None
        ends = {*self._texts.tokenizer.end_ids, *params.stop_ids}
        sampler = Sampler(params, ids, ends=ends, bad=self._texts.bad_words(params.bad_words))
        deadline = time.monotonic() + request.timeout_seconds if request.timeout_seconds else 0.0
        looked = {"looked_from": 0} if params.prompt_logprobs is not None else {}
        sequence = self._new(
            ids, params, request.adapter, "answer", stops=self._texts.stops(request), key=request.key, sampler=sampler,
            guide=guide, deadline=deadline, keep=keep, **looked,
        )  # fmt: skip
        if request.abort is not None:
            request.abort.when_set(partial(self._abort, sequence))
        return sequence

    def _abort(self, sequence: Sequence) -> None:
        sequence.aborted = True
        self._loop.wake()

    def _guided(self, guide: Guide) -> Guided:
        with self._lock:
            if self._grammars is None:
                tokenizer = self._texts.tokenizer
                self._grammars = Grammars(
                    self._texts.token_bytes,
                    self._opened.config.vocab_size,
                    ends=tokenizer.end_ids,
                    special=tokenizer.special.values(),
                    names=tokenizer.special | tokenizer.added,
                    encode=tokenizer.encode,
                )
            return self._grammars.guided(guide)

    def _stopped(self, sequence: Sequence, token: int) -> bool:
        """Whether a stop string stands in the answer's text."""
        if not sequence.stops:
            return False
        watch = sequence.watch
        if watch is None:
            watch = sequence.watch = TextStream(self._texts.tokenizer, sequence.stops)
        watch.push(token)
        return watch.stopped


def adapter_digest(folder: Path) -> str:
    """Of an adapter's weights and of how they are meant (its rank and alpha); InputError where there is none."""
    try:
        return "+".join(digest_file(folder / name) for name in ("adapter_model.safetensors", "adapter_config.json"))
    except OSError as error:
        raise InputError(f"{folder} holds no adapter in PEFT's layout ({error.strerror}): choose another") from None


def read_messages(messages: str | Seq[Message] | Seq[Mapping[str, Any]]) -> tuple[Message, ...]:
    """A question, messages, or messages in OpenAI's form."""
    if isinstance(messages, str):
        return (Message.of("user", messages),)
    return tuple(each if isinstance(each, Message) else Message.from_openai(each) for each in messages)


class _Deltas:
    """The iterator of a stream. Closing it, dropping it or reading it to its end aborts what is still running.

    Counts that no piece has told stand in `left` then.
    """

    def __init__(
        self, sequence: Sequence, deltas: Iterator[Delta | None], wake: Callable[[], None], left: list[Usage]
    ) -> None:
        self._sequence, self._deltas, self._wake, self._left, self._told = sequence, deltas, wake, left, False

    def __iter__(self) -> _Deltas:
        return self

    def __next__(self) -> Delta | None:
        delta = next(self._deltas)
        self._told = self._told or (delta is not None and delta.usage is not None)
        return delta

    def close(self) -> None:
        self._sequence.aborted = True
        self._wake()
        with suppress(ValueError):  # another thread is waiting in __next__: it sees the end of the aborted sequence
            self._deltas.close()  # type: ignore[attr-defined]
        if not self._told and self._sequence.timing.admitted:
            self._told = True
            self._left.append(self._sequence.usage)

    __del__ = close
