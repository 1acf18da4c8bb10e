"""Processes that score responses one at a time, each with a time limit after which it is replaced."""

import json
import os
import queue
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal

from components.rewards.function_call import Answered, RewardFunction, Value
from components.rewards.function_file import RewardError

TIMED_OUT: Literal["timed out"] = "timed out"


class ScorerPool:
    """`processes` processes that share the work; they start with the first response. timeout: seconds for each
    response, None for no limit; a function that is slower is killed with its process, and whatever it started."""

    def __init__(self, functions: Sequence[RewardFunction], processes: int, timeout: float | None) -> None:
        self.functions, self.processes, self.timeout = list(functions), processes, timeout
        self._idle: queue.SimpleQueue[Scorer] = queue.SimpleQueue()
        self._started = False
        self.close = weakref.finalize(self, _end, self._idle)  # at the latest when Python ends

    def values(self, function: RewardFunction, answered: Answered) -> list[Value | Literal["timed out"]]:
        """A number or None for each response, or TIMED_OUT. Raises RewardError as `RewardFunction` does, and if the
        function ends its process."""
        if not self._started:
            for _ in range(self.processes):
                self._idle.put(Scorer(self.functions))
            self._started = True

        def one(i: int) -> Value | Literal["timed out"]:
            scorer = self._idle.get()
            try:
                return scorer.value(function, answered.only(i), self.timeout)
            finally:
                self._idle.put(scorer if scorer.is_alive() else Scorer(self.functions))

        with ThreadPoolExecutor(self.processes) as threads:
            return list(threads.map(one, range(len(answered.texts))))


class Scorer:
    """One process, which has its own session, so that Ctrl-C does not reach it and killing it ends its children."""

    def __init__(self, functions: Sequence[RewardFunction]) -> None:
        named = [(function.name, function.place.written, function.key, function.extra) for function in functions]
        command = [sys.executable, "-m", "components.rewards.scorer", json.dumps(named)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
        self._ready = False

    def value(self, function: RewardFunction, answered: Answered, timeout: float | None) -> Value | Any:
        """The function's value on a single response; TIMED_OUT after `timeout` seconds."""
        if not self._ready:
            try:
                self._reply(function, answered, None)  # importing the functions has no time limit
            except RewardError:
                self.kill()  # it has said why it cannot start, and would not say it to the next response
                raise
            self._ready = True
        assert self._process.stdin is not None
        task = {"name": function.name, "answered": answered._asdict()}
        with suppress(BrokenPipeError):  # it has ended, which the missing reply says
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            self._process.stdin.flush()
        return self._reply(function, answered, timeout)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """Ends the process and whatever it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                stream.close()  # type: ignore[union-attr]

    def _reply(self, function: RewardFunction, answered: Answered, timeout: float | None) -> Any:
        """The value of the next reply, TIMED_OUT if there is none in time."""
        assert self._process.stdout is not None
        descriptor, line = self._process.stdout.fileno(), b""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not line.endswith(b"\n"):
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([descriptor], [], [], left)[0]:
                self.kill()
                return TIMED_OUT
            part = os.read(descriptor, 65536)
            if not part:
                self.kill()
                ended = self._process.returncode
                how = f"signal {-ended}" if ended < 0 else f"exit status {ended}"
                raise RewardError(f"{function} ended its process ({how}); on{answered.described(0)}")
            line += part
        reply = json.loads(line)
        if "error" in reply:
            raise RewardError(reply["error"])
        return reply.get("value")


def _end(scorers: "queue.SimpleQueue[Scorer]") -> None:
    while not scorers.empty():
        scorers.get().kill()
