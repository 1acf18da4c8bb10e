import functools
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning import LightningModule, Trainer

from components.data.batches import WithText
from components.data.loading.experience import ExperienceLoader
from components.data.prompts import PromptsData
from components.data.text import TextData

QUIET = dict(
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    use_distributed_sampler=False,
)


class Numbered(NamedTuple):
    """A minibatch that is known by the numbers of its rollout and its place in it."""

    rollout: torch.Tensor
    place: torch.Tensor

    def tensors(self) -> dict[str, torch.Tensor]:
        return self._asdict()


class Learner(LightningModule):
    """Three minibatches per rollout, each with the number of its rollout and position. Records the calls."""

    def __init__(self, spent_after: dict[int, int] | None = None, per_rollout: int = 3) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.spent_after = spent_after or {}  # rollout -> position after which it is spent
        self.per_rollout = per_rollout
        self.rollout_is_spent = False
        self.asked: list[list[str]] = []
        self.events: list[tuple] = []
        self.text: list[list] = []

    def collect(self, prompts: list[dict], rollout: int, further=None) -> list["Numbered"]:
        self.rollout_is_spent = False
        self.asked.append([prompt["prompt"][0]["content"] for prompt in prompts])
        self.events.append(("collect", rollout, self.trainer.global_step))
        return [Numbered(torch.tensor(rollout), torch.tensor(i)) for i in range(self.per_rollout)]

    def minibatch_of(self, tensors: dict[str, torch.Tensor]) -> "Numbered":
        return Numbered(**tensors)

    def training_step(self, batch, batch_idx: int) -> torch.Tensor:
        if isinstance(batch, WithText):
            self.text.append(batch.text.targets.tolist())
            batch = batch.minibatch
        rollout, place = int(batch.rollout), int(batch.place)
        self.events.append(("train", rollout, place))
        self.rollout_is_spent = self.spent_after.get(rollout) == place
        return self.weight * 1.0

    def validation_step(self, prompts: list[dict], batch_idx: int) -> None:
        self.events.append(("validate", [prompt["reference"] for prompt in prompts]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(tmp_path, data, module: Learner, steps: int, *, checkpoint=None, **options) -> str:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        default_root_dir=tmp_path,
        num_sanity_val_steps=0,
        **QUIET,
        limit_val_batches=None if data.val_fraction else 0,
        **options,
    )
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    path = str(tmp_path / f"{steps}.ckpt")
    trainer.save_checkpoint(path)
    return path


def trained_on(module: Learner) -> list[tuple]:
    return [event[1:] for event in module.events if event[0] == "train"]


@pytest.fixture
def questions(write) -> str:
    return write("q.jsonl", [{"prompt": f"q{i}", "reference": str(i)} for i in range(10)])


@pytest.fixture
def data(common, questions):
    def make(**options) -> PromptsData:
        defaults = {"path": questions, "prompts_per_rollout": 4, "val_fraction": 0.0, **common}
        return PromptsData(**defaults | options)

    return make


def test_a_rollout_is_collected_right_before_its_first_update(tmp_path, data):
    module = Learner()
    fitted(tmp_path, data(), module, 7)
    collected = [event for event in module.events if event[0] == "collect"]
    assert collected == [("collect", 0, 0), ("collect", 1, 3), ("collect", 2, 6)]
    assert trained_on(module) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]


def test_accumulated_micro_batches_come_from_the_loader_too(tmp_path, data):
    module = Learner()
    fitted(tmp_path, data(), module, 4, accumulate_grad_batches=2)
    assert trained_on(module) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    assert [event for event in module.events if event[0] == "collect"][1] == ("collect", 1, 1)


def test_a_rollout_that_is_spent_gives_way_to_the_next(tmp_path, data):
    module = Learner(spent_after={0: 1, 2: 0})
    fitted(tmp_path, data(), module, 7)
    assert trained_on(module) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (3, 0)]


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6])
def test_training_resumed_within_a_rollout_continues_exactly(tmp_path, data, write, common, stop):
    texts = write("t.jsonl", [{"text": f"{i:02d}" * 20} for i in range(30)])
    text = functools.partial(TextData, path=texts, batch_size=2, val_fraction=0.0)
    whole = Learner(spent_after={1: 1})
    fitted(tmp_path, data(pretraining=text), whole, 9)
    first, second = Learner(spent_after={1: 1}), Learner(spent_after={1: 1})
    checkpoint = fitted(tmp_path, data(pretraining=text), first, stop)
    fitted(tmp_path, data(pretraining=text), second, 9, checkpoint=checkpoint)
    assert trained_on(first) + trained_on(second) == trained_on(whole)
    assert first.asked + second.asked == whole.asked
    assert first.text + second.text == whole.text
    assert len({str(one) for one in whole.text}) == 9


def test_every_prompt_is_used_once_before_any_repeats(tmp_path, data):
    module = Learner(per_rollout=1)
    fitted(tmp_path, data(), module, 5)
    asked = sum(module.asked, [])
    assert [len(one) for one in module.asked] == [4] * 5
    assert sorted(asked[:10]) == sorted(asked[10:]) == sorted(f"q{i}" for i in range(10))
    assert asked[:10] != asked[10:]


class Place:
    """The part of a Trainer that the loader uses."""

    def __init__(self, rank: int, world_size: int, max_steps: int = 5) -> None:
        self.global_rank, self.world_size, self.max_steps = rank, world_size, max_steps
        self.accumulate_grad_batches = 2
        self.lightning_module = Learner()


def test_ranks_share_the_prompts_of_a_rollout():
    def rollouts(rank: int, ranks: int, size: int) -> list[list]:
        place = Place(rank, ranks)
        loader = ExperienceLoader(list(range(10)), prompts_per_rollout=size, seed=0, trainer=place)
        return [loader.prompts_of(n) for n in (0, 1, 7)]

    together = [sorted(a + b) for a, b in zip(rollouts(0, 2, 3), rollouts(1, 2, 3), strict=True)]
    assert together == [sorted(one) for one in rollouts(0, 1, 6)]


@pytest.mark.parametrize("ranks", [1, 2])
def test_further_prompts_are_the_next_ones_and_rollouts_resume_after_them(ranks):
    """Ten prompts, two of each rank in a rollout; in the first, every rank takes one more and then two more."""

    def made(rank: int) -> ExperienceLoader:
        return ExperienceLoader(list(range(10)), prompts_per_rollout=2, seed=0, trainer=Place(rank, ranks))

    loaders = [made(rank) for rank in range(ranks)]
    in_turn = [
        ExperienceLoader(list(range(10)), prompts_per_rollout=1, seed=0, trainer=Place(0, 1)).prompts_of(n)[0]
        for n in range(14)
    ]
    taken = [loader.prompts_of(0) for loader in loaders]
    taken += [loader.take_further(1) for loader in loaders] + [loader.take_further(2) for loader in loaders]
    for loader in loaders:
        loader.rollout = 1  # the first has been collected
    state = {"rollout": 1, "position": 0, "pending": [[] for _ in loaders], "further": loaders[0].further}
    assert loaders[0].further == 3 * ranks
    resumed = [made(rank) for rank in range(ranks)]
    for loader in resumed:
        loader.load_state_dict(state)
    assert [one.prompts_of(1) for one in resumed] == [loader.prompts_of(1) for loader in loaders]
    taken += [loader.prompts_of(1) for loader in loaders]
    assert sorted(sum(taken, [])) == sorted(in_turn[: 7 * ranks])


def test_the_loader_is_as_long_as_the_training_in_micro_batches():
    def loader(steps: int) -> ExperienceLoader:
        return ExperienceLoader([1], prompts_per_rollout=1, seed=0, trainer=Place(0, 1, steps))

    assert len(loader(5)) == 10
    with pytest.raises(ValueError, match="trainer.max_steps: got -1"):
        len(loader(-1))


def test_state_within_a_rollout_fits_only_the_same_number_of_processes():
    pending = [[Numbered(torch.tensor(rank), torch.tensor(1)).tensors()] for rank in range(2)]
    state = {"rollout": 1, "position": 1, "pending": pending}
    one = ExperienceLoader([1], prompts_per_rollout=1, seed=0, trainer=Place(0, 1))
    with pytest.raises(ValueError, match="in the middle of a rollout of 2 processes, but there are 1 now"):
        one.load_state_dict(state)
    second = ExperienceLoader([1], prompts_per_rollout=1, seed=0, trainer=Place(1, 2))
    second.load_state_dict(state)
    assert second.pending == [Numbered(torch.tensor(1), torch.tensor(1))]
    one.load_state_dict({**state, "pending": [[], []]})
    assert (one.rollout, one.pending) == (1, [])


def test_state_fits_the_same_number_of_prompts_in_a_rollout_of_all_processes():
    two = ExperienceLoader([1], prompts_per_rollout=2, seed=0, trainer=Place(0, 1))
    state = {"rollout": 1, "position": 1, "pending": [[], []], "prompts": 4}
    with pytest.raises(ValueError, match=r"made with 4 prompts in a rollout.*now there are 2\."):
        two.load_state_dict(state)
    four = ExperienceLoader([1], prompts_per_rollout=4, seed=0, trainer=Place(0, 1))
    four.load_state_dict(state)
    assert four.rollout == 1 and four.state_dict()["prompts"] == 4


def test_prompts_are_rendered_for_an_answer_and_keep_their_reference(data, tok, write):
    asked = [{"prompt": "one", "reference": "1"}, {"prompt": "one"}, {"prompt": "two"}]
    made = data(path=write("p.jsonl", asked))
    made.setup()
    examples = {made.train_examples[i]["prompt"][0]["content"]: made.train_examples[i] for i in range(2)}
    assert examples["one"] == {
        "ids": tok.render_prompt([{"role": "user", "content": "one"}]),
        "prompt": [{"role": "user", "content": "one"}],
        "reference": "1",
        "columns": {"reference": "1"},
    }
    assert examples["two"]["reference"] is None
    assert made.counts["duplicates"] == 1 and len(made.train_examples) == 2


def test_every_column_of_a_record_is_kept_as_it_is_but_the_prompt(data, write):
    """Nested values, numbers, null; of a demonstration the answer too; of equal prompts the first record's."""
    rows = [
        {"prompt": "one", "answer": 4, "tests": [{"in": [1, 2], "out": None}], "difficulty": 0.5, "none": None},
        {"prompt": "two", "completion": "2", "ids": [7]},
        {"prompt": "two", "completion": "3"},
        {"messages": [{"role": "user", "content": "three"}, {"role": "assistant", "content": "3"}], "prompt_id": "x"},
    ]
    made = data(path=write("p.jsonl", rows))
    made.setup()
    kept = {e["prompt"][0]["content"]: e["columns"] for e in (made.train_examples[i] for i in range(3))}
    columns = [{name: value for name, value in row.items() if name != "prompt"} for row in rows]
    assert kept == {"one": columns[0], "two": columns[1], "three": columns[3]}


def test_columns_that_are_not_read_from_a_table_are_not_kept(data, tmp_path):
    times, images = pa.array([0, 1], pa.timestamp("s")), pa.array([b"\xff", None])
    table = pa.table({"question": ["one", "two"], "answer": ["1", "2"], "asked": times, "image": images})
    pq.write_table(table, tmp_path / "p.parquet")
    made = data(path=str(tmp_path / "p.parquet"))
    made.setup()
    examples = [made.train_examples[i] for i in range(2)]
    kept = {example["prompt"][0]["content"]: example["columns"] for example in examples}
    assert kept == {"one": {"question": "one", "answer": "1"}, "two": {"question": "two", "answer": "2"}}


def test_prompts_of_comparisons_count_once(data, write):
    pairs = [{"prompt": f"q{i % 3}", "chosen": str(i), "rejected": "n"} for i in range(12)]
    made = data(path=write("c.jsonl", pairs))
    made.setup()
    assert len(made.train_examples) == 3 and made.counts["records"] == 12


def test_the_largest_prompts_are_the_longest_of_training_and_repeat_if_there_are_fewer(data, write):
    made = data(path=write("p.jsonl", [{"prompt": "x" * length} for length in (9, 1, 4)]), val_fraction=0)
    made.setup()
    first, second, third = sorted((len(example["ids"]) for example in made.train_examples), reverse=True)
    assert first > second > third
    assert [made.largest_prompts(n) for n in (0, 1, 2, 4)] == [0, first, first + second, 2 * first + second + third]


def test_a_long_prompt_is_cut_to_half_the_context_or_to_what_was_asked(data, write):
    path = write("p.jsonl", [{"prompt": "x" * 200}])
    for options, length in (({}, 32), ({"max_prompt": 50}, 50)):
        made = data(path=path, **options)
        made.setup()
        assert len(made.train_examples[0]["ids"]) == length and made.counts["truncated"] == 1
    with pytest.raises(ValueError, match="max_prompt: got 64 tokens, expected 1 … 63"):
        data(path=path, max_prompt=64)


def test_held_out_prompts_come_in_batches_for_validation(tmp_path, data, write):
    path = write("p.jsonl", [{"prompt": f"question {i}", "reference": str(i)} for i in range(100)])
    made = data(path=path, val_fraction=0.2, batch_size=8)
    module = Learner()
    fitted(tmp_path, made, module, 3)
    validated = [event[1] for event in module.events if event[0] == "validate"]
    assert [len(one) for one in validated[:-1]] == [8] * (len(validated) - 1)
    held_out = sum(validated, [])
    assert len(held_out) == len(set(held_out)) == len(made.val_examples) > 8
    trained = {made.train_examples[i]["reference"] for i in range(len(made.train_examples))}
    assert trained.isdisjoint(held_out)


def test_the_world_trains_on_its_training_questions_and_validates_on_the_held_out(common):
    world = {"seed": 0, "num_names": 8, "held_out_share": 0.25, "noise": 0.0}
    data = PromptsData(world=world, **common)
    data.setup()
    assert (len(data.train_examples), len(data.val_examples)) == (18, 6)
    assert all(data.val_examples[i]["reference"] for i in range(6))


def test_experience_needs_a_trainer(data):
    made = data()
    made.setup()
    with pytest.raises(ValueError, match="pass this module to Trainer.fit"):
        made.train_dataloader()
