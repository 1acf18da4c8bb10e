"""Where the time of an on-policy iteration goes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Wall-clock seconds by part: `mark(name)` adds the time since the last mark to `name`."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def mark(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] += now - self._last
        self._last = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside, marked or not, is not counted."""
        kept, since = self.seconds.copy(), time.perf_counter() - self._last
        yield
        self.seconds, self._last = kept, time.perf_counter() - since

    def read(self) -> dict[str, float]:
        """The seconds so far; resets them to 0."""
        seconds = dict(self.seconds)
        self.seconds.clear()
        return seconds
