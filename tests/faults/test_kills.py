"""A run that is killed, however often and in the middle of anything, ends bit for bit where an unbroken one does.

A sample; `python tests/faults/long.py` kills more often.
"""

from collections.abc import Iterator

import pytest

from tests.faults.killing import Ground

pytestmark = pytest.mark.slow(minutes=4)


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Iterator[Ground]:
    made = Ground(tmp_path_factory.mktemp("kills"))
    made.make_parents()
    yield made
    made.nursery.close()


@pytest.mark.parametrize(
    ("stage", "processes", "kills"),
    [
        ("tokenizer", 1, 2),
        ("pretrain", 1, 3),
        ("sft", 1, 3),
        ("rm", 1, 2),
        ("dpo", 1, 2),
        ("kto", 1, 2),
        ("ppo", 1, 4),
        ("grpo", 1, 2),
        ("ppo", 2, 2),
        ("ppo+function", 1, 2),
        ("grpo+function", 1, 2),
    ],
)
def test_a_killed_run_ends_where_an_unbroken_one_does(ground, stage, processes, kills):
    found = ground.trial(stage, processes, kills, seed=3)
    assert found.equal and not found.faults, "\n".join(found.faults)
    assert found.kills >= max(1, kills - 1)  # at least 12 in all


def test_the_comparison_would_notice_another_end(ground):
    expected, _ = ground.unbroken("pretrain", 1)
    done = ground.train("pretrain", *ground.settings("pretrain", 1), "seed=1", run="other")
    assert done.returncode == 0, done.stdout
    assert ground.export_hash("other", "pretrain") != expected
