"""One generation on its way through the server; it owns the arithmetic of its lengths."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field

from riverrun.base.types import FinishReason, SamplingParams

__all__ = ["Sequence"]


@dataclass(eq=False)
class Sequence:
    """Prompt ids in, generated ids out. `slot` is -1 until it is admitted; its slot holds `computed` prompt tokens."""

    prompt: list[int]
    params: SamplingParams
    context: int
    stops: tuple[str, ...] = ()
    output: list[int] = field(default_factory=list)
    slot: int = -1
    cached_tokens: int = 0
    computed: int = 0
    finish_reason: FinishReason | None = None
    aborted: bool = False
    error: BaseException | None = None
    news: queue.SimpleQueue[int | None] | None = None  # generated ids, then None; for streams only
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.output

    @property
    def limit(self) -> int:
        """Tokens this sequence may generate: what was asked for, or what the context leaves."""
        return min(self.params.max_tokens, self.context - len(self.prompt))

    @property
    def uncomputed(self) -> int:
        """Prompt tokens that must be computed before the first answer token."""
        return len(self.prompt) - self.computed

    @property
    def is_full(self) -> bool:
        return len(self.output) >= self.limit

    def finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self._announce()

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.finish_reason = "abort"
        self._announce()

    def _announce(self) -> None:
        if self.news:
            self.news.put(None)
        self.done.set()
