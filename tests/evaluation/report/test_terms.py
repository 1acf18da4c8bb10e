"""A method that joins is explained in the report, and has a color of its own in its pictures."""

import pytest
import yaml

from components.evaluation.report.plot_style import COLORS, DARK, OTHER
from components.evaluation.report.terms import Glossary
from tests.kit.composed_configs import CONF

TRAINING = {
    file.stem: yaml.safe_load(file.read_text())["stage"]
    for file in sorted(CONF.glob("stage/*.yaml"))
    if "policy:" in file.read_text()
}
METHODS = [name for name, stage in TRAINING.items() if "policy" in stage]
VARIANTS = ("gspo", "cispo")  # of grpo, in the bake-off


def test_methods_are_found():
    assert {"ppo", "grpo", "dpo", "kto", "simpo", "orpo", "rloo", "rejection"} <= set(METHODS)


@pytest.mark.parametrize("name", [*METHODS, *VARIANTS])
def test_a_method_is_explained_where_its_name_appears(name):
    explained = Glossary().explain(f"gold of {name} on held-out prompts")
    assert name in [term for term, _ in explained]
    assert all(len(meaning) > 20 for _, meaning in explained)


def test_a_method_has_a_color_of_its_own_on_pages_of_any_color():
    own = [COLORS[name] for name in ("sft", "rm", *METHODS, *VARIANTS)]
    assert len({*own, *OTHER}) == len(own) + len(OTHER)
    on_dark = [DARK.get(color, color) for color in own]
    assert len(set(on_dark)) == len(on_dark)
    for color in on_dark:  # relative luminance: against the dark page a contrast of 4.5 needs about 0.22
        red, green, blue = (((int(color[i : i + 2], 16) / 255 + 0.055) / 1.055) ** 2.4 for i in (1, 3, 5))
        assert 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.2, color
