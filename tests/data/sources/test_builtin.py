"""The built-in worlds as sources of records: what their fingerprint depends on."""

import hashlib
import json
from dataclasses import asdict

import pytest

from components.data.sources import builtin
from components.world.world import World

SMALL = {"kind": "facts", "num_names": 9}


MADE = {  # sha256 of what the worlds below make, by kind
    "facts": "f26a20ea69603fa56743b3d6c4cdad0f3662622046091e49d6e2a9fcc2a036ff",
    "table": "c3a0df7d11f0f2ade4f4809913af97e9e6e04017b0d61db6c3a1fa7721237fee",
    "exercises": "c416c305bbf1c7e7c1a7918b793f70c30a8d73530b219fecf09780fd8b822135",
}
WORLDS = {"facts": {"num_names": 9}, "table": {"seed": 3}, "exercises": {"num_names": 9, "num_sums": 6}}


def made_by(kind: str) -> str:
    """sha256 of a world's complete output: texts, dialogues, comparisons, prompts, and its judgments on answers."""
    world = builtin.make_world({"kind": kind, **WORLDS[kind]})
    splits = [split for split in ("train", "held_out") if world.questions(split)]
    comparisons = [world.comparisons(30, noise=0.2, seed=1, split=split) for split in splits]
    judged = [
        repr(asdict(world.judge(record["prompt"], answer, finished)))
        for records in comparisons
        for record in records
        for answer in record["completions"]
        for finished in (True, False)
    ]
    prompts = [world.prompts(split) for split in splits]
    records = [world.corpus(60), world.demonstrations(30), comparisons, prompts, judged]
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()


@pytest.mark.parametrize("kind", builtin.KINDS)
def test_a_version_of_a_world_makes_always_the_same(kind):
    """After an intended change of the world, change its text in builtin.VERSIONS and put the new digest here."""
    assert made_by(kind) == MADE[kind]


def fingerprint() -> str:
    return builtin.world_source(SMALL, "chat", {"demonstrations": 3}).fingerprint()


def test_the_module_of_a_world_is_no_part_of_its_fingerprint(monkeypatch):
    before = fingerprint()

    class Moved(World):
        """The same world, defined in another file."""

    monkeypatch.setitem(builtin.KINDS, "facts", Moved)
    assert fingerprint() == before
