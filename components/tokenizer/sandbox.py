"""A Jinja environment for untrusted templates, with access only to their own values and bounds on time and memory.

Jinja's own sandbox forbids access to Python's internals. It lets a template run forever (nested loops, macros that call
themselves twice) and exhaust memory (`'x'.ljust(10**9)`, a text doubled forty times). Here every loop iteration and
every call counts as a step, every text has a maximum size, and only filters and methods with outputs in proportion to
their inputs exist. A template's output depends only on its values, not on the time, random numbers, or the addresses of
objects.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView, Set, Sized
from typing import Any, NoReturn

from jinja2 import Undefined, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.visitor import NodeTransformer

MAX_STEPS = 200_000  # loop iterations and calls, in one rendering
MAX_SIZE = 4_000_000  # characters of a text, items of a list
MAX_BITS = 4096  # of an integer
MAX_SOURCE = 1_000_000  # characters of a template
FILTERS = {
    "abs",
    "capitalize",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "unique",
    "upper",
}
OF_TEXT = {
    "capitalize",
    "e",
    "escape",
    "lower",
    "replace",
    "safe",
    "string",
    "title",
    "trim",
    "upper",
}  # take str(value)
TEXT_METHODS = {
    "capitalize",
    "count",
    "endswith",
    "find",
    "index",
    "isalnum",
    "isalpha",
    "isdigit",
    "isspace",
    "join",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "title",
    "upper",
}


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """Raises jinja2.sandbox.SecurityError when a template exceeds a bound."""

    intercepted_binops = frozenset({"+", "-", "*", "**", "%"})

    def __init__(self, **settings: Any) -> None:
        # not optimized: folding constants would evaluate each once per enclosing level
        super().__init__(optimized=False, finalize=_shown, **settings)
        self._rendering = threading.local()
        self.filters = {name: self._bounded(name, f) for name, f in self.filters.items() if name in FILTERS}
        self.globals = {name: value for name, value in self.globals.items() if name in ("range", "dict", "namespace")}

    def allow(self, name: str, function: Callable) -> None:
        """Adds a filter, with the same bounds."""
        self.filters[name] = self._bounded(name, function)

    def begin(self) -> None:
        """Resets the count of steps; must be called before each rendering."""
        self._rendering.steps = 0

    def step(self) -> None:
        """Counts a loop iteration or a call. Raises SecurityError beyond MAX_STEPS."""
        self._rendering.steps = getattr(self._rendering, "steps", 0) + 1
        if self._rendering.steps > MAX_STEPS:
            raise SecurityError(f"it takes more than {MAX_STEPS} loop iterations and calls")

    def counted(self, items: Iterable) -> Iterator:
        """The items of a loop, each counted as a step."""
        for item in items:
            self.step()
            yield item

    def joined(self, *parts: Any) -> str:
        """The result of `~`."""
        texts = [str(_shown(part)) for part in parts]
        _check_size(sum(map(len, texts)))
        return "".join(texts)

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:
        self.step()
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str):
            args = _check_text_method(owner, name, args)
        result = super().call(context, function, *args, **kwargs)
        return _checked(result)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _check_size(len(left) + len(right))
        elif operator == "-" and isinstance(left, Set):
            raise SecurityError("a set has no order; use a list")
        elif operator == "*":
            _check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * max(right, 0))
        elif operator == "%" and isinstance(left, str):
            raise SecurityError("formatting with % is not allowed; join texts with ~")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str):
            return attr in TEXT_METHODS
        if isinstance(obj, int | float | bytes):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"{attribute!r} of a {type(obj).__name__} is not allowed")

    def wrap_str_format(self, value: Any) -> None:
        if getattr(value, "__name__", "") in ("format", "format_map") and isinstance(value.__self__, str):
            raise SecurityError("str.format is not allowed; join texts with ~")

    # holds for Jinja 3.1
    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_SOURCE:
            raise SecurityError(f"it is {len(source)} characters long, expected at most {MAX_SOURCE}")
        return _Counting().visit(super()._parse(source, name, filename))

    def _bounded(self, name: str, function: Callable) -> Callable:
        @functools.wraps(function)  # keeps the attributes by which Jinja passes a context
        def call(*args: Any, **kwargs: Any) -> Any:
            self.step()
            values = args[1:] if hasattr(function, "jinja_pass_arg") else args
            for value in values:
                _written(value)
            if name in OF_TEXT:
                _shown(values[0])
            if name == "join":
                listed = _shown(list(values[0]))
                separator = str(kwargs.get("d", values[1] if len(values) > 1 else ""))
                _check_size(sum(len(str(item)) + len(separator) for item in listed))
                args = (*args[: len(args) - len(values)], listed, *values[1:])
            elif name == "replace":
                _check_replacement(*(str(value) for value in values[:3]))
            elif name == "tojson":
                _check_form(**inspect.signature(function).bind(*args, **kwargs).arguments)
            elif name in ("d", "default", "float", "int", "round") or not values:
                pass
            elif isinstance(values[0], Iterator):
                args = (*args[: len(args) - len(values)], self.counted(values[0]), *values[1:])
            return _checked(function(*args, **kwargs))

        return call


class _Counting(NodeTransformer):
    """Routes a template's loops and concatenations through the environment."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _call("counted", [node.iter])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return _call("joined", node.nodes)


def _call(name: str, arguments: list[Any]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)


def _written(value: Any) -> Any:
    """The value, if its total size is at most MAX_SIZE, with repeated parts counted each time."""
    if isinstance(value, Iterator):
        return value
    left, waiting = MAX_SIZE, [value]
    while waiting:
        part = waiting.pop()
        left -= len(part) if isinstance(part, str) else 10  # traversing lists is slower than traversing characters
        if left < 0:
            raise SecurityError(f"a text or list is longer than {MAX_SIZE}")
        if isinstance(part, Mapping):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | set | frozenset):
            waiting += part
    return value


def _shown(value: Any) -> Any:
    """The value, if str() shows its contents; for a function or an iterator it would show an address."""
    waiting = [_written(value)]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | MappingView):
            waiting += [*part]  # type: ignore[misc]
        elif not isinstance(part, str | int | float | Undefined | None):
            raise SecurityError(f"it writes a {type(part).__name__}, which is not text")
    return value


def _check_form(value: Any, indent: Any = None, separators: Any = None, **_: Any) -> None:
    if isinstance(indent, str) or (indent or 0) > 16 or any(len(separator) > 16 for separator in separators or ()):
        raise SecurityError("tojson: expected an indent of at most 16 spaces, and separators of at most 16 characters")


def _checked(value: Any) -> Any:
    if isinstance(value, str | list | tuple | dict):
        _check_size(len(value))
    return value


def _check_size(size: int) -> None:
    if size > MAX_SIZE:
        raise SecurityError(f"it makes a text or list of size {size}, expected at most {MAX_SIZE}")


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise SecurityError(f"it makes a number of {bits} bits, expected at most {MAX_BITS}")


def _check_product(left: Any, right: Any) -> None:
    for sized, factor in ((left, right), (right, left)):
        if isinstance(sized, Sized) and isinstance(factor, int):
            _check_size(len(sized) * max(factor, 0))
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())


def _check_replacement(text: str, old: str, new: str) -> None:
    _check_size(len(text) + text.count(old) * len(new))


def _check_text_method(text: str, name: str, args: tuple) -> tuple:
    """The arguments, with an iterator turned into a list; raises SecurityError if the result would be too large."""
    if name == "replace" and len(args) >= 2 and all(isinstance(arg, str) for arg in args[:2]):
        _check_replacement(text, *args[:2])
    if name == "join" and args:
        args = ([str(item) for item in _shown(list(args[0]))], *args[1:])
        _check_size(sum(map(len, args[0])) + len(text) * len(args[0]))
    return args
