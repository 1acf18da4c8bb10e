"""The time of training steps, by the stopwatch that peers have too."""

import json
from pathlib import Path
from typing import Any

import harness
import lightning


class Watch(lightning.Callback):
    """Writes {"seconds", "cpu_seconds"} of `steps` optimizer steps after the first `warmup` to the JSON file `path`."""

    def __init__(self, path: str, warmup: int, steps: int) -> None:
        self.path = path
        self.stopwatch = harness.Stopwatch(harness.Load(batch=0, context=0, steps=steps, warmup=warmup))

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.stopwatch.step()

    def on_train_end(self, *_: Any) -> None:
        watch = self.stopwatch
        Path(self.path).write_text(json.dumps({"seconds": watch.seconds, "cpu_seconds": watch.cpu_seconds}))
