"""Votes become records that training reads, at once."""

import json

import pytest

from components.data.preference import PreferenceData
from components.data.records.formats import preference
from components.data.records.labels import unpaired
from components.serving.api_errors import ApiError
from components.serving.served import Served
from components.serving.votes import ThumbAsked, VoteAsked, Votes
from components.stages.rm import RewardModel
from tests.kit import tiny_stages

ASKED = [{"role": "user", "content": "where?"}]


def vote(votes, winner, *contents, models=("a", "b", "c")):
    answers = [{"model": model, "content": content} for model, content in zip(models, contents)]
    return votes.add(VoteAsked.model_validate({"messages": ASKED, "answers": answers, "winner": winner}))


def test_a_vote_is_a_preference_record_on_the_disk(tmp_path):
    votes = Votes(tmp_path / "new/votes.jsonl")
    vote(votes, 1, "paris", "rome")
    vote(votes, None, "paris", "rome")
    first, tie = (preference(json.loads(line)) for line in (tmp_path / "new/votes.jsonl").read_text().splitlines())
    assert first["completions"] == ["paris", "rome"] and first["ranks"] == [1, 0]
    assert first["prompt"] == ASKED and tie["ranks"] == [0, 0]


def test_a_thumb_is_an_unpaired_record(tmp_path):
    votes = Votes(tmp_path / "votes.jsonl")
    answer = {"model": "a", "content": "paris"}
    votes.add(ThumbAsked.model_validate({"messages": ASKED, "answer": answer, "label": False}))
    record = unpaired(json.loads((tmp_path / "thumbs.jsonl").read_text()))
    assert record["labels"] == [False] and record["completions"] == ["paris"]
    assert votes.table()["thumbs"] == {"a": {"up": 0, "down": 1}}


def test_the_table_counts_wins_and_ties_of_pairs(tmp_path):
    votes = Votes(tmp_path / "votes.jsonl")
    assert votes.table() == {"votes": 0, "pairs": [], "strengths": {}, "thumbs": {}}
    vote(votes, 0, "x", "y")
    vote(votes, 0, "x", "y", models=("b", "a"))
    vote(votes, 0, "x", "y", models=("b", "a"))
    vote(votes, None, "x", "y")
    vote(votes, 1, "x", "y", models=("a", "a"))
    found = votes.table()
    strengths = found.pop("strengths")
    assert list(strengths) == ["b", "a"] and strengths["b"]["low"] < strengths["b"]["elo"] < strengths["b"]["high"]
    assert found == {"votes": 5, "pairs": [{"models": ["a", "b"], "wins": [1, 2], "ties": 1}], "thumbs": {}}


@pytest.mark.parametrize("winner", [2, 7])
def test_a_vote_for_an_answer_that_is_not_there_is_refused_and_not_written(tmp_path, winner):
    votes = Votes(tmp_path / "votes.jsonl")
    with pytest.raises(ApiError, match="winner"):
        vote(votes, winner, "x", "y")
    with pytest.raises(ApiError):
        votes.add(
            VoteAsked.model_validate({"messages": [{"role": "x"}], "answers": [{"model": "a", "content": "x"}] * 2})
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_file_of_votes_trains_a_reward_model_that_prefers_what_was_voted_for(tmp_path, small_tokenizer):
    votes = Votes(tmp_path / "votes.jsonl")
    for place in range(8):
        vote(votes, place % 2, *(("paris", "rome") if place % 2 == 0 else ("rome", "paris")))
    data = PreferenceData(
        tokenizer=small_tokenizer,
        path=str(votes.file),
        context=64,
        batch_size=8,
        val_fraction=0.0,
        cache_dir=tmp_path / "cache",
    )
    data.setup()
    [batch] = data.train_dataloader()
    model = tiny_stages.scalar(vocab_size=small_tokenizer.vocab_size, max_position_embeddings=64)
    stage = RewardModel(model=lambda: model, optimizer=tiny_stages.adam(1e-2), schedule=tiny_stages.CONSTANT)
    tiny_stages.fit(stage, [batch] * 10, max_steps=10)
    served = Served("rm", stage.model, small_tokenizer)
    talks = [[*ASKED, {"role": "assistant", "content": city}] for city in ("paris", "rome")]
    paris, rome = (served.reward(served.chat_ids(talk)) for talk in talks)
    assert paris > rome + 1
