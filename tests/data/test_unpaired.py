import numpy as np
import pytest

from components.data.records.errors import SourceError
from components.data.unpaired import UnpairedData, mismatched

RECORDS = [
    {"prompt": f"question {i // 2}", "completion": f"{'good' if i % 2 else 'bad'} {i // 2}", "label": i % 2 == 1}
    for i in range(60)
]


def built(common, write, records=RECORDS, **options) -> UnpairedData:
    data = UnpairedData(path=write("a.jsonl", records), **{"val_fraction": 0.0, **options}, **common)
    data.setup()
    return data


def texts(data, batch) -> list[tuple[str, str, bool, str]]:
    """(prompt, answer, label, mismatched answer) of every record of a batch."""
    flat, width = batch.input_ids.flatten(), batch.input_ids.shape[1]
    ends = zip(batch.last.tolist(), batch.lengths.tolist(), strict=True)
    answers = [data.tokenizer.decode(flat[last - length + 1 : last + 1].tolist()) for last, length in ends]
    prompts = []
    for last in batch.last[::2].tolist():
        row, trunk = last // width, batch.layout.parents.flatten()[last]
        prompts.append(data.tokenizer.decode(batch.input_ids[row][batch.layout.segments[row] == trunk].tolist()))
    return list(zip(prompts, answers[::2], batch.desirable.tolist(), answers[1::2], strict=True))


def test_a_record_is_a_prompt_its_answer_and_an_answer_to_another_prompt(common, write, tok):
    data = built(common, write, batch_size=20)
    found = [record for batch in data.train_dataloader() for record in texts(data, batch)]
    assert len(found) == 60 and sum(desirable for _, _, desirable, _ in found) == 30
    for prompt, answer, desirable, other in found:
        word, number = answer.split()
        assert prompt.split()[-1] == number != other.split()[-1]
        assert word == ("good" if desirable else "bad")


def test_an_answer_and_its_mismatched_one_do_not_see_each_other(common, write):
    [batch] = built(common, write, batch_size=60).train_dataloader()
    segments, parents = (
        field.flatten()[batch.last].view(-1, 2) for field in (batch.layout.segments, batch.layout.parents)
    )
    assert (parents[:, 0] == parents[:, 1]).all() and (segments[:, 0] != segments[:, 1]).all()
    assert (batch.layout.segments.flatten()[batch.prompt_last].view(-1, 2) == parents).all()


def test_mismatched_answers_depend_on_the_seed_alone(common, write):
    def partners(**options):
        data = built(common | options, write)
        return [tuple(data.train_examples[i]["mismatched"]) for i in range(60)]

    first = partners()
    assert partners() == first
    assert partners(seed=4) != first


def test_a_mismatched_answer_is_any_answer_to_another_prompt_equally_often():
    keys = np.array([5, 5, 5, 9, 2, 2])
    drawn = np.stack([mismatched(keys, keys, np.random.default_rng(seed)) for seed in range(1000)])
    assert not (keys[drawn] == keys).any()
    for row, others in ((0, [3, 4, 5]), (3, [0, 1, 2, 4, 5]), (4, [0, 1, 2, 3])):
        counts = np.bincount(drawn[:, row], minlength=6)
        assert set(np.flatnonzero(counts)) == set(others)
        assert np.allclose(counts[others], 1000 / len(others), rtol=0.25)


def test_held_out_records_are_of_other_prompts_and_never_lend_training_ones_an_answer(common, write):
    data = built(common, write, val_fraction=0.2)
    sides = {"train": data.train_examples, "val": data.val_examples}
    prompts = {name: {tuple(part[i]["prompt"]) for i in range(len(part))} for name, part in sides.items()}
    answers = {name: {tuple(part[i]["completion"]) for i in range(len(part))} for name, part in sides.items()}
    assert prompts["train"].isdisjoint(prompts["val"]) and len(prompts["val"]) > 1
    for name, part in sides.items():
        assert {tuple(part[i]["mismatched"]) for i in range(len(part))} <= answers[name]


def test_a_single_held_out_prompt_is_mismatched_with_training_answers(common, write):
    data = built(common, write, RECORDS[:40], val_fraction=0.001)
    assert len(data.val_examples) == 2
    answers = {tuple(data.train_examples[i]["completion"]) for i in range(38)}
    assert {tuple(data.val_examples[i]["mismatched"]) for i in range(2)} <= answers


def test_comparisons_are_two_labeled_records_each(common, write):
    pairs = [{"prompt": f"q{i}", "chosen": f"y{i}", "rejected": f"n{i}"} for i in range(30)]
    singles = [
        {"prompt": pair["prompt"], "completion": pair[name], "label": name == "chosen"}
        for pair in pairs
        for name in ("chosen", "rejected")
    ]
    of_pairs, of_singles = (
        built(common, lambda name, r, n=n: write(f"{n}.jsonl", r), records)
        for n, records in enumerate((pairs, singles))
    )
    assert [of_pairs.train_examples[i] for i in range(60)] == [of_singles.train_examples[i] for i in range(60)]
    assert of_pairs.counts["records"] == 30 and of_pairs.balance == (30, 30)


def test_the_summary_counts_labels_and_what_is_left_out(common, write, caplog):
    caplog.set_level("INFO")
    records = [
        *RECORDS,
        {"prompt": "q", "completions": ["a", "b", "c"], "ranks": [0, 1, 2]},
        {"prompt": "q", "completions": ["a", "b"], "ranks": [1, 1]},
        {"prompt": "question 1", "completion": "good 1", "label": False},
    ]
    data = built(common, write, records)
    assert (data.counts["desirable"], data.counts["undesirable"]) == (31, 32) == data.balance
    assert "63 records, " in caplog.text and "31 desirable" in caplog.text and "32 undesirable" in caplog.text
    assert "1 of 63 records have answers that are better than as many others as they are worse than" in caplog.text
    assert "1 of 63 records dropped: all answers have the same rank" in caplog.text
    assert "1 of 63 records label an answer in the opposite way of an earlier record, and are kept" in caplog.text


def test_long_answers_are_cut_to_the_context_and_so_are_mismatched_ones(common, write):
    records = [
        {"prompt": "p" * 20, "completion": "y" * 100, "label": True},
        {"prompt": "q" * 30, "completion": "no", "label": False},
    ]
    data = built(common, write, records)
    assert data.counts["truncated"] == 1
    [batch] = data.train_dataloader()
    for (_, answer, desirable, other), lengths in zip(texts(data, batch), batch.lengths.view(-1, 2), strict=True):
        last = batch.layout.positions.flatten()[batch.last]
        assert last.max() < 64
        assert (answer[0], other[0]) == (("y", "n") if desirable else ("n", "y"))
        assert lengths.max() < 64 - 20


def test_the_world_gives_its_comparisons_as_labeled_answers(common):
    world = {"seed": 1, "num_names": 12, "held_out_share": 0.25, "noise": 0.0}
    data = UnpairedData(world=world, comparisons=60, completions=4, val_fraction=0.1, **common | {"context": 256})
    data.setup()
    assert data.counts["records"] == 66 and len(data.val_examples) > 0
    assert data.balance[0] > 60 and data.balance[1] > 60


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"prompt": "q", "completion": "a", "label": True}] * 3, "all training records have the same prompt"),
        (
            [{"prompt": f"q{i}", "completion": "a", "label": False} for i in range(3)],
            "all 3 training records are undesirable",
        ),
        ([{"prompt": "q", "completion": "a"}], r"a.jsonl:1: expected an answer with a \"label\""),
    ],
)
def test_data_that_kto_cannot_learn_from_is_refused(common, write, records, said):
    with pytest.raises(SourceError, match=said):
        built(common, write, records)
