"""A reward function by its place, `file.py:name` or `package.module:name`: checked and hashed before it is imported."""

import ast
import difflib
import hashlib
import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from components.system.disk import hash_of_file
from components.system.plain import plain

EXAMPLE = "such as my_rewards.py:correct"
FIELDS = {"path", "weight", "arguments"}  # of one of several functions


class RewardError(ValueError):
    """A reward function cannot be used, or what it did with a response is not a score."""


class Place(NamedTuple):
    """Where a function is: its source file, its name, and as the config writes it."""

    file: Path
    name: str
    written: str

    def content(self) -> str:
        """What identifies the function, wherever its file lies: the sha256 of the file, and the name in it."""
        return f"{hash_of_file(self.file)}:{self.name}"


class Entry(NamedTuple):
    """A function that settings name: its own name, its place as written, its weight, its arguments besides those of
    responses and records, and the setting's key."""

    name: str
    written: Any
    weight: float
    arguments: dict[str, Any]
    key: str


def entries(settings: Mapping[str, Any], key: str) -> list[Entry]:
    """The functions that settings name: the one at `path`, with `arguments`, or those of `functions`, a mapping
    {name: place, or {path, weight?, arguments?}}, where the weight is 1 if not given. key: of the settings.

    Raises RewardError unless exactly one of the two is set, and for a name that cannot be part of a metric's, another
    field, and a weight that is not a number.
    """
    path, functions, arguments = (settings.get(name) for name in ("path", "functions", "arguments"))
    if bool(path) == bool(functions):
        both = "both" if path else "neither"
        raise RewardError(
            f"{key}.path and {key}.functions: got {both}, expected one: {key}.path=<file.py>:<function>, or "
            f"'{key}.functions={{<name>: <file.py>:<function>, …}}'"
        )
    if path:
        return [Entry(str(path).rpartition(":")[2], path, 1.0, plain(arguments) or {}, f"{key}.path")]
    if arguments:
        raise RewardError(f"{key}.arguments: belong to {key}.path; of several functions, each has its own")
    made = []
    for name, value in (functions or {}).items():
        own = f"{key}.functions.{name}"
        fields = dict(value) if isinstance(value, Mapping) else {"path": value}
        weight, own_arguments = fields.get("weight", 1.0), plain(fields.get("arguments")) or {}
        if not str(name).isidentifier():
            raise RewardError(f"{own}: expected a name of letters, digits and _ (it is logged as reward_<name>)")
        if "path" not in fields or fields.keys() - FIELDS or not isinstance(own_arguments, Mapping):
            raise RewardError(f"{own}: got {value!r}, expected <file.py>:<function>, or {{path, weight?, arguments?}}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise RewardError(f"{own}.weight: got {weight!r}, expected a number")
        made.append(Entry(str(name), fields["path"], float(weight), dict(own_arguments), own))
    return made


def place_of(written: Any, key: str) -> Place:
    """The place that a setting names. key: the setting, for messages.

    Raises RewardError for anything but `file.py:name` or `package.module:name`, and for a file that does not exist, is
    not Python, or does not define the name as something to call. Runs none of the file.
    """
    where, colon, name = written.rpartition(":") if isinstance(written, str) else ("", "", "")
    if not (where and colon and name.isidentifier()):
        raise RewardError(f"{key}: got {written!r}, expected a file and a function in it, {EXAMPLE}")
    place = Place(_file(where, key), name, written)
    _check(place, key)
    return place


def load(place: Place, key: str) -> Callable[..., Any]:
    """The function, after running its file, once per process and content. It can import modules next to the file.

    Raises RewardError if the file cannot be run, or the name is not a function.
    """
    try:
        module = _module(place)
    except Exception as error:  # whatever a file does while it is imported
        raise RewardError(f"{key}: {place.file} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, place.name, None)
    if not callable(function) or isinstance(function, type):
        kind = "nothing" if function is None else "a class" if callable(function) else f"a {type(function).__name__}"
        raise RewardError(f"{key}: {place.name} in {place.file} is {kind}, expected a function")
    return function


def _file(where: str, key: str) -> Path:
    if where.endswith(".py") or os.sep in where:
        file = Path(where).expanduser()
        if not file.is_file():
            raise RewardError(f"{key}: no such file: {file.absolute()}. Expected a file and a function, {EXAMPLE}")
        return file
    try:
        spec = importlib.util.find_spec(where)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise RewardError(f"{key}: no module named {where!r}, nor a file. A file's name ends in .py, {EXAMPLE}")
    return Path(spec.origin)


def _check(place: Place, key: str) -> None:
    """Raises RewardError if the source says that the name is not there, or not a function."""
    try:
        tree = ast.parse(place.file.read_bytes(), str(place.file))
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise RewardError(f"{key}: {place.file}{line} is not Python: {getattr(error, 'msg', error)}") from None
    bound = dict(_bound(tree.body))
    if "*" not in bound and place.name not in bound:
        functions = [name for name, node in bound.items() if isinstance(node, ast.FunctionDef)]
        near = difflib.get_close_matches(place.name, functions, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"It has: {', '.join(functions) or 'no function'}"
        raise RewardError(f"{key}: {place.file} has no function {place.name!r}. {hint}")
    node = bound.get(place.name)
    wrong = {ast.ClassDef: "a class", ast.AsyncFunctionDef: "an async function"}.get(type(node))
    if wrong:
        raise RewardError(f"{key}: {place.name} in {place.file} is {wrong}, expected a plain function (def)")


def _bound(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    """The names that top-level statements bind; "*" for those of a star import, which are not known."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name.partition(".")[0], node) for alias in node.names)
        else:
            names = (part for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store))
            yield from ((name.id, node) for name in names)
            for field in ("body", "orelse", "finalbody"):
                yield from _bound(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from _bound(handler.body)


def _module(place: Place) -> ModuleType:
    where = place.written.rpartition(":")[0]
    if not (where.endswith(".py") or os.sep in where):
        return importlib.import_module(where)
    file = place.file.resolve()
    name = f"{file.stem}_{hashlib.sha256(os.fsencode(file)).hexdigest()[:8]}_{hash_of_file(file)[:8]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ImportError(f"not a Python file: {file}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickle look a module up by its name
        if str(file.parent) not in sys.path:
            sys.path.append(str(file.parent))  # last: a file next to it must not hide a package
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
