"""Signatures of functions and classes: from the object if its module is imported, else from its source, without import.

This checks a config against the constructors that it names before torch is imported, seconds sooner. The source of a
module has the same information as the imported module: parameters, defaults, annotations, bases.
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
GIVEN = "a default"  # stands for any default, since its value does not matter
LIGHT = {"pydantic", "typing_extensions"}  # packages that are imported, like the standard library, not read


class Level(NamedTuple):
    """One constructor or function: its parameters without self, the annotations by name of those that have one, and the
    names that its body passes on itself."""

    parameters: list[inspect.Parameter]
    hints: dict[str, Any]
    passes: set[str]

    @property
    def open(self) -> bool:
        """Whether it has **kwargs."""
        return any(parameter.kind is parameter.VAR_KEYWORD for parameter in self.parameters)


def levels_of(target: str | Callable[..., Any]) -> list[Level]:
    """A function, or a class's constructor and, as long as a constructor has **kwargs, that of the next base.

    **kwargs of a class that is neither ours nor derived from ours stay open: it has a single level. If a name's source
    is not available or does not define it, imports it, and raises what that raises.
    """
    if not isinstance(target, str):
        return list(_levels(target))
    levels = None if _is_imported(target) else _read(target)
    return list(_levels(get_object(target))) if levels is None else levels


def attribute_of(target: str, name: str) -> Any:
    """The value of a class's attribute, its own or that of a base, which its source has to give as a literal. Raises
    LookupError if there is none."""
    definition = _definition(target)
    if definition is None or not isinstance(definition[1], ast.ClassDef):
        raise LookupError(target)
    for _, node in _lineage(definition[0], definition[1]):
        for statement in node.body:
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            if any(isinstance(one, ast.Name) and one.id == name for one in targets) and statement.value is not None:  # type: ignore[attr-defined]
                return ast.literal_eval(statement.value)  # type: ignore[attr-defined]
    raise LookupError(f"{target}.{name}")


def _is_imported(target: str) -> bool:
    return target.rpartition(".")[0] in sys.modules


@functools.cache  # inspecting takes most of the time of a check
def _levels(target: Callable[..., Any]) -> tuple[Level, ...]:
    return tuple(_live(target))


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
        passes = {name for c in constants for name in (c if isinstance(c, tuple) else [c]) if isinstance(name, str)}
        level = Level(parameters, _live_hints(function), passes)
        yield level
        if not level.open:
            return


def _live_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations with strings resolved; none if another package names types that it imports only for type checkers."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError:
        if function.__module__.startswith(OURS):
            raise
        return {}


class _Source:
    """A module's source: what its names are bound to, and the values of its annotations."""

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
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and node.value is not None:
                    self.bound.setdefault(target.id, node.value)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                name, _, _ = alias.name.partition(".")
                self.bound.setdefault(alias.asname or name, (alias.name if alias.asname else "", ""))
        elif isinstance(node, ast.ImportFrom):
            above = self.package.split(".")[: len(self.package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                if alias.name == "*":
                    self.stars.append(module)
                else:
                    self.bound.setdefault(alias.asname or alias.name, (module, alias.name))

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
        """The value of an annotation, or of what it refers to."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        node = ast.fix_missing_locations(_Unquoted().visit(node))
        return eval(compile(ast.Expression(node), self.name, "eval"), {"__builtins__": {}}, cast(Any, self))


class _Unquoted(ast.NodeTransformer):
    """Turns quoted names into names, except inside Literal and Annotated."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        named = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
        return node if named in ("Literal", "Annotated") else self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.parse(node.value, mode="eval").body if isinstance(node.value, str) else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        return node


class _Module:
    """A module that an annotation names: its attributes are values."""

    def __init__(self, name: str, asked_by: _Source) -> None:
        self._name, self._asked_by = name, asked_by

    def __getattr__(self, attribute: str) -> Any:
        return _imported(self._name, attribute, self._asked_by)


def _imported(module: str, name: str, asked_by: _Source) -> Any:
    """A name of another module: imported from the standard library, read in the same package, and otherwise a class of
    which only the name matters."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in LIGHT:
        return getattr(importlib.import_module(module), name)
    if top != asked_by.name.partition(".")[0]:
        return _stand_in(module, name)
    definition = _definition(f"{module}.{name}")
    if definition is None:
        return _Module(f"{module}.{name}", asked_by)
    source, node = definition
    if isinstance(node, ast.ClassDef):
        return _stand_in(source.name, node.name)
    return source.value(node) if isinstance(node, ast.expr) else Any


@functools.cache
def _stand_in(module: str, name: str) -> type:
    return type(name, (), {"__module__": module, "__class_getitem__": classmethod(lambda cls, item: cls)})


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those inside if and try included; the first that binds a name counts."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            handlers = [handler.body for handler in node.handlers] if isinstance(node, ast.Try) else []
            for part in (node.body, *handlers, node.orelse):
                yield from _statements(part)
        else:
            yield node


@functools.cache
def _source(module: str) -> _Source | None:
    """A module's source; None if it cannot be found without an import."""
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
        candidates = (folder / part / "__init__.py", folder / f"{part}.py")
        file = next((candidate for candidate in candidates if candidate.is_file()), None)
        if file is None:
            return None
    return _Source(module, file) if file and file.suffix == ".py" and file.is_file() else None


@functools.cache
def _definition(target: str) -> tuple[_Source, ast.AST] | None:
    """The module and the statement that define a dotted name, through the modules that only re-export it."""
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
    """The levels of a function or class from its source; None if that is not enough."""
    try:
        definition = _definition(target)
        if definition is None:
            return None
        source, node = definition
        if isinstance(node, ast.FunctionDef):
            return [_level(source, node)]
        if not isinstance(node, ast.ClassDef):
            return None
        levels: list[Level] = []
        for owner, base in _lineage(source, node):
            level = _constructor(owner, base)
            levels += [level] if level else []
            if level and not (level.open and any(o.name.startswith(OURS) for o, _ in _lineage(source, node))):
                break
        return levels or [Level([], {}, set())]
    except (LookupError, TypeError, SyntaxError, AttributeError):
        return None


def _lineage(source: _Source, node: ast.ClassDef) -> Iterator[tuple[_Source, ast.ClassDef]]:
    """A class and its bases, in the order in which Python searches them. Raises LookupError for one whose source is not
    available."""
    yield source, node
    for base in node.bases:
        base = base.value if isinstance(base, ast.Subscript) else base
        name = ast.unparse(base)
        if name.rpartition(".")[2] in ("object", "NamedTuple", "Generic", "Protocol", "ABC"):
            continue
        first, _, rest = name.partition(".")
        bound = source.bound.get(first)
        first = ".".join(filter(None, bound if isinstance(bound, tuple) else (source.name, first))) or first
        definition = _definition(f"{first}.{rest}" if rest else first)
        if definition is None or not isinstance(definition[1], ast.ClassDef):
            raise LookupError(name)
        yield from _lineage(definition[0], definition[1])


def _constructor(source: _Source, node: ast.ClassDef) -> Level | None:
    """A class's own constructor, written or generated from its fields; None if it has none."""
    methods = {method.name: method for method in node.body if isinstance(method, ast.FunctionDef)}
    if "__init__" in methods:
        level = _level(source, methods["__init__"])
        del level.parameters[0]  # self
        return level
    if "__new__" in methods:
        raise LookupError("__new__")
    if any(ast.unparse(base).rpartition(".")[2] == "NamedTuple" for base in node.bases):
        return _fields(source, node)
    if any(ast.unparse(name).partition("(")[0].rpartition(".")[2] == "dataclass" for name in node.decorator_list):
        fields: dict[str, inspect.Parameter] = {}
        hints: dict[str, Any] = {}
        for owner, base in reversed(list(_lineage(source, node))):
            level = _fields(owner, base)
            fields |= {parameter.name: parameter for parameter in level.parameters}
            hints |= level.hints
        return Level(list(fields.values()), hints, set())
    return None


def _fields(source: _Source, node: ast.ClassDef) -> Level:
    kinds, parameters, hints = inspect.Parameter, [], {}
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            if "ClassVar" in ast.unparse(field.annotation):
                continue
            default = kinds.empty if field.value is None else GIVEN
            parameters.append(kinds(field.target.id, kinds.POSITIONAL_OR_KEYWORD, default=default))
            hints[field.target.id] = source.value(field.annotation)
    return Level(parameters, hints, set())


def _level(source: _Source, node: ast.FunctionDef) -> Level:
    kinds, signature = inspect.Parameter, node.args
    arguments: list[tuple[ast.arg, Any, bool]] = []  # with its kind, and whether it has a default
    positional = [*signature.posonlyargs, *signature.args]
    without = len(positional) - len(signature.defaults)
    for number, arg in enumerate(positional):
        kind = kinds.POSITIONAL_ONLY if number < len(signature.posonlyargs) else kinds.POSITIONAL_OR_KEYWORD
        arguments.append((arg, kind, number >= without))
    arguments += [(signature.vararg, kinds.VAR_POSITIONAL, False)] if signature.vararg else []
    keyword_only = zip(signature.kwonlyargs, signature.kw_defaults)
    arguments += [(arg, kinds.KEYWORD_ONLY, default is not None) for arg, default in keyword_only]
    arguments += [(signature.kwarg, kinds.VAR_KEYWORD, False)] if signature.kwarg else []
    parameters = [kinds(arg.arg, kind, default=GIVEN if has else kinds.empty) for arg, kind, has in arguments]
    hints = {arg.arg: source.value(arg.annotation) for arg, _, _ in arguments if arg.annotation is not None}
    return Level(parameters, hints, set(_passed(node)) if signature.kwarg else set())


def _passed(node: ast.FunctionDef) -> Iterator[str]:
    """The names that a constructor with **kwargs can pass to its base: those of its calls, and its strings."""
    for part in ast.walk(node):
        if isinstance(part, ast.keyword) and part.arg:
            yield part.arg
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value
