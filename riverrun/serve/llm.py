"""LLM: a checkpoint as a LanguageModel. One thread owns the engine; any number of threads may ask.

Continuous batching: every turn of the loop admits waiting prompts into free slots (sharing the longest beginning that
any slot holds), computes their prompts, and decodes one token for every running sequence. Guided decoding
(`SamplingParams.guide`) is refused by name.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from riverrun.base.errors import CapacityError, InputError, RiverrunError, UnsupportedError
from riverrun.base.optional import require
from riverrun.base.protocols import Completion, Delta, ModelInfo, Request, Score
from riverrun.base.types import FinishReason, Message, Text, ToolCall, Usage
from riverrun.models.load import load_checkpoint
from riverrun.serve.engine import Engine
from riverrun.serve.request import Sequence
from riverrun.serve.sampler import choose, generator
from riverrun.serve.slots import SlotTable, common_prefix
from riverrun.serve.stream import TextStream
from riverrun.wire.codec import Parsed, get_codec

__all__ = ["LLM"]

# Prompt tokens computed in one turn of the loop: bounds how long running sequences wait.
PREFILL_TOKENS = 1024
# A prompt waits a turn when one admitted in this turn will give it so many more tokens than any slot has.
WORTH_WAITING = 32


class LLM:
    """`with LLM(path) as model: model.generate([...])`. Text only."""

    def __init__(
        self,
        path: Path,
        *,
        adapter: Path | None = None,
        name: str = "",
        threads: int = 0,
        slots: int = 32,
        context: int = 0,
        dtype: Literal["auto", "bfloat16", "float32"] = "auto",
        codec: str = "hermes",
        engine: Engine | None = None,
    ) -> None:
        """`context` 0 takes the model's own length, at most 4096 tokens a slot; `engine` replaces the torch engine."""
        self._opened = load_checkpoint(Path(path), adapter=adapter)
        self._tokenizer, self._template, self._codec = self._opened.tokenizer, self._opened.template, get_codec(codec)
        longest = self._opened.config.longest
        if longest is not None and context > longest:
            raise CapacityError(f"context {context} is more than the model's {longest}: choose at most {longest}")
        self._context = context or min(longest or 4096, 4096)
        digest = self._opened.digest()
        self._info = ModelInfo(name or Path(path).stem, digest, self._context, self._template.sha256)

        def open_engine() -> Engine:
            if engine is not None:
                return engine
            require("torch", extra="serve")
            from riverrun.serve.engines.torch import TorchEngine

            return TorchEngine.open(self._opened, slots=slots, context=self._context, threads=threads, dtype=dtype)

        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._watch: dict[Sequence, TextStream] = {}
        self._random: dict[Sequence, np.random.Generator] = {}
        self.on_answer: Callable[[], None] | None = None
        """Called in the asking thread for each finished answer of `generate` (in order) and each `score`: progress."""
        self._wake = threading.Condition()
        self._closed = False
        opened: Future[Engine] = Future()
        task = (open_engine, opened)
        self._thread = threading.Thread(target=self._serve, args=task, name="riverrun-llm", daemon=True)
        self._thread.start()
        opened.result()

    # ---- asking -------------------------------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        return self._info

    def generate(self, requests: Seq[Request]) -> list[Completion]:
        """Answer all requests; they run together, as many at a time as there are slots."""
        sequences = [self._sequence(request) for request in requests]
        self._submit(sequences)
        out = []
        for request, sequence in zip(requests, sequences, strict=True):
            sequence.done.wait()
            out.append(self._completion(request, sequence))
            if self.on_answer:
                self.on_answer()
        return out

    def stream(self, request: Request) -> Iterator[Delta]:
        """Answer one request as it is generated; closing the iterator frees its slot within one step."""
        sequence = self._sequence(request)
        sequence.news = queue.SimpleQueue()
        self._submit([sequence])
        return _Deltas(sequence, self._deltas(request, sequence))

    def score(self, prefix: str | Seq[Message], continuations: Seq[str]) -> list[Score]:
        """Log-probabilities of the continuations; what they share with earlier calls is not computed again."""
        pairs = [self._split(prefix, continuation) for continuation in continuations]
        for before, after in pairs:
            if len(before) + len(after) > self._context:
                raise CapacityError(
                    f"prefix ({len(before)}) and continuation ({len(after)}) have {len(before) + len(after)} tokens, "
                    f"the context is {self._context}: shorten them"
                )
        future: Future[list[Score]] = Future()
        with self._wake:
            self._require_open()
            self._jobs.append((lambda: self._score(pairs), future))
            self._wake.notify()
        scores = future.result()
        if self.on_answer:
            self.on_answer()
        return scores

    def forget(self) -> None:
        """Drop every cached beginning, because the engine's weights were changed; what still runs must end first."""
        future: Future[None] = Future()
        with self._wake:
            self._require_open()
            self._jobs.append((self._forget, future))
            self._wake.notify()
        future.result()

    def close(self) -> None:
        """End the loop; requests that still run fail with a clear error."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- text to tokens and back --------------------------------------------------------------------------------

    def _sequence(self, request: Request) -> Sequence:
        if request.params.guide:
            raise UnsupportedError("guided decoding (guide) is not supported by this engine: leave it out")
        if request.prompt and request.messages:
            raise InputError("a request has either messages or a prompt, this one has both")
        if request.prompt:
            ids = self._tokenizer.encode(request.prompt)
        elif request.messages:
            lowered = self._codec.lower(request.messages, request.tools)
            ids = self._template.encode(self._tokenizer, lowered, model=self._info.name)
        else:
            raise InputError("a request needs messages or a prompt, this one has neither")
        if not ids:
            raise InputError("the request renders to no token: give a message or a prompt with text")
        if len(ids) >= self._context:
            raise CapacityError(
                f"the prompt has {len(ids)} tokens, the context is {self._context} and one is needed for the answer: "
                "shorten the conversation"
            )
        return Sequence(ids, request.params, self._context, self._stops(request))

    def _stops(self, request: Request) -> tuple[str, ...]:
        return request.params.stop + (self._codec.stops if request.tools else ())

    def _result(self, sequence: Sequence) -> tuple[FinishReason, Usage]:
        if sequence.error:
            raise sequence.error
        assert sequence.finish_reason is not None
        usage = Usage(len(sequence.prompt), len(sequence.output), sequence.cached_tokens)
        return sequence.finish_reason, usage

    def _completion(self, request: Request, sequence: Sequence) -> Completion:
        reason, usage = self._result(sequence)
        text = TextStream(self._tokenizer, self._stops(request))
        raw = "".join(text.push(i) for i in self._shown(sequence)) + text.close()
        parsed = self._codec.parse(raw, request.tools) if request.tools else Parsed(raw)
        message = Message("assistant", (Text(parsed.text),) if parsed.text else (), parsed.calls)
        return Completion(message, "tool_calls" if parsed.calls else reason, usage, raw)

    def _shown(self, sequence: Sequence) -> list[int]:
        """Generated ids without the end token."""
        ended = bool(sequence.output) and sequence.output[-1] in self._tokenizer.end_ids
        return sequence.output[:-1] if ended else sequence.output

    def _deltas(self, request: Request, sequence: Sequence) -> Generator[Delta]:
        text = TextStream(self._tokenizer, self._stops(request))
        parser = self._codec.parser(request.tools) if request.tools else None
        news, called = sequence.news, False
        assert news is not None

        def deltas(piece: str, *, last: bool) -> Iterator[Delta]:
            if parser is None:
                if piece:
                    yield Delta(text=piece)
                return
            for item in parser.feed(piece) + (parser.close() if last else []):
                if isinstance(item, str) and item:
                    yield Delta(text=item)
                elif isinstance(item, ToolCall):
                    yield Delta(tool_calls=(item,))

        while (token := news.get()) is not None:
            if token not in self._tokenizer.end_ids:
                for delta in deltas(text.push(token), last=False):
                    called = called or bool(delta.tool_calls)
                    yield delta
        reason, usage = self._result(sequence)
        for delta in deltas(text.close(), last=True):
            called = called or bool(delta.tool_calls)
            yield delta
        yield Delta(finish_reason="tool_calls" if called else reason, usage=usage)

    def _split(self, prefix: str | Seq[Message], continuation: str) -> tuple[list[int], list[int]]:
        """(prefix ids, continuation ids) by the rule of `base.protocols`."""
        if isinstance(prefix, str):
            bare = prefix.rstrip()
            continuation = prefix[len(bare) :] + continuation
            before = self._tokenizer.encode(bare)
            whole = self._tokenizer.encode(bare + continuation)
            if not before and whole:
                start = self._tokenizer.bos_id if self._tokenizer.bos_id is not None else self._tokenizer.eos_id
                if start is None:
                    raise InputError(f"model '{self._info.name}' has no begin token: give a prefix to score after")
                return [start], whole
        else:
            messages = self._codec.lower(prefix, ())
            before = self._template.encode(self._tokenizer, messages, model=self._info.name)
            whole = self._template.encode_answer(self._tokenizer, messages, continuation, model=self._info.name)
        if len(whole) <= len(before):
            raise InputError(f"the continuation {continuation!r} adds no token to its prefix: give a longer one")
        return whole[: len(before)], whole[len(before) :]

    # ---- the loop -----------------------------------------------------------------------------------------------

    def _require_open(self) -> None:
        if self._closed:
            raise RiverrunError(f"model '{self._info.name}' was closed: open it again")

    def _submit(self, sequences: Seq[Sequence]) -> None:
        with self._wake:
            self._require_open()
            self._waiting.extend(sequences)
            self._wake.notify()

    def _serve(self, open_engine: Callable[[], Engine], opened: Future[Engine]) -> None:
        """All work of the engine is done in this thread, its opening too.

        OpenMP keeps a team of workers per asking thread; with two teams on as many cores as one team has, it lets
        them sleep between products, and every step takes twice as long.
        """
        try:
            self._engine = open_engine()
            self._table = SlotTable(self._engine.slots)
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(self._engine)
        self._loop()
        del self._engine  # weights and cache go with the last answer, not with the last reference to this object

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not (self._closed or self._waiting or self._running or self._jobs):
                    self._wake.wait()
                if self._closed:
                    break
            try:
                self._run_jobs()
                self._admit()
                self._step()
            except Exception as error:  # an engine that failed once: everyone who has a slot is told
                self._fail_running(error)
        gone = RiverrunError(f"model '{self._info.name}' was closed before the answer was complete")
        for sequence in [*self._running, *self._waiting]:
            sequence.fail(gone)
        for _, future in self._jobs:
            future.set_exception(gone)

    def _run_jobs(self) -> None:
        while self._jobs:
            job, future = self._jobs.popleft()
            try:
                future.set_result(job())
            except Exception as error:
                future.set_exception(error)

    def _forget(self) -> None:
        if self._running:
            raise RiverrunError(
                f"{len(self._running)} answers of model '{self._info.name}' still run: "
                "its caches can be dropped when they are done"
            )
        self._table = SlotTable(self._engine.slots)

    def _fail_running(self, error: Exception) -> None:
        for sequence in list(self._running):
            self._drop(sequence)
            sequence.fail(error)

    def _admit(self) -> None:
        """Give waiting sequences a slot, as long as their prompts fit into this turn's PREFILL_TOKENS."""
        with self._wake:
            waiting = deque(self._waiting)
            self._waiting.clear()
        later: list[Sequence] = []
        try:
            while waiting:
                sequence = waiting.popleft()
                if sequence.aborted:
                    sequence.finish("abort")
                elif not self._place(sequence):
                    later.append(sequence)
        finally:  # whoever got no slot stays in the queue, also when the engine failed
            with self._wake:
                self._waiting.extendleft(reversed([*later, *waiting]))

    def _place(self, sequence: Sequence) -> bool:
        """Take a slot and what other slots know of the prompt; False when the sequence should wait."""
        if not self._table.free:
            return False
        key = self._engine.position_key(len(sequence.prompt))
        source, shared = self._table.best_prefix(sequence.prompt, key)
        begun = [other for other in self._running if other.uncomputed]
        budget = PREFILL_TOKENS - sum(other.uncomputed for other in begun)
        alike = [other for other in begun if self._table.keys[other.slot] == key]
        coming = max((common_prefix(other.prompt, sequence.prompt) for other in alike), default=0)
        if begun and (budget < len(sequence.prompt) - shared or coming >= shared + WORTH_WAITING):
            return False
        sequence.slot = self._table.take(source, shared)
        self._running.append(sequence)
        self._table.tokens[sequence.slot] = []  # true at every moment, should the engine fail
        self._engine.copy_prefix(source, sequence.slot, shared, key)
        self._table.tokens[sequence.slot], self._table.keys[sequence.slot] = sequence.prompt[:shared], key
        sequence.cached_tokens = sequence.computed = shared
        if sequence.params.temperature:
            self._random[sequence] = generator(sequence.params)
        return True

    def _step(self) -> None:
        """At most PREFILL_TOKENS of prompts, then one token for every sequence whose prompt is complete."""
        for sequence in [sequence for sequence in self._running if sequence.aborted]:
            self._drop(sequence)
            sequence.finish("abort")
        self._prefill()
        self._decode()

    def _prefill(self) -> None:
        """The next piece of the prompts; the last piece of each gives its first token."""
        batch: list[Sequence] = []
        pieces: list[list[int]] = []
        budget = PREFILL_TOKENS
        for sequence in self._running:
            if piece := sequence.prompt[sequence.computed : sequence.computed + budget] if sequence.uncomputed else []:
                batch.append(sequence)
                pieces.append(piece)
                budget -= len(piece)
        if not batch:
            return
        logits = self._engine.forward([sequence.slot for sequence in batch], pieces)
        for sequence, piece, row in zip(batch, pieces, logits, strict=True):
            sequence.computed += len(piece)
            self._table.tokens[sequence.slot] = sequence.prompt[: sequence.computed]
            if not sequence.uncomputed:
                self._append(sequence, row)

    def _decode(self) -> None:
        """One token for every sequence whose prompt is complete."""
        batch = [sequence for sequence in self._running if not sequence.uncomputed]
        if not batch:
            return
        batch.sort(key=lambda sequence: sequence.slot)  # neighbouring slots are read in place, others are copied
        logits = self._engine.forward(
            [sequence.slot for sequence in batch], [sequence.output[-1:] for sequence in batch]
        )
        for sequence, row in zip(batch, logits, strict=True):
            self._table.tokens[sequence.slot].append(sequence.output[-1])
            self._append(sequence, row)

    def _append(self, sequence: Sequence, logits: Any) -> None:
        """Choose the next token; end the sequence when it is the last."""
        token = choose(logits, sequence.params, self._random.get(sequence) or _GREEDY)
        sequence.output.append(token)
        if sequence.news:
            sequence.news.put(token)
        if token in self._tokenizer.end_ids or self._stopped(sequence, token):
            self._drop(sequence)
            sequence.finish("stop")
        elif sequence.is_full:
            self._drop(sequence)
            sequence.finish("length")

    def _stopped(self, sequence: Sequence, token: int) -> bool:
        if not sequence.stops:
            return False
        watch = self._watch.setdefault(sequence, TextStream(self._tokenizer, sequence.stops))
        watch.push(token)
        return watch.stopped

    def _drop(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._table.give_back(sequence.slot)
        self._watch.pop(sequence, None)
        self._random.pop(sequence, None)

    def _score(self, pairs: Seq[tuple[list[int], list[int]]]) -> list[Score]:
        out: list[Score | None] = [None] * len(pairs)
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, (before, _) in enumerate(pairs):
            groups.setdefault(tuple(before), []).append(index)
        for shared, members in groups.items():
            slot = self._hold(list(shared[:-1]), self._engine.position_key(len(shared)))
            branches = self._engine.branch(slot, shared[-1], [pairs[index][1] for index in members])
            for index, branch in zip(members, branches, strict=True):
                out[index] = Score(tuple(float(p) for p in branch.logprobs), bool(branch.greedy.all()))
        return [score for score in out if score is not None]

    def _hold(self, tokens: list[int], key: int) -> int:
        """A slot that holds exactly these tokens; it stays free, so the next caller may overwrite it."""
        while not self._table.free:
            try:
                self._step()
            except Exception as error:
                self._fail_running(error)
                raise
        source, shared = self._table.best_prefix([*tokens, -1], key)
        slot = self._table.take(source, shared)
        try:
            self._table.tokens[slot] = []
            self._engine.copy_prefix(source, slot, shared, key)
            self._table.tokens[slot], self._table.keys[slot] = tokens[:shared], key
            for start in range(shared, len(tokens), PREFILL_TOKENS):
                self._engine.forward([slot], [tokens[start : start + PREFILL_TOKENS]])
            self._table.tokens[slot] = list(tokens)
        finally:
            self._table.give_back(slot)
        return slot


class _Deltas:
    """The iterator of a stream. Closing it, dropping it or reading it to its end aborts what is still running."""

    def __init__(self, sequence: Sequence, deltas: Generator[Delta]) -> None:
        self._sequence, self._deltas = sequence, deltas

    def __iter__(self) -> _Deltas:
        return self

    def __next__(self) -> Delta:
        return next(self._deltas)

    def close(self) -> None:
        self._sequence.aborted = True
        with suppress(ValueError):  # another thread is waiting in __next__: it sees the end of the aborted sequence
            self._deltas.close()

    __del__ = close


_GREEDY = np.random.default_rng(0)  # never drawn from: greedy choices need no randomness
