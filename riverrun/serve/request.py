"""One generation on its way through the server; it owns the arithmetic of its lengths, blocks and digests."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from riverrun.base.types import FinishReason, SamplingParams, Usage
from riverrun.serve.blocks import Digest, chain
from riverrun.serve.engine import Judged
from riverrun.serve.guided import Guided
from riverrun.serve.sampler import Chosen, Sampler
from riverrun.serve.stream import TextStream

__all__ = ["Sequence", "Timing", "Wanted"]

Wanted = Literal["answer", "score", "sum", "last"]
_NUMBERS = itertools.count()
SHORT = 32
"""Missing tokens up to which an answer goes on like one that misses its last alone (forced ones, after a guide)."""


@dataclass(slots=True)
class Timing:
    """Moments (time.monotonic) of a request; 0 is not yet."""

    arrived: float = field(default_factory=time.monotonic)
    admitted: float = 0.0
    first: float = 0.0
    ended: float = 0.0


@dataclass(eq=False)
class Sequence:
    """Prompt ids in, generated ids out. Of all its tokens the first `computed` stand in `blocks`.

    `root` begins the chain of its digests: sequences of other roots share no blocks. `key` is whose request it is.
    `deadline`: time.monotonic after which it is given up, 0 for never. `wanted`: an answer; how likely the tokens
    behind `looked_from` are (`targets`, one for each token from there on); or the sum of all hidden states, or the
    last. With an answer `looked_from` below the prompt's last token asks for the likelihood of the prompt's own tokens
    as well.
    """

    prompt: list[int]
    params: SamplingParams
    context: int
    stops: tuple[str, ...] = ()
    root: Digest = b""
    block_size: int = 16
    key: str = ""
    adapter: str = ""
    position_key: int = 0
    deadline: float = 0.0
    wanted: Wanted = "answer"
    looked_from: int = -1
    targets: Seq[int] = ()
    sampler: Sampler | None = None
    guide: Guided | None = None
    number: int = field(default_factory=lambda: next(_NUMBERS))
    output: list[int] = field(default_factory=list)
    chosen: list[Chosen] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    sum: NDArray[np.float32] | None = None
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    published: int = 0
    cached_tokens: int = 0
    drafts: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    watch: TextStream | None = None
    lookup: Any = None
    keep: Callable[[Sequence], None] | None = None  # called in the loop's thread before its blocks go
    aborted: bool = False
    error: BaseException | None = None
    timing: Timing = field(default_factory=Timing)
    news: queue.SimpleQueue[int | None] | None = None  # generated ids, then None; for streams only
    ring: Callable[[], object] | None = None  # called in the loop's thread when there are news
    done: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.digests = chain(self.prompt, self.block_size, self.root)
        """Names of the full blocks of its tokens, as far as they are known."""
        if self.looked_from < 0:
            self.looked_from = len(self.prompt) - 1

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.output

    @property
    def length(self) -> int:
        """Tokens so far, of prompt and answer."""
        return len(self.prompt) + len(self.output)

    @property
    def usage(self) -> Usage:
        """Its counts so far."""
        return Usage(len(self.prompt), len(self.output), self.cached_tokens)

    @property
    def limit(self) -> int:
        """Tokens this sequence may generate: what was asked for, or what the context leaves."""
        return min(self.params.max_tokens, self.context - len(self.prompt))

    @property
    def uncomputed(self) -> int:
        """Tokens that must be computed before the next one can be chosen."""
        return self.length - self.computed

    @property
    def is_answering(self) -> bool:
        """Whether it is past its prompt, and misses few tokens."""
        return bool(self.output) and self.uncomputed <= SHORT

    @property
    def is_full(self) -> bool:
        return len(self.output) >= self.limit

    @property
    def needed_from(self) -> int:
        """The first token whose hidden state is still to be looked at."""
        if self.wanted == "sum":
            return 0
        at = self.looked_from + len(self.judged)
        return at if self.wanted == "score" or at < len(self.prompt) - 1 else self.length - 1

    def target(self, place: int) -> int:
        """The token that is judged behind the one at `place`."""
        return self.targets[place - self.looked_from] if self.targets else self.prompt[place + 1]

    def tokens_from(self, start: int, count: int) -> list[int]:
        """`count` of its tokens from the one at `start` on."""
        own, end = len(self.prompt), start + count
        return self.prompt[start:end] + self.output[max(0, start - own) : max(0, end - own)]

    def coming(self) -> Seq[Digest]:
        """Names of the blocks of its prompt that it holds or is going to, and nobody can find yet."""
        return self.digests[self.published :]

    def chain_to(self, blocks: int) -> list[Digest]:
        """The names of its first `blocks` blocks, which are full."""
        if (known := len(self.digests)) < blocks:
            start = known * self.block_size
            new = self.tokens_from(start, (blocks - known) * self.block_size)
            self.digests += chain(new, self.block_size, self.digests[-1] if known else self.root)
        return self.digests

    def begin(self, blocks: list[int], computed: int) -> None:
        """Run on these blocks, of which the first ones hold `computed` tokens already."""
        self.blocks, self.computed = blocks, computed
        self.published = computed // self.block_size
        if not self.timing.admitted:
            self.timing.admitted, self.cached_tokens = time.monotonic(), computed

    def pause(self) -> None:
        """Its blocks are gone."""
        self.blocks, self.computed, self.published, self.drafts, self.sum = [], 0, 0, (), None

    @property
    def full(self) -> tuple[list[int], list[int]]:
        """The tokens of its full blocks, and those blocks."""
        return self.tokens_from(0, self.published * self.block_size), self.blocks[: self.published]

    def append(self, token: int) -> None:
        """The next token of the answer."""
        if not self.output:
            self.timing.first = time.monotonic()
        self.output.append(token)
        self._tell(token)

    def finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self._announce()

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.finish_reason = "abort"
        self._announce()

    def _announce(self) -> None:
        self.timing.ended = time.monotonic()
        self._tell(None)
        self.done.set()

    def _tell(self, news: int | None) -> None:
        if self.news is not None:
            self.news.put(news)
            if self.ring is not None:
                self.ring()
