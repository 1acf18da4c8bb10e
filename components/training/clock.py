"""Where the time of an on-policy iteration goes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Wall seconds by part: `mark(name)` adds what passed since the last mark to `name`."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def mark(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] += now - self._last
        self._last = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What passes within, marked or not, counts for nothing."""
        kept, since = self.seconds.copy(), time.perf_counter() - self._last
        yield
        self.seconds, self._last = kept, time.perf_counter() - since

    def read(self) -> dict[str, float]:
        """The seconds so far; afterwards all are 0."""
        found = dict(self.seconds)
        self.seconds.clear()
        return found
