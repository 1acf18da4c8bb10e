"""The built-in world as a source of records."""

import functools
from collections.abc import Iterator
from typing import Any

from components.data.records.errors import SourceError
from components.data.sources.source import Row, Source, digest
from components.world.practice import Practice
from components.world.table_world import TableWorld
from components.world.world import World

KINDS = {"facts": World, "table": TableWorld, "exercises": Practice}
VERSIONS = {  # part of the data's fingerprint, changes with a world's output: see tests/data/sources/test_builtin.py
    "facts": "f26a20ea69603fa56743b3d6c4cdad0f3662622046091e49d6e2a9fcc2a036ff",
    "table": "62cea42c966efaca2628829d2f2d4badddaa50430871ca017ffa9c6cb555f273",
    "exercises": "7b8467dddb5b4804831479eabf7940b1065f92d11c3eedfc87423a01b674a304",
}


def make_world(world: dict[str, Any]) -> Any:
    """The world with these fields: `kind` selects its class; noise applies only to comparisons and is ignored here.

    Raises SourceError naming an invalid field.
    """
    fields = {name: value for name, value in world.items() if name not in ("kind", "noise")}
    kind = world.get("kind", "facts")
    if kind not in KINDS:
        raise SourceError(f"world.kind: got {kind!r}, expected one of {', '.join(KINDS)}")
    try:
        return KINDS[kind](**fields)
    except (TypeError, ValueError) as error:
        raise SourceError(f"world: {error}") from None


def world_source(world: dict[str, Any], format: str, sizes: dict[str, Any]) -> Source:
    """Records of one format. world: see make_world; its noise is the share of comparisons with the wrong winner.

    sizes: num_documents (text); demonstrations (chat); comparisons, completions (preference, unpaired; another
    `held_out` of them are about held-out questions; draw: the seed of the crowd's answers); prompts are all questions
    of the world. Raises SourceError naming an invalid field.
    """
    made, noise = make_world(world), float(world.get("noise", 0.0))
    parameters = [format, dict(world), sizes, VERSIONS[world.get("kind", "facts")]]
    return Source("world", lambda: digest(parameters), lambda: _rows(made, noise, format, sizes))


def _rows(world: World | TableWorld | Practice, noise: float, format: str, sizes: dict[str, Any]) -> Iterator[Row]:
    made: list[tuple[bool | None, list[Any]]]
    if format == "text":
        made = [(None, world.corpus(sizes["num_documents"]))]
    elif format == "chat":
        made = [(None, world.demonstrations(sizes["demonstrations"]))]
    elif format in ("preference", "unpaired"):
        compare = functools.partial(
            world.comparisons, completions=sizes["completions"], noise=noise, seed=sizes["draw"]
        )
        made = [(False, compare(sizes["comparisons"], split="train"))]
        if world.questions("held_out"):
            made.append((True, compare(sizes["held_out"], split="held_out")))
    else:
        made = [(False, world.prompts("train")), (True, world.prompts("held_out"))]
    for held_out, records in made:
        for number, record in enumerate(records, 1):
            yield Row(f"world: record {number}", record, held_out)
