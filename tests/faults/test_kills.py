"""A run that is killed, however often and in the middle of anything, ends bit for bit where an unbroken one does.

A sample; `python tests/faults/long.py` kills all stages, and more often. That each of them resumes to the same bits is
tested without a kill in tests/stages/test_resume.py.
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
    ("stage", "processes", "kills", "seed"),
    [  # with these seeds every moment to die of tests/faults/deaths.py occurs
        ("tokenizer", 1, 1, 3),  # at a file
        ("pretrain", 1, 2, 2),  # twice at a file
        ("sft", 1, 2, 5),  # in a validation, in a backward pass
        ("rm", 1, 1, 9),  # while a checkpoint is written
        ("dpo", 1, 1, 1),  # with a fetched batch
        ("ppo", 1, 3, 0),  # before an update, after one, while a checkpoint is written
        ("grpo", 1, 1, 13),  # at a file
        ("ppo", 2, 1, 3),  # while a checkpoint is written
        ("ppo+function", 1, 1, 11),  # after an update
    ],
)
def test_a_killed_run_ends_where_an_unbroken_one_does(ground, stage, processes, kills, seed):
    found = ground.trial(stage, processes, kills, seed)
    assert found.equal and not found.faults, "\n".join(found.faults)
    assert found.kills == kills


def test_the_comparison_would_notice_another_end(ground):
    expected, _ = ground.unbroken("pretrain", 1)
    done = ground.train("pretrain", *ground.settings("pretrain", 1), "seed=1", run="other")
    assert done.returncode == 0, done.stdout
    assert ground.export_hash("other", "pretrain") != expected
