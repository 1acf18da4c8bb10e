"""Streams of random numbers are named by numbers, stay what they are from one version to the next, and do not meet."""

import itertools

import numpy as np
import torch

from components.functional.seeding import BATCHES, RANKS, numpy_seeded, seeded, step_seed


def test_a_stream_is_determined_by_its_numbers_and_their_order():
    names = [(0,), (1,), (0, 1), (1, 0), (0, 0, 1)]
    streams = {name: tuple(torch.rand(4, generator=seeded("cpu", *name)).tolist()) for name in names}
    assert len(set(streams.values())) == len(streams)
    assert tuple(torch.rand(4, generator=seeded("cpu", 0, 1)).tolist()) == streams[0, 1]
    # by hand, for one number: 0 · 6364136223846793005 + 5 + 1442695040888963407
    assert seeded("cpu", 5).initial_seed() == 1442695040888963412


def test_numpys_streams_are_those_of_its_own_seed_sequence():
    assert numpy_seeded(3, 0x6D6978).integers(1 << 60) == np.random.default_rng([3, 0x6D6978]).integers(1 << 60)


def test_the_seeds_of_steps_differ_between_seeds_processes_and_batches():
    assert step_seed(0, 0, 7) == 7
    assert step_seed(3, 2, 7) == (3 * 100_003 + 2) * 1_000_003 + 7
    ends = [(0, 1, 2, 2**31), (0, 1, RANKS - 1), (0, 1, BATCHES - 1)]
    assert len({step_seed(*numbers) for numbers in itertools.product(*ends)}) == 4 * 3 * 3


def test_every_seed_that_a_run_accepts_gives_seeds_that_torch_accepts():
    for seed, rank, batch in itertools.product((0, 184_461_000, 2**32 - 1), (0, 1023), (0, 10**9)):
        assert torch.Generator().manual_seed(step_seed(seed, rank, batch))
