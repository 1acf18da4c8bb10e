from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer

from components.data.base import RecordData
from components.data.loading import sampler
from components.data.loading.sampler import BatchLoader, TrainLoader, batch, batches_per_epoch
from components.data.text import TextData


class Numbers:
    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        assert 0 <= index < self.size
        return index


def loader(size: int, **options) -> TrainLoader:
    return TrainLoader(Numbers(size), list, **{"seed": 0, "batch_size": 4, **options})


def take(stream: TrainLoader, count: int) -> list[list[int]]:
    """The next `count` batches, over several passes if necessary."""
    taken: list[list[int]] = []
    while len(taken) < count:
        for one in stream:
            taken.append(one)
            if len(taken) == count:
                break
    return taken


@pytest.mark.parametrize("size", [4, 9, 16, 17, 18, 19, 40])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_an_epoch_without_overlap_in_equally_many_batches(size, ranks):
    parts = [list(loader(size, rank=rank, world_size=ranks)) for rank in range(ranks)]
    seen = [index for part in parts for one in part for index in one]
    assert len({len(part) for part in parts}) == 1 and all(one for part in parts for one in part)
    assert len(seen) == len(set(seen)) > size - ranks
    assert len(parts[0]) == batches_per_epoch(size, 4, ranks)


def test_two_ranks_see_together_what_one_sees_with_twice_the_batch():
    whole = list(loader(40, batch_size=8))
    halves = zip(*(loader(40, batch_size=4, rank=rank, world_size=2) for rank in range(2)), strict=True)
    assert [sorted(a + b) for a, b in halves] == [sorted(one) for one in whole]


def test_ranks_get_equally_many_examples_and_about_equally_many_tokens():
    """Lengths 8 … 1 for two ranks: 8 | 7, then 6 | 5 in the opposite direction, and so on, in the epoch's order."""
    order, lengths = np.array([3, 0, 7, 5, 1, 6, 2, 4]), np.arange(8) + 1
    first, second = (batch(order, 0, 4, rank, 2, lengths) for rank in range(2))
    assert (first, second) == ([3, 0, 7, 4], [5, 1, 6, 2])
    assert sum(lengths[first]) == sum(lengths[second]) == 18
    alone = batch(order, 0, 8, 0, 1, lengths)
    assert alone == order.tolist()


@pytest.mark.parametrize("size", [3, 4, 5, 7])
def test_a_short_batch_of_unequal_lengths_leaves_no_rank_without_an_example(size):
    parts = [batch(np.arange(size), 0, 4, rank, 3, np.arange(size)) for rank in range(3)]
    assert sorted(sum(parts, [])) == list(range(size)) and all(parts)


def test_every_epoch_has_its_own_order_which_depends_only_on_the_seed():
    stream = loader(12)
    first, second = list(stream), list(stream)
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(12))
    torch.manual_seed(99)
    np.random.seed(99)
    again = loader(12)
    assert [list(again), list(again)] == [first, second]
    assert first != second != list(loader(12, seed=1))


def test_making_batches_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    list(loader(12))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 5, 8, 10])  # 4 batches per epoch
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_resumes_exactly_where_its_state_was_saved(stop, workers):
    expected = take(loader(14), 13)
    interrupted = loader(14, num_workers=workers)
    before = take(interrupted, stop)
    state = interrupted.state_dict()
    assert state == {"epoch": stop // 4, "position": stop % 4, "examples": 14, "batch": 4}
    resumed = loader(14)
    resumed.load_state_dict(state)
    assert before + take(resumed, 13 - stop) == expected


def test_a_pass_that_is_left_early_is_taken_up_again():
    stream = loader(40)
    assert take(stream, 3) + take(stream, 7) == take(loader(40), 10)


def test_resuming_with_another_number_of_batches_is_refused():
    said = r"4 of 40 examples.*now it has 8 of 40.*data.batch_size \(data.batch_size=4\).*resume=never"
    with pytest.raises(ValueError, match=said):
        loader(40, batch_size=8).load_state_dict(loader(40).state_dict())
    with pytest.raises(ValueError, match=r"4 of 40 examples.*now it has 4 of 39"):
        loader(39).load_state_dict(loader(40).state_dict())


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4)])
@pytest.mark.parametrize("stop", [1, 4, 5, 6])
def test_another_number_of_processes_resumes_with_batches_of_the_same_examples(before, after, stop):
    """41 examples: a single process has a sixth batch, of one; two omit it, since the second would have none."""

    def ranks(count: int) -> list[TrainLoader]:
        return [loader(41, batch_size=8 // count, rank=rank, world_size=count) for rank in range(count)]

    def together(streams: list[TrainLoader], count: int) -> list[list[int]]:
        return [sorted(sum(parts, [])) for parts in zip(*(take(stream, count) for stream in streams), strict=True)]

    first, whole = ranks(before), ranks(1)
    together(first, stop)
    state = first[0].state_dict()
    second = ranks(after)
    for stream in second:
        stream.load_state_dict(state)
    together(whole, state["epoch"] * len(whole[0]) + state["position"])
    left = len(second[0]) - state["position"]  # of the epoch
    assert together(second, left) == together(whole, left)


def test_overfitting_repeats_the_same_batches():
    assert take(loader(40, repeat=2), 5) == [*take(loader(40), 2)] * 2 + take(loader(40), 1)


def test_validation_goes_through_the_examples_in_order_each_time():
    one_pass = BatchLoader(Numbers(6), list, batch_size=4)
    assert list(one_pass) == list(one_pass) == [[0, 1, 2, 3], [4, 5]]
    with pytest.raises(ValueError, match="2 examples for 3 processes"):
        BatchLoader(Numbers(2), list, batch_size=4, world_size=3)


@pytest.mark.parametrize("size", [4, 5, 7, 8, 9, 16, 17, 18, 19])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_validation_of_several_ranks_leaves_nothing_out_and_takes_equally_many_batches(size, ranks):
    parts = [list(BatchLoader(Numbers(size), list, batch_size=4, rank=rank, world_size=ranks)) for rank in range(ranks)]
    assert sorted(index for part in parts for one in part for index in one) == list(range(size))
    assert len({len(part) for part in parts}) == 1 and all(one for part in parts for one in part)
    assert max(len(one) for part in parts for one in part) <= 5


def test_a_short_last_batch_is_dealt_out_only_if_every_rank_gets_some():
    order = np.arange(11)
    assert batches_per_epoch(11, 2, 4) == 1  # 8 examples, and 3 for 4 ranks
    assert [batch(order, 0, 2, rank, 4) for rank in range(4)] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert batches_per_epoch(12, 2, 4) == 2


class Recorder(LightningModule):
    """Records the text of every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list] = []

    def training_step(self, batch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.targets.tolist())
        return self.weight * batch.mask.sum()

    def validation_step(self, batch, batch_idx: int) -> None:
        assert batch.mask.any()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(tmp_path, data, steps: int, *, checkpoint=None, **options) -> tuple[list, str]:
    module = Recorder()
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        **options,
    )
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    path = str(tmp_path / f"{steps}.ckpt")
    trainer.save_checkpoint(path)
    return module.seen, path


@pytest.mark.parametrize("stop", [2, 3, 4, 6])  # 3 batches per epoch
def test_training_resumed_by_lightning_sees_the_same_batches(common, write, tmp_path, stop):
    path = write("a.jsonl", [{"text": f"{i:02d}" * 9} for i in range(40)])

    def data() -> TextData:
        return TextData(path=path, batch_size=5, val_fraction=0.1, **common)

    expected, _ = trained(tmp_path, data(), 8)
    assert len({str(one) for one in expected}) == 8
    before, checkpoint = trained(tmp_path, data(), stop)
    after, _ = trained(tmp_path, data(), 8, checkpoint=checkpoint)
    assert before + after == expected


def test_lightning_trains_on_the_same_batch_when_told_to_overfit_it(common, write, tmp_path):
    path = write("a.jsonl", [{"text": f"{i:02d}" * 9} for i in range(40)])
    seen, _ = trained(tmp_path, TextData(path=path, batch_size=5, **common), 4, overfit_batches=1)
    assert len(seen) == 4 and all(one == seen[0] for one in seen)


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_batches_are_pinned_where_a_gpu_copies_them(device, pinned, monkeypatch):
    """Else a GPU's copies, and with them the next step, would wait for each other."""
    asked = []
    monkeypatch.setattr(sampler, "DataLoader", lambda *_, pin_memory, **__: asked.append(pin_memory) or [])
    strategy = SimpleNamespace(root_device=torch.device(device))
    trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=strategy)
    module = SimpleNamespace(trainer=trainer, batch_size=1, num_workers=0)
    settings = RecordData._loading(module, SimpleNamespace(lengths=None))
    list(BatchLoader([0, 1], list, **settings))
    assert asked == [pinned]
