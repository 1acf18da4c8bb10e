"""Which elements are taken if there are more than are wanted."""

from components.functional.evenly import evenly


def test_all_are_taken_if_there_are_few_and_else_some_of_every_part():
    assert evenly(range(3), 5) == evenly(range(3), 3) == [0, 1, 2]
    assert evenly(range(9), 3) == [0, 4, 8]
    assert evenly(range(400), 200)[-1] == 399  # a mixture's second source as well
