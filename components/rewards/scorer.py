"""A process that scores one response after another: JSON lines in, JSON lines out. Started by `scorer_pool`.

Imports no torch, so that it starts in a fraction of a second. What the functions print goes to stderr. It ends when its
input does, or when the process that started it has ended.
"""

import json
import os
import sys
import threading
import time
from typing import Any

from components.rewards.function_call import Answered, RewardFunction
from components.rewards.function_file import RewardError, place_of


def main() -> None:
    """Answers a line for every line of its input, until that ends."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    named = json.loads(sys.argv[1])
    functions = {name: RewardFunction(name, place_of(at, key), key, extra) for name, at, key, extra in named}

    def reply(value: dict[str, Any]) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    try:
        for function in functions.values():
            function.load()
        reply({})
    except RewardError as error:
        reply({"error": str(error)})
    for line in sys.stdin.buffer:
        task = json.loads(line)
        try:
            [value] = functions[task["name"]](Answered(**task["answered"]))
            reply({"value": value})
        except RewardError as error:
            reply({"error": str(error)})


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
