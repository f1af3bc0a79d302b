"""Which replica gets a request: the one that has computed most of its beginning, unless it is much busier."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence

from riverrun.serve.blocks import Digest

__all__ = ["Router"]

KEPT = 1 << 16
"""Blocks whose replica is remembered."""


class Router:
    """For `count` replicas, by the digests of a prompt's blocks. Any thread may ask."""

    def __init__(self, count: int, *, slack: int = 4, share: float = 0.25, kept: int = KEPT) -> None:
        """A replica with at least `share` of a prompt's blocks gets it while it has at most `slack` requests more than
        the one that has fewest."""
        self.running = [0] * count
        self.slack, self.share, self.kept = slack, share, kept
        self._homes: OrderedDict[Digest, int] = OrderedDict()
        self._lock = threading.Lock()
        self.shared = self.asked = 0
        """Blocks that were sent where they are, of all."""

    def choose(self, digests: Sequence[Digest], live: Collection[int]) -> int:
        """One of `live`, which then has one more request; `end` takes it away again."""
        assert live, "there must be a replica"
        with self._lock:
            least = min(live, key=lambda number: (self.running[number], number))
            chosen, have = least, 0
            for count in range(len(digests), 0, -1):
                home = self._homes.get(digests[count - 1])
                if home is not None and home in live:
                    close = self.running[home] - self.running[least] <= self.slack
                    if close and count >= self.share * len(digests):
                        chosen, have = home, count
                    break
            for digest in digests:
                self._homes[digest] = chosen
                self._homes.move_to_end(digest)
            while len(self._homes) > self.kept:
                self._homes.popitem(last=False)
            self.running[chosen] += 1
            self.asked += len(digests)
            self.shared += have
            return chosen

    def end(self, number: int) -> None:
        """A request of that replica is over."""
        with self._lock:
            self.running[number] -= 1

    def forget(self, number: int) -> None:
        """The replica has lost what it had computed."""
        with self._lock:
            for digest in [digest for digest, home in self._homes.items() if home == number]:
                del self._homes[digest]
