"""The built-in worlds as sources of records: what their fingerprint depends on."""

from components.data import builtin
from components.world.world import World

SMALL = {"kind": "facts", "num_names": 9}


def fingerprint() -> str:
    return builtin.world_source(SMALL, "chat", {"demonstrations": 3}).fingerprint()


def test_the_module_of_a_world_is_no_part_of_its_fingerprint(monkeypatch):
    before = fingerprint()

    class Moved(World):
        """The same world, defined in another file."""

    monkeypatch.setitem(builtin.KINDS, "facts", Moved)
    assert fingerprint() == before
