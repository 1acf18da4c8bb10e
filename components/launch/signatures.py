"""Signatures: of what is imported from itself, of anything else from its source, which takes no import.

A config is checked against the constructors that it names before torch is imported, seconds sooner. The source of a
module that is not imported yet says the same as the imported one would: parameters, defaults, annotations, bases.
"""

import ast
import builtins
import functools
import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from hydra.utils import get_object

OURS = "components."
GIVEN = "a default"  # stands for one whose value does not matter
LIGHT = {"pydantic", "typing_extensions"}  # whose names are taken from the imported module, as the standard library's


class Level(NamedTuple):
    """One constructor or function: its parameters without self, their annotations by name (Any is not among them),
    and the names that its body passes on by itself."""

    parameters: list[inspect.Parameter]
    hints: dict[str, Any]
    passes: set[str]

    @property
    def open(self) -> bool:
        return any(parameter.kind is parameter.VAR_KEYWORD for parameter in self.parameters)


def levels_of(target: str | Callable[..., Any]) -> list[Level]:
    """A callable, or of a class its constructor and, while one has **kwargs, that of the next base.

    **kwargs of a class that is neither ours nor made from one of ours stay open: it is one level. Raises what importing
    raises, for a name whose source is not to be had, or does not have it.
    """
    if not isinstance(target, str):
        return list(_live(target))
    levels = None if _is_imported(target) else _read(target)
    return list(_live(get_object(target))) if levels is None else levels


def _is_imported(target: str) -> bool:
    return target.rpartition(".")[0] in sys.modules


def _live(target: Callable[..., Any]) -> Iterator[Level]:
    functions = [target]
    if inspect.isclass(target):
        functions = [vars(c)["__init__"] for c in target.__mro__[:-1] if "__init__" in vars(c)] or [target]
        ours = any(base.__module__.startswith(OURS) for base in target.__mro__)
        functions = functions if ours else functions[:1]
    for function in functions:
        parameters = list(inspect.signature(function).parameters.values())
        if inspect.isclass(target) and function is not target:
            del parameters[0]  # self
        constants = function.__code__.co_consts if inspect.isfunction(function) else ()  # with names that a call passes
        passes = {one for c in constants for one in (c if isinstance(c, tuple) else [c]) if isinstance(one, str)}
        level = Level(parameters, _live_hints(function), passes)
        yield level
        if not level.open:
            return


def _live_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations with strings resolved; none where another package names types it imports only for checkers."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError:
        if function.__module__.startswith(OURS):
            raise
        return {}


class _Source:
    """A module's text: what its names are bound to, and the values of its annotations."""

    def __init__(self, name: str, file: Path) -> None:
        self.name = name
        self.package = name if file.stem == "__init__" else name.rpartition(".")[0]
        self.bound: dict[str, ast.AST | tuple[str, str]] = {}  # a statement, or for an import (module, name in it)
        self.stars: list[str] = []
        for node in _statements(ast.parse(file.read_text(encoding="utf-8")).body):
            self._bind(node)

    def _bind(self, node: ast.stmt) -> None:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            self.bound.setdefault(node.name, node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for place in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(place, ast.Name) and node.value is not None:
                    self.bound.setdefault(place.id, node.value)
        elif isinstance(node, ast.Import):
            for one in node.names:
                self.bound.setdefault(one.asname or one.name.partition(".")[0], (one.name if one.asname else "", ""))
        elif isinstance(node, ast.ImportFrom):
            above = self.package.split(".")[: len(self.package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            for one in node.names:
                if one.name == "*":
                    self.stars.append(module)
                else:
                    self.bound.setdefault(one.asname or one.name, (module, one.name))

    def __getitem__(self, name: str) -> Any:
        """The value of a name in an annotation."""
        if name not in self.bound and hasattr(builtins, name):
            return getattr(builtins, name)
        node = self.bound[name]
        if isinstance(node, tuple):
            module, inner = node
            return _imported(module, inner, self) if inner else _Module(module or name, self)
        if isinstance(node, ast.expr):
            return self.value(node)
        return _stand_in(self.name, name) if isinstance(node, ast.ClassDef) else Any

    def value(self, node: ast.expr) -> Any:
        """An annotation, or what one refers to."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        node = ast.fix_missing_locations(_Unquoted().visit(node))
        return eval(compile(ast.Expression(node), self.name, "eval"), {"__builtins__": {}}, cast(Any, self))


class _Unquoted(ast.NodeTransformer):
    """Names in quotes as names, but for those of Literal."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        named = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
        return node if named in ("Literal", "Annotated") else self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.parse(node.value, mode="eval").body if isinstance(node.value, str) else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        return node


class _Module:
    """A module's name in an annotation: its attributes are values."""

    def __init__(self, name: str, asked_by: _Source) -> None:
        self._name, self._asked_by = name, asked_by

    def __getattr__(self, attribute: str) -> Any:
        return _imported(self._name, attribute, self._asked_by)


def _imported(module: str, name: str, asked_by: _Source) -> Any:
    """A name of another module: the standard library's is imported, that of the same package is read, and others are
    classes whose name is all that counts."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in LIGHT:
        return getattr(importlib.import_module(module), name)
    if top != asked_by.name.partition(".")[0]:
        return _stand_in(module, name)
    found = _definition(f"{module}.{name}")
    if found is None:
        return _Module(f"{module}.{name}", asked_by)
    source, node = found
    if isinstance(node, ast.ClassDef):
        return _stand_in(source.name, node.name)
    return source.value(node) if isinstance(node, ast.expr) else Any


@functools.cache
def _stand_in(module: str, name: str) -> type:
    return type(name, (), {"__module__": module, "__class_getitem__": classmethod(lambda cls, item: cls)})


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a module, and of its conditions and attempts: the first that binds a name counts."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            handlers = [one.body for one in node.handlers] if isinstance(node, ast.Try) else []
            for part in (node.body, *handlers, node.orelse):
                yield from _statements(part)
        else:
            yield node


@functools.cache
def _source(module: str) -> _Source | None:
    """None where there is none that can be found without an import."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    file = Path(spec.origin) if spec.origin else None
    for part in rest:
        folder = Path(file.parent if file else next(iter(spec.submodule_search_locations or [""])))
        if file and file.stem != "__init__":
            return None
        file = next((one for one in (folder / part / "__init__.py", folder / f"{part}.py") if one.is_file()), None)
        if file is None:
            return None
    return _Source(module, file) if file and file.suffix == ".py" and file.is_file() else None


@functools.cache
def _definition(target: str) -> tuple[_Source, ast.AST] | None:
    """The module and the statement that define a dotted name, through the modules that only hand it on."""
    module, _, name = target.rpartition(".")
    source = _source(module) if module else None
    if source is None:
        return None
    node = source.bound.get(name)
    if isinstance(node, tuple):
        return _definition(f"{node[0]}.{node[1]}") if node[1] else None
    if node is not None:
        return source, node
    return next(filter(None, (_definition(f"{star}.{name}") for star in source.stars)), None)


@functools.cache
def _read(target: str) -> list[Level] | None:
    """The levels of a function or class by its source; None where it does not tell."""
    try:
        found = _definition(target)
        if found is None:
            return None
        source, node = found
        if isinstance(node, ast.FunctionDef):
            return [_level(source, node)]
        if not isinstance(node, ast.ClassDef):
            return None
        levels: list[Level] = []
        for owner, one in _lineage(source, node):
            level = _constructor(owner, one)
            levels += [level] if level else []
            if level and not (level.open and any(o.name.startswith(OURS) for o, _ in _lineage(source, node))):
                break
        return levels or [Level([], {}, set())]
    except (LookupError, TypeError, SyntaxError, AttributeError):
        return None


def _lineage(source: _Source, node: ast.ClassDef) -> Iterator[tuple[_Source, ast.ClassDef]]:
    """A class and its bases, in the order in which Python asks them. Raises LookupError for one whose source is not
    to be had."""
    yield source, node
    for base in node.bases:
        base = base.value if isinstance(base, ast.Subscript) else base
        name = ast.unparse(base)
        if name.rpartition(".")[2] in ("object", "NamedTuple", "Generic", "Protocol", "ABC"):
            continue
        first, _, rest = name.partition(".")
        bound = source.bound.get(first)
        first = ".".join(filter(None, bound if isinstance(bound, tuple) else (source.name, first))) or first
        found = _definition(f"{first}.{rest}" if rest else first)
        if found is None or not isinstance(found[1], ast.ClassDef):
            raise LookupError(name)
        yield from _lineage(found[0], found[1])


def _constructor(source: _Source, node: ast.ClassDef) -> Level | None:
    """That of a class's own: written, or made of its fields; None where it has none."""
    methods = {one.name: one for one in node.body if isinstance(one, ast.FunctionDef)}
    if "__init__" in methods:
        level = _level(source, methods["__init__"])
        del level.parameters[0]  # self
        return level
    if "__new__" in methods:
        raise LookupError("__new__")
    if any(ast.unparse(one).rpartition(".")[2] == "NamedTuple" for one in node.bases):
        return _fields(source, node)
    if any(ast.unparse(one).partition("(")[0].rpartition(".")[2] == "dataclass" for one in node.decorator_list):
        fields: dict[str, inspect.Parameter] = {}
        hints: dict[str, Any] = {}
        for owner, one in reversed(list(_lineage(source, node))):
            level = _fields(owner, one)
            fields |= {parameter.name: parameter for parameter in level.parameters}
            hints |= level.hints
        return Level(list(fields.values()), hints, set())
    return None


def _fields(source: _Source, node: ast.ClassDef) -> Level:
    kinds, parameters, hints = inspect.Parameter, [], {}
    for one in node.body:
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            if "ClassVar" in ast.unparse(one.annotation):
                continue
            default = kinds.empty if one.value is None else GIVEN
            parameters.append(kinds(one.target.id, kinds.POSITIONAL_OR_KEYWORD, default=default))
            hints[one.target.id] = source.value(one.annotation)
    return Level(parameters, hints, set())


def _level(source: _Source, node: ast.FunctionDef) -> Level:
    kinds, given = inspect.Parameter, node.args
    made: list[tuple[ast.arg, Any, bool]] = []  # with its kind, and whether it has a default
    plain = [*given.posonlyargs, *given.args]
    without = len(plain) - len(given.defaults)
    for number, one in enumerate(plain):
        kind = kinds.POSITIONAL_ONLY if number < len(given.posonlyargs) else kinds.POSITIONAL_OR_KEYWORD
        made.append((one, kind, number >= without))
    made += [(given.vararg, kinds.VAR_POSITIONAL, False)] if given.vararg else []
    made += [
        (one, kinds.KEYWORD_ONLY, default is not None) for one, default in zip(given.kwonlyargs, given.kw_defaults)
    ]
    made += [(given.kwarg, kinds.VAR_KEYWORD, False)] if given.kwarg else []
    parameters = [kinds(one.arg, kind, default=GIVEN if has else kinds.empty) for one, kind, has in made]
    hints = {one.arg: source.value(one.annotation) for one, _, _ in made if one.annotation is not None}
    names = {one.arg for one in ast.walk(node) if isinstance(one, ast.keyword) and one.arg}
    texts = {one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    return Level(parameters, hints, names | texts)
