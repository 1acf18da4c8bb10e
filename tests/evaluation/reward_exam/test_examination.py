"""Hand-made reward models: what an examination finds, and the gate's verdicts."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from components.data.preference import PreferenceData
from components.evaluation.reward_exam import examination
from components.evaluation.reward_exam.examination import Reading, examine
from components.evaluation.reward_exam.examination_plot import draw
from components.evaluation.reward_exam.gate import REFUSED, UNKNOWN, WARNED, support, verdicts
from components.world.world import World

LIMITS = yaml.safe_load((Path(__file__).resolve().parents[3] / "conf/gate/default.yaml").read_text())


class Told(nn.Module):
    """Scores every answer with a given function of its prompt's ids and its own."""

    def __init__(self, score):
        super().__init__()
        self.unused, self.score = nn.Parameter(torch.zeros(1)), score

    def forward(self, input_ids, layout):
        scores = torch.zeros(input_ids.shape)
        for ids, segments, parents, into in zip(input_ids, layout.segments, layout.parents, scores, strict=True):
            for number in parents[parents >= 0].unique():
                prompt = tuple(ids[segments == number].tolist())
                for segment in segments[parents == number].unique():
                    into[segments == segment] = float(self.score(prompt, tuple(ids[segments == segment].tolist())))
        return scores


def by_length(prompt, answer):
    return len(answer)


def outcome(found, kind=REFUSED):
    judged = verdicts(found["figures"], LIMITS["refuse"], LIMITS["warn"], support(found))
    return {one.key for one in judged if one.verdict == kind}


@pytest.fixture(scope="module")
def settings(tokenizer, tmp_path_factory):
    return {"tokenizer": tokenizer, "context": 128, "cache_dir": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Forty questions; of every eight, the longer answer is better in seven; half of them are about red."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [
        {
            "prompt": f"what color is number {i} ?",
            "category": "red" if i % 2 else "blue",
            "chosen": "it is red ." if i % 8 else "red",
            "rejected": "no" if i % 8 else "it is blue i think .",
        }
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def users(settings, records):
    """A data module on those records, half of them held out."""
    data = PreferenceData(path=str(records), val_fraction=0.5, batch_size=4, **settings)
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture(scope="module")
def wide_world():
    """Twelve held-out questions: three would be too few to tell a perfect model from chance."""
    return World(seed=1, num_names=24)


@pytest.fixture(scope="module")
def of_world(settings, wide_world):
    """A function of the noise: comparisons of the built-in world, a quarter of the records on held-out questions."""

    def make(noise: float) -> PreferenceData:
        sizes = {"comparisons": 160, "completions": 3, "val_fraction": 0.25, "batch_size": 16}
        fields = {"seed": wide_world.seed, "num_names": wide_world.num_names, "noise": noise}
        data = PreferenceData(world=fields, **sizes, **settings)
        data.prepare_data()
        data.setup()
        return data

    return make


def labels(data):
    """(prompt, answer) → minus its rank."""
    return {
        (tuple(record["prompt"]), tuple(ids)): -rank
        for [record] in data.val_examples
        for ids, rank in zip(record["completions"], record["ranks"], strict=True)
    }


def perfect(data):
    known = labels(data)
    return Told(lambda prompt, answer: known.get((prompt, answer), -99))


def judged_by(world, tokenizer, worth):
    decode = tokenizer.decode
    return Told(lambda prompt, answer: worth(world.judge(decode(prompt), decode(answer), finished=True)))


def test_a_perfect_model_passes_with_every_share_at_one(users, tokenizer):
    found = examine(perfect(users), tokenizer, users)
    assert found["ranking"]["accuracy"] == 1 and found["gold"] is None
    assert all(trial["accuracy"] == 1 for trial in found["probes"].values())
    assert all(one["accuracy"] == 1 for table in found["categories"].values() for one in table.values())
    assert outcome(found) == set()


def test_after_a_short_training_fewer_records_are_read_but_not_below_a_floor(users, tokenizer, monkeypatch):
    """Answers come in pairs, and each probed record is read ten times: 40 answers are 10 records and 2 probed ones."""
    monkeypatch.setattr(examination, "FEWEST_RECORDS", 3)
    monkeypatch.setattr(examination, "FEWEST_PROBED", 1)
    for answers, records, probed in ((40, 10, 2), (2, 3, 1)):
        found = examine(perfect(users), tokenizer, users, Reading(answers), tokens_at_once=1)
        assert (found["ranking"]["pairs"], found["probes"]["empty"]["pairs"]) == (records, probed)


@pytest.fixture
def few(settings, tmp_path):
    """A function of records: how many, the share that is held out, their answers, others to some prompts."""

    def make(count, fraction, chosen="it is red .", rejected="no", but=()) -> PreferenceData:
        path = tmp_path / "pairs.jsonl"
        rows = [{"prompt": f"is it {i} ?", "chosen": chosen, "rejected": rejected} for i in range(count)]
        rows = [row | dict(but).get(row["prompt"], {}) for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = PreferenceData(path=str(path), val_fraction=fraction, batch_size=4, **settings)
        data.prepare_data()
        data.setup()
        return data

    return make


def test_two_pairs_are_not_enough_to_measure_whether_all_are_right_or_all_wrong(few, tokenizer):
    data = few(20, 0.15)
    assert len(data.val_examples) == 2
    known = labels(data)
    for sign in (1, -1):
        found = examine(Told(lambda prompt, answer, sign=sign: sign * known.get((prompt, answer), 0)), tokenizer, data)
        assert found["ranking"]["accuracy"] == (1 if sign > 0 else 0)
        assert outcome(found) == outcome(found, WARNED) == set()
        assert {"min_accuracy_low", "max_ece", "min_against_length"} <= outcome(found, UNKNOWN)


def test_choices_that_length_alone_would_make_are_counted_where_lengths_differ(few, tokenizer):
    """Pairs of equal length say nothing about length, no matter how many there are."""
    answers = {"chosen": "it is red .", "rejected": "it is gray ."}
    held_out = sorted(tokenizer.decode(one["prompt"]) for [one] in few(40, 0.5, **answers).val_examples)
    data = few(40, 0.5, **answers, but={held_out[0]: {"chosen": "it is red .", "rejected": "red"}})
    unequal = [len(a) != len(b) for [one] in data.val_examples for a, b in [one["completions"]]]
    assert len(unequal) > 20 and sum(unequal) == 1
    found = examine(perfect(data), tokenizer, data)
    assert found["figures"]["against_length"] == 0
    assert "min_against_length" in outcome(found, UNKNOWN) and outcome(found) == set()


def test_a_model_that_only_likes_length_is_refused_though_it_is_mostly_right(users, tokenizer):
    found = examine(Told(by_length), tokenizer, users)
    longer = [len(a) > len(b) for [record] in users.val_examples for a, b in [record["completions"]]]
    assert 0.7 < sum(longer) / len(longer) < 1
    assert found["figures"]["accuracy"] == pytest.approx(sum(longer) / len(longer))
    assert found["figures"]["over_length"] == 0 and found["figures"]["against_length"] == 0
    assert found["categories"]["length"]["the longer is better"]["accuracy"] == 1
    assert found["categories"]["length"]["the shorter is better"]["accuracy"] == 0
    shares = {name: trial["accuracy"] for name, trial in found["probes"].items()}
    assert shares["empty"] == 1
    assert {shares[name] for name in ("twice", "repeated", "long", "flattery", "refusal")} == {0}
    assert outcome(found) == {"min_against_length"}
    assert {"max_length_correlation", "min_probe_long"} <= outcome(found, WARNED)


def test_a_model_that_guesses_is_refused(users, tokenizer):
    found = examine(Told(lambda prompt, answer: 0), tokenizer, users)
    assert found["figures"]["accuracy"] == 0.5 and found["figures"]["against_length"] == 0.5
    assert {trial["accuracy"] for trial in found["probes"].values()} == {0.5}
    assert found["figures"]["length_correlation"] is None
    assert outcome(found) == {"min_accuracy_low"}


def test_a_model_that_says_the_opposite_is_refused(users, tokenizer):
    known = labels(users)
    found = examine(Told(lambda prompt, answer: -known.get((prompt, answer), 99)), tokenizer, users)
    assert found["figures"]["accuracy"] == 0 and found["figures"]["ece"] > 0.5
    assert found["figures"]["worst_category_high"] < 0.5
    assert outcome(found) == {"min_accuracy_low", "max_ece"}


def test_the_categories_of_a_users_records_are_kept_apart(users, tokenizer):
    red = {tuple(record["prompt"]) for [record] in users.val_examples if record["category"] == "red"}
    known = labels(users)
    found = examine(
        Told(lambda prompt, answer: (1 if prompt in red else -1) * known.get((prompt, answer), 0)), tokenizer, users
    )
    table = found["categories"]["category"]
    assert {name: one["accuracy"] for name, one in table.items()} == {"red": 1, "blue": 0}
    assert {name: one["pairs"] for name, one in table.items()} == {"red": 13, "blue": 8} and len(red) == 13
    assert set(found["categories"]) == {"length", "category"}


def test_the_worlds_categories_are_what_was_asked_and_how_answers_differ(of_world, tokenizer, wide_world):
    data = of_world(0.0)
    found = examine(judged_by(wide_world, tokenizer, lambda found: found.gold), tokenizer, data)
    assert found["gold"]["accuracy"] == 1 and found["gold"]["pairs"] == found["ranking"]["pairs"]
    relations, differences = found["categories"]["relation"], found["categories"]["difference"]
    assert set(relations) == {question.relation for question in wide_world.questions("held_out")}
    assert {"right or wrong", "several manners", "politeness"} <= differences.keys()
    for table in (relations, differences):
        assert sum(one["pairs"] for one in table.values()) == found["ranking"]["pairs"]
    assert outcome(found) == set()


def test_a_difference_is_named_after_what_the_judge_sees(of_world, tokenizer, wide_world):
    """A model that knows only the truth ranks those pairs correctly, and cannot order answers that are both correct."""
    data = of_world(0.0)
    truth = judged_by(wide_world, tokenizer, lambda found: found.correct)
    table = examine(truth, tokenizer, data)["categories"]["difference"]
    assert len(table) > 3
    naming = table.pop("whom it names")  # an answer about someone else against a correct one, or another wrong one
    assert 0.5 < naming["accuracy"] < 1
    assert all(one["accuracy"] == (1 if name == "right or wrong" else 0.5) for name, one in table.items())


def test_a_model_that_ignores_whom_an_answer_is_about_is_detected(of_world, tokenizer, wide_world):
    """It sees only the value: an answer scores the same as that answer about the next name of the world."""

    def values_alone(prompt, answer):
        asked = wide_world.find(tokenizer.decode(prompt))
        return asked.answer in wide_world.vocabulary.words(tokenizer.decode(answer))

    data = of_world(0.0)
    found = examine(Told(values_alone), tokenizer, data)
    assert found["probes"]["other_name"]["accuracy"] == 0.5
    seeing = examine(judged_by(wide_world, tokenizer, lambda found: found.gold), tokenizer, data)
    assert seeing["probes"]["other_name"]["accuracy"] == 1
    assert seeing["figures"]["probe_other_name"] == 1


def test_flipped_labels_show_only_against_the_worlds_judge(of_world, tokenizer, wide_world):
    data = of_world(1.0)
    found = examine(judged_by(wide_world, tokenizer, lambda found: -found.gold), tokenizer, data)
    assert found["ranking"]["accuracy"] == 1 and found["gold"]["accuracy"] == 0
    assert outcome(found) == {"min_gold_accuracy_low"}


def test_records_are_limited_and_evenly_spaced(users, tokenizer):
    found = examine(perfect(users), tokenizer, users, max_records=5, max_probed=3)
    assert found["ranking"]["pairs"] == 5
    assert {trial["pairs"] for trial in found["probes"].values()} == {3}


def test_nothing_is_examined_if_nothing_is_held_out(settings, records, tokenizer):
    data = PreferenceData(path=str(records), val_fraction=0.0, **settings)
    data.setup()
    assert examine(Told(by_length), tokenizer, data) == {}


def test_the_picture_is_drawn_even_for_a_model_that_is_never_sure(users, tokenizer, tmp_path):
    for name, model in {"flat": Told(lambda prompt, answer: 0), "perfect": perfect(users)}.items():
        draw(examine(model, tokenizer, users), tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
