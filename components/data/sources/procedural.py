"""Problems of reasoning_gym: procedural tasks with unlimited problems, whose answers a program checks."""

import difflib
import functools
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

from components.data.records.errors import SourceError
from components.data.sources.source import Row, Source, digest
from components.system import installing
from components.system.plain import plain

PACKAGE, EXTRA = "reasoning-gym", "reasoning-gym"
APART = 10_000_000  # problem i of a task has the seed APART · seed + i
REFUSED = {
    "codeio": "it runs programs that a model wrote",
    "composite": "list its parts in data.tasks instead",
}
Task = str | Mapping[str, Any]


class Problems(NamedTuple):
    """`size` problems of each task, repeated ones included. tasks: names, or {task: name, …} with settings of the
    task. seed: another has other problems. system: a system message before each, if any."""

    tasks: Sequence[Task]
    size: int = 2000
    seed: int = 0
    system: str | None = None

    @classmethod
    def of(cls, tasks: Sequence[Task] | None, *settings: Any) -> Self | None:
        """The problems with these fields, in order; None without tasks."""
        return None if tasks is None else cls(tasks, *settings)


def problems_source(problems: Problems) -> Source:
    """The problems as {"prompt": messages, "completion", "answer", "task", "problem"}.

    answer, completion: a correct answer, if the task has one to show. problem: what `problem` takes. The split by
    prompt decides which are held out, so no problem is on both sides, in any stage with the same system message. Raises
    SourceError for an unknown task or setting, and if reasoning_gym is not installed.
    """
    identities = [_identity(task, problems) for task in problems.tasks]
    if not identities:
        raise SourceError("data.tasks: got none, expected names such as [chain_sum,gcd]")
    for identity in identities:
        _dataset(identity)
    parameters = [importlib.metadata.version(PACKAGE), identities, problems.size, problems.system]
    rows = functools.partial(_rows, identities, problems.size, problems.system)
    return Source("reasoning_gym", lambda: digest(parameters), rows)


def problem(identity: str) -> tuple[Any, dict[str, Any]]:
    """(data set, problem) of a record's column "problem"; the data set scores an answer to the problem."""
    fields = json.loads(identity)
    index = fields.pop("index")
    return _problem(json.dumps(fields, sort_keys=True), index)


def _identity(task: Task, problems: Problems) -> str:
    settings = {"task": task} if isinstance(task, str) else dict(plain(task))
    name = settings.pop("task", None)
    if not isinstance(name, str):
        raise SourceError(f"data.tasks: got {task!r}, expected a task's name, or {{task: <name>, …}}")
    made = {"task": name, "settings": settings, "seed": problems.seed * APART, "size": problems.size}
    return json.dumps(made, sort_keys=True)


@functools.lru_cache(maxsize=64)
def _dataset(identity: str) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise SourceError(installing.missing("data=reasoning_gym", PACKAGE, EXTRA)) from None
    fields = json.loads(identity)
    name, settings = fields["task"], fields["settings"]
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(sorted(DATASETS))}"
        raise SourceError(f"data.tasks: reasoning_gym has no task {name!r}. {hint}")
    if name in REFUSED:
        raise SourceError(f"data.tasks: {name} is not supported: {REFUSED[name]}")
    if own := {"seed", "size"} & settings.keys():
        raise SourceError(f"data.tasks: {name}: got {own.pop()}, which data.task_seed and data.task_problems decide")
    try:
        return reasoning_gym.create_dataset(name, seed=fields["seed"], size=fields["size"], **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise SourceError(f"data.tasks: {name}: {error}") from None


@functools.lru_cache(maxsize=16384)
def _problem(identity: str, index: int) -> tuple[Any, dict[str, Any]]:
    made = _dataset(identity)
    return made, made[index]


def _rows(identities: Sequence[str], count: int, system: str | None) -> Iterator[Row]:
    before = [{"role": "system", "content": system}] if system else []
    for index in range(count):
        for identity in identities:
            made = _dataset(identity)[index]
            name = json.loads(identity)["task"]
            value = {
                "prompt": [*before, {"role": "user", "content": made["question"]}],
                **({} if made["answer"] is None else {"completion": made["answer"], "answer": made["answer"]}),
                "task": name,
                "problem": json.dumps({**json.loads(identity), "index": index}, sort_keys=True),
            }
            yield Row(f"reasoning_gym: {name}, problem {index}", value)
