"""Counters and a histogram in Prometheus' text format, for which a server this small needs no library."""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds
HELP = {
    "gradus_requests_total": "HTTP requests by path and status.",
    "gradus_prompt_tokens_total": "Tokens of prompts.",
    "gradus_cached_tokens_total": "Tokens of prompts that an earlier text had computed.",
    "gradus_completion_tokens_total": "Sampled tokens.",
    "gradus_first_token_seconds": "Time from a request to its first token.",
    "gradus_running_rows": "Samples that decode together now.",
    "gradus_waiting_requests": "Requests without their first token.",
}


class Metrics:
    """What /metrics shows; add and observe can be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Adds to a counter."""
        with self._lock:
            self._counts[name, tuple(sorted(labels.items()))] += amount  # type: ignore[assignment]

    def first_token(self, seconds: float) -> None:
        """Adds a time to the histogram."""
        with self._lock:
            self._buckets[bisect_left(BUCKETS, seconds)] += 1
            self._sum += seconds

    def page(self, gauges: Mapping[tuple[str, tuple[tuple[str, str], ...]], float]) -> str:
        """All metrics; gauges: values of this moment, by name and labels."""
        with self._lock:
            counts, buckets, total = dict(self._counts), list(self._buckets), self._sum
        lines: list[str] = []
        for kind, values in (("counter", counts), ("gauge", dict(gauges))):
            for name in sorted({name for name, _ in values}):
                lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} {kind}"]
                lines += [f"{name}{_shown(labels)} {value:g}" for (n, labels), value in values.items() if n == name]
        name = "gradus_first_token_seconds"
        lines += [f"# HELP {name} {HELP[name]}", f"# TYPE {name} histogram"]
        for place, limit in enumerate((*map(str, BUCKETS), "+Inf")):
            lines.append(f'{name}_bucket{{le="{limit}"}} {sum(buckets[: place + 1])}')
        lines += [f"{name}_sum {total:g}", f"{name}_count {sum(buckets)}"]
        return "\n".join(lines) + "\n"


def _shown(labels: tuple[tuple[str, str], ...]) -> str:
    escaped = [(key, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for key, value in labels]
    return "{" + ",".join(f'{key}="{value}"' for key, value in escaped) + "}" if labels else ""
