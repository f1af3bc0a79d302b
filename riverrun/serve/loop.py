"""The one loop: a thread that owns the engine, its blocks and every running sequence. Token ids in, token ids out.

A step: end what was aborted or is too late, ask the scheduler what to compute, compute it, choose the next tokens,
name the blocks that became full. Any number of threads may submit.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from riverrun.base.errors import BusyError, CapacityError, LateError, RiverrunError
from riverrun.base.types import FinishReason
from riverrun.serve.blocks import BlockPool
from riverrun.serve.engine import Engine, Work
from riverrun.serve.pace import Pace
from riverrun.serve.request import Sequence
from riverrun.serve.sampler import ranked
from riverrun.serve.scheduler import Piece, Scheduler

__all__ = ["Loop", "Observer"]

T = TypeVar("T")


class Observer:
    """Is told what happens, in the loop's thread; does nothing. `serve.metrics` counts."""

    def stepped(self, pieces: Seq[Piece], seconds: float, scheduler: Scheduler) -> None: ...

    def ended(self, sequence: Sequence) -> None: ...


class Loop:
    """`submit` sequences; each gets its tokens and at last `finish` or `fail`. Close it to end the thread."""

    def __init__(
        self,
        open_engine: Callable[[], Engine],
        *,
        name: str = "model",
        ends: frozenset[int] = frozenset(),
        running: int = 64,
        waiting: int = 0,
        pace: Pace | None = None,
        stop_of: Callable[[Sequence, int], bool] = lambda sequence, token: False,
        draft: Callable[[Sequence, int], tuple[int, ...]] | None = None,
        observer: Observer | None = None,
    ) -> None:
        """`running`, `waiting`: sequences at most (waiting 0: no bound). `ends`: tokens that end an answer.

        `stop_of` is asked behind every token whether a stop string stands there; `draft` for a guess of what follows.
        """
        self._name, self._ends, self._most_waiting = name, ends, waiting
        self.pace, self._stop_of, self._draft = pace or Pace(), stop_of, draft
        self.accepted = 0
        """Drafted tokens that were what would have been chosen."""
        self._observer = observer or Observer()
        self._most = running
        self._new: deque[Sequence] = deque()
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._pending = 0  # submitted and not ended
        opened: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._serve, args=(open_engine, opened), name="riverrun-loop", daemon=True
        )
        self._thread.start()
        opened.result()

    @property
    def engine(self) -> Engine:
        """The engine; its methods are for the loop's thread (`run`)."""
        self._require_open()
        return self._engine

    @property
    def waiting(self) -> int:
        """Requests that were submitted and do not run."""
        return max(0, self._pending - len(self.scheduler.running))

    # ---- asking -------------------------------------------------------------------------------------------------

    def submit(self, sequences: Seq[Sequence]) -> None:
        """All or none. BusyError when more would wait than may, CapacityError for one that no pool could hold."""
        for sequence in sequences:
            needed = (
                min(sequence.length + sequence.limit, sequence.context)
                if sequence.wanted == "answer"
                else sequence.length
            )
            if (room := self.pool.total * self.pool.size) < needed:
                raise CapacityError(
                    f"the request may take {needed} tokens of the cache, which holds {room} in '{self._name}': "
                    "ask for fewer tokens or give the cache more memory"
                )
        with self._wake:
            self._require_open()
            waiting = self.waiting
            if self._most_waiting and waiting + len(sequences) > self._most_waiting + self._most:
                raise BusyError(
                    f"{waiting} requests wait for '{self._name}', at most {self._most_waiting} may: try again later"
                )
            self._pending += len(sequences)
            self._new.extend(sequences)
            self._wake.notify()

    def run(self, job: Callable[[], T]) -> T:
        """Do something between two steps, in the thread that owns everything."""
        future: Future[T] = Future()
        with self._wake:
            self._require_open()
            self._jobs.append((job, future))
            self._wake.notify()
        return future.result()

    def wake(self) -> None:
        """Look again: something was aborted."""
        with self._wake:
            self._wake.notify()

    def close(self) -> None:
        """End the loop; sequences that still run fail with a clear error."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _require_open(self) -> None:
        if self._closed:
            raise RiverrunError(f"model '{self._name}' was closed: open it again")

    # ---- the loop -----------------------------------------------------------------------------------------------

    def _serve(self, open_engine: Callable[[], Engine], opened: Future[None]) -> None:
        """All work of the engine is done in this thread, its opening too.

        OpenMP keeps a team of workers per asking thread; with two teams on as many cores as one team has, it lets
        them sleep between products, and every step takes twice as long.
        """
        try:
            self._engine = open_engine()
            self.pool = BlockPool(self._engine.blocks, self._engine.block_size)
            self.scheduler = Scheduler(self.pool, self._most)
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        while self._wait():
            try:
                self._run_jobs()
                self._step()
            except Exception as error:  # an engine that failed once: everyone who runs is told
                for sequence in list(self.scheduler.running):
                    self.end(sequence, error)
        gone = RiverrunError(f"model '{self._name}' was closed before the answer was complete")
        for sequence in [*self.scheduler.running, *self.scheduler.queue, *self._new]:
            sequence.fail(gone)
        for _, future in self._jobs:
            future.set_exception(gone)
        self._engine.close()
        del self._engine  # weights and cache go with the last answer, not with the last reference to this object

    def _wait(self) -> bool:
        """Sleep while there is nothing to do; False when closed. New sequences go to the scheduler."""
        with self._wake:
            while not (self._closed or self._new or self._jobs) and self.scheduler.is_idle:
                self._wake.wait()
            while self._new:
                self.scheduler.submit(self._new.popleft())
            return not self._closed

    def _run_jobs(self) -> None:
        while self._jobs:
            job, future = self._jobs.popleft()
            try:
                future.set_result(job())
            except Exception as error:
                future.set_exception(error)

    def end(self, sequence: Sequence, how: FinishReason | BaseException) -> None:
        """It is over, for this reason or with this error; for the loop's own thread (`run`)."""
        self.scheduler.finish(sequence)
        with self._wake:
            self._pending -= 1
        if isinstance(how, BaseException):
            sequence.fail(how)
        else:
            sequence.finish(how)
        with suppress(Exception):  # who counts must not stop who serves
            self._observer.ended(sequence)

    def _sweep(self) -> None:
        """End what nobody waits for any more."""
        now = time.monotonic()
        for sequence in [*self.scheduler.running, *self.scheduler.queue]:
            if sequence.aborted:
                self.end(sequence, "abort")
            elif sequence.deadline and now > sequence.deadline:
                spent = now - sequence.timing.arrived
                self.end(sequence, LateError(f"no complete answer after {spent:.1f} s, the request's own limit"))

    def _step(self) -> None:
        self._sweep()
        answering = self.scheduler.decoding
        pieces = self.scheduler.plan(self.pace.prompt_tokens(answering))
        if not pieces:
            return
        began = time.perf_counter()
        works = [self._work(piece) for piece in pieces]
        hidden = self._engine.forward(works)
        self._take(pieces, works, hidden)
        seconds = time.perf_counter() - began
        prompts = sum(piece.count for piece in pieces if not piece.sequence.output)
        self.pace.learn(answering, prompts, seconds)
        with suppress(Exception):
            self._observer.stepped(pieces, seconds, self.scheduler)

    def _work(self, piece: Piece) -> Work:
        sequence = piece.sequence
        wanted = min(piece.count, max(0, piece.start + piece.count - sequence.needed_from))
        return Work(piece.tokens, piece.start, sequence.blocks, wanted, sequence.position_key, sequence.adapter)

    def _take(self, pieces: Seq[Piece], works: Seq[Work], hidden: Any) -> None:
        """What was computed: likelihoods, sums, and the next tokens."""
        ends = np.cumsum([work.wanted for work in works])
        sampled: list[tuple[Piece, int]] = []
        rows: list[int] = []
        for piece, work, end in zip(pieces, works, ends, strict=True):
            sequence, first = piece.sequence, int(end) - work.wanted
            choices = 1 + len(piece.drafts) if piece.is_last and sequence.wanted == "answer" else 0
            looked = range(first, int(end) - choices)
            if sequence.wanted in ("sum", "last"):
                found = self._engine.total(hidden, looked)
                sequence.sum = found if sequence.sum is None else sequence.sum + found
            elif looked:
                place = piece.start + piece.count - work.wanted
                targets = [sequence.target(place + n) for n in range(len(looked))]
                top = sequence.params.prompt_logprobs or 0
                sequence.judged += self._engine.judge(hidden, looked, targets, top)
            if choices:
                sampled.append((piece, len(rows)))
                rows += range(int(end) - choices, int(end))
            else:
                self.scheduler.computed(piece)
                self.scheduler.publish(sequence)
                if sequence.wanted != "answer" and not sequence.uncomputed:
                    self.end(sequence, "stop")
        if rows:
            logits = self._engine.logits(hidden, rows)
            for piece, at in sampled:
                try:
                    self._answer(piece, logits[at : at + 1 + len(piece.drafts)])
                except Exception as error:  # its sampler and its guide are its own: the others go on
                    self.end(piece.sequence, error)

    def _answer(self, piece: Piece, logits: Any) -> None:
        """Choose behind the last token, and behind each draft as long as they are what would have been chosen."""
        sequence, ended = piece.sequence, None
        assert sequence.sampler is not None, "an answer has a sampler"
        accepted = 0
        for place, row in enumerate(logits):
            token = sequence.sampler.choose(row, sequence.guide.mask() if sequence.guide else None)
            if sequence.params.logprobs is not None:
                sequence.chosen.append(ranked(row, token, sequence.params.logprobs))
            ended = self._append(sequence, token)
            if ended or place >= len(piece.drafts) or token != piece.drafts[place]:
                break
            accepted += 1
        if sequence.guide and not ended:
            ended = self._guide(sequence, token)
        self.accepted += accepted
        self.scheduler.computed(piece, accepted)
        self.scheduler.publish(sequence)
        if ended:
            self.end(sequence, ended)
        elif self._draft is not None and not sequence.guide:
            room = max(0, sequence.limit - len(sequence.output) - 1)
            sequence.drafts = self._draft(sequence, len(self.scheduler.running))[:room]

    def _append(self, sequence: Sequence, token: int) -> FinishReason | None:
        """The next token of the answer; why it is the last, if it is."""
        assert sequence.sampler is not None
        sequence.sampler.took(token)
        sequence.append(token)
        return self._ended(sequence, token)

    def _guide(self, sequence: Sequence, token: int) -> FinishReason | None:
        """Go on in the grammar, and append what it leaves no choice about (but where chances are asked for)."""
        guide = sequence.guide
        assert guide is not None
        guide.took(token)
        if sequence.params.logprobs is None:
            for forced in guide.forced():
                if ended := self._append(sequence, forced):
                    return ended
        return "stop" if guide.is_over else None

    def _ended(self, sequence: Sequence, token: int) -> FinishReason | None:
        params = sequence.params
        if (
            (token in self._ends and not params.ignore_end)
            or token in params.stop_ids
            or self._stop_of(sequence, token)
        ):
            return "stop"
        return "length" if sequence.is_full else None
