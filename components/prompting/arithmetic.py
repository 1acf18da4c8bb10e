"""The value of an arithmetic expression, exactly: a parser reads it, and nothing is run."""

import ast
import re
from fractions import Fraction

LONGEST, BITS, HIGHEST = 1000, 10_000, 1000  # characters, bits of a value, exponent
CHARACTERS = re.compile(r"[-+*/%().0-9 ]+")
WRITTEN = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "^": "**"})


def value_of(expression: str) -> str:
    """The value of numbers, + − * / // % ^ and parentheses: an integer exactly, any other with 12 digits.

    Raises ValueError for anything else, division by zero, and values of more than BITS bits.
    """
    written = expression.translate(WRITTEN).strip()
    shown = expression if len(expression) <= 40 else f"{expression[:40]}…"
    try:
        if len(written) > LONGEST or not CHARACTERS.fullmatch(written):
            raise ValueError
        value = _value(ast.parse(written, mode="eval").body)
        return str(value.numerator) if value.denominator == 1 else f"{float(value):.12g}"
    except ZeroDivisionError:
        raise ValueError(f"{shown!r} divides by zero") from None
    except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError):
        raise ValueError(f"expected numbers, + - * / // % ^ and parentheses, got {shown!r}") from None


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(Fraction(str(number)))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _value(inner)
        case ast.BinOp(left=left, op=op, right=right):
            return _bounded(_applied(op, _value(left), _value(right)))
    raise ValueError


def _applied(op: ast.operator, left: Fraction, right: Fraction) -> Fraction:
    match op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case ast.FloorDiv():
            return Fraction(left // right)
        case ast.Mod():
            return left % right
        case ast.Pow() if right.denominator == 1 and abs(right) <= HIGHEST and _bits(left) * abs(right) <= BITS:
            return Fraction(left ** int(right))
    raise ValueError


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > BITS:
        raise ValueError
    return value


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())
