"""The table `artifacts` of a config: where each stage that makes an artifact leaves it.

Read from conf/stage, so that a new stage is its YAML and its module, and no list names it.
"""

import functools
import re
from collections.abc import Iterable

from hydra.core.config_store import ConfigStore

from components.launch.mistyped import CONF

MAKES = re.compile(r"^task: components\.tasks\.fit\.", re.M)
READS = re.compile(r"^[^#\n]*\$\{artifacts\.(\w+)\}", re.M)
CHOOSES = re.compile(r"^ *- (?:override )?/(\w+)(?:@\w+)?: (\w+)", re.M)  # in a defaults list, such as /reward: model


@functools.cache
def read_by() -> dict[str, list[str]]:
    """{stage that makes an artifact: the stages whose artifacts it reads}: those that its YAML names, and the YAMLs
    that this one chooses. Other artifacts that it names, such as a teacher, belong to no stage."""
    table = {}
    for file in sorted((CONF / "stage").glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        if MAKES.search(text):
            chosen = [CONF / group / f"{name}.yaml" for group, name in CHOOSES.findall(text)]
            texts = [text, *(other.read_text(encoding="utf-8") for other in chosen if other.exists())]
            table[file.stem] = [stage for one in texts for stage in READS.findall(one)]
    return {stage: [other for other in read if other in table] for stage, read in table.items()}


def in_order(stages: Iterable[str]) -> list[str]:
    """The stages and all whose artifacts they are made from, each after those that it reads."""
    order: list[str] = []
    seen: set[str] = set()

    def add(stage: str) -> None:
        if stage not in seen:
            seen.add(stage)
            for other in read_by().get(stage, []):
                add(other)
            order.append(stage)

    for stage in stages:
        add(stage)
    return order


def register() -> None:
    """Makes the table known to Hydra as the config `artifacts`."""
    table = {stage: f"${{paths.logs}}/${{from}}/{stage}/export" for stage in in_order(read_by())}
    ConfigStore.instance().store(name="artifacts", node={"artifacts": table}, package="_global_")
