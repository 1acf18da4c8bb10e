"""The table world as data: its reward model reads ids as its judge reads text, and its records fill every format."""

import random

import pytest
import torch

from components.data.chat import ChatData
from components.data.preference import PreferenceData
from components.data.prompts import PromptsData
from components.data.records.errors import SourceError
from components.data.sources.builtin import make_world
from components.data.text import TextData
from components.rewards.table_reward import reward_automaton, table_reward
from components.tokenizer.tokenizer import Tokenizer
from components.tokenizer.train import train

FIELDS = {"kind": "table", "seed": 5, "num_prompts": 3, "noise": 0.0}
WORLD = make_world(FIELDS)


@pytest.fixture(scope="module", params=[275, 300], ids=["a letter a token", "merged letters"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    texts = (record["text"] for record in WORLD.corpus(300))
    train(texts, vocab_size=request.param).save(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


def prompt(tokenizer, question):
    return tokenizer.render_prompt([{"role": "user", "content": question}])


def test_the_reward_model_gives_an_answer_its_reward(folder, tokenizer):
    model = table_reward(str(folder), FIELDS)
    for question, table in WORLD.rewards.items():
        for answer in ("", "a", "bc", "dd"):
            ids = [*prompt(tokenizer, question), *tokenizer.encode(answer), tokenizer.end_id]
            assert float(model(torch.tensor([ids]))[0, -1]) == pytest.approx(table[answer])


def test_it_reads_any_ids_as_the_judge_reads_their_text(folder, tokenizer):
    """Bytes that spell letters, letters next to special pieces, and texts that are in no table included."""
    model, rng = table_reward(str(folder), FIELDS), random.Random(0)
    spelled = [tokenizer.codec.byte_ids[ord(letter)] for letter in "abcd"]
    likely = [*tokenizer.encode("abcd"), *spelled, *tokenizer.stop_ids, tokenizer.pad_id, tokenizer.bos_id]
    rows, gold = [], []
    for _ in range(400):
        question = rng.choice(list(WORLD.rewards))
        ids = [rng.choice(likely) if rng.random() < 0.9 else rng.randrange(tokenizer.vocab_size) for _ in range(3)]
        rows.append([*prompt(tokenizer, question), *ids])
        gold.append(WORLD.judge(question, tokenizer.decode(ids), finished=True).gold)
    assert model(torch.tensor(rows))[:, -1].tolist() == pytest.approx(gold)
    assert 100 < sum(one != WORLD.other for one in gold) < 400


def test_a_prompt_that_is_not_the_worlds_scores_like_any_other_text(folder, tokenizer):
    model = table_reward(str(folder), FIELDS)
    ids = [*prompt(tokenizer, "Z"), *tokenizer.encode("a")]
    assert set(model(torch.tensor([ids]))[0].tolist()) == {-3.0}


def test_a_prompt_that_is_a_prefix_of_another_is_refused():
    with pytest.raises(ValueError, match="none that is a prefix of another"):
        reward_automaton([[1], [1, 2]], [{}, {}], [b""] * 3, other=0.0)


def test_the_table_reward_needs_a_table_world(folder):
    with pytest.raises(SourceError, match="Add world=table"):
        table_reward(str(folder), {"kind": "facts"})


@pytest.mark.parametrize(
    ("kind", "sizes", "records"),
    [
        (TextData, {"num_documents": 60}, 60),
        (ChatData, {"demonstrations": 60}, 60),
        (PromptsData, {}, 3),
        (PreferenceData, {"comparisons": 60, "completions": 2}, 60),
    ],
)
def test_the_world_fills_every_format(tokenizer, tmp_path, kind, sizes, records):
    data = kind(tokenizer=tokenizer, context=32, cache_dir=str(tmp_path), world=FIELDS, val_fraction=0.0, **sizes)
    data.prepare_data()
    data.setup()
    assert data.counts["records"] == records
    assert len(data.val_examples) == 0 and data.val_dataloader() == []


def test_rollouts_are_judged_by_the_table(tokenizer, tmp_path):
    data = PromptsData(tokenizer=tokenizer, context=32, cache_dir=str(tmp_path), world=FIELDS)
    data.prepare_data()
    data.setup()
    asked = sorted(data.train_examples, key=lambda example: example["prompt"][-1]["content"])
    best = [tokenizer.encode(question.answer) for question in WORLD.questions("train")]
    assert data.judge_responses(asked, best, [True, True, False])["correct"] == pytest.approx(2 / 3)
    gold = sum(max(WORLD.rewards[question].values()) for question in "AB") + WORLD.other
    assert data.judge_responses(asked, best, [True, True, False])["gold"] == pytest.approx(gold / 3)
