"""A calculator that reads expressions and runs nothing."""

import pytest

from components.prompting.arithmetic import value_of


@pytest.mark.parametrize(
    "expression, value",
    [
        ("47 + 38 + 5", "90"),
        ("2 * (3 - 10)", "-14"),
        ("-7 // 2", "-4"),
        ("7 % 4", "3"),
        ("2^10", "1024"),
        ("2 ** -2", "0.25"),
        ("1 / 3", "0.333333333333"),
        ("0.1 + 0.2", "0.3"),  # decimals are exact
        ("6 × 7 − 84 ÷ 2", "0"),
        ("2 ** 200", str(2**200)),
    ],
)
def test_values_are_exact(expression, value):
    assert value_of(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["", "1 +", "abs(-1)", "__import__('os')", "(1).real", "1 if 1 else 2", "9 ** 9 ** 9", "9 ** 9999", "1 = 1", "1 2"]
    + ["(" * 2000 + ")" * 2000, "1e9", "1 < 2", "2 ** 0.5", "True", "1j", "((2**1000)**9)*2**2000"],
)
def test_what_is_no_arithmetic_or_too_large_is_refused(expression):
    with pytest.raises(ValueError, match="expected numbers"):
        value_of(expression)


def test_division_by_zero_is_named():
    with pytest.raises(ValueError, match="'1 / 0' divides by zero"):
        value_of("1 / 0")
