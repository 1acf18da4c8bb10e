"""Progress and remaining time of long work outside of training."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.progress import BarColumn, Progress, TextColumn

from components.system import processes

Item = TypeVar("Item")
SECONDS = 5.0  # between two lines in a log file, and before the first


def countdown(
    items: Iterable[Item],
    what: str,
    total: int,
    *,
    count: Callable[[Item], int] = lambda item: 1,
    shown: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Item]:
    """Yields the items and reports `what 96/512 eta 12s`: a bar on a terminal, a line every SECONDS in a log file.

    total: the largest possible number of items, in units of `count`. Work shorter than SECONDS prints nothing in a log
    file. Only the first process prints. shown=False prints nothing at all.
    """
    if not shown or processes.rank():
        yield from items
        return
    began = reported = clock()
    done = 0
    columns = BarColumn(), TextColumn("{task.description}", markup=False)
    bar = Progress(*columns, transient=True) if sys.stdout.isatty() else None
    if bar is not None:
        task = bar.add_task(what, total=total)
        bar.start()
    try:
        for item in items:
            yield item  # the caller works on it before it requests the next one
            done += count(item)
            now = clock()
            left = (now - began) / done * max(total - done, 0)
            line = f"{what} {done}/{total} eta {duration(left)}"
            if bar is not None:
                bar.update(task, completed=done, description=line)
            elif now - reported >= SECONDS:
                print(line, flush=True)
                reported = now
    finally:
        if bar is not None:
            bar.stop()


def starts(total: int, size: int, what: str) -> Iterator[int]:
    """The start of each chunk of at most `size` of `total` items, with a countdown of the items."""
    return countdown(range(0, total, size), what, total, count=lambda start: min(size, total - start))


def duration(seconds: float) -> str:
    """12s, 3m05s, 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
