"""The lineage of a run as a graph: what comes from what, and what is said about it."""

import json

import pytest

from components.artifacts.ancestry import ancestors
from components.artifacts.metadata import ArtifactError
from tests.kit.carded_run import write_card, write_run


def by_title(run):
    return {one.title: one for one in ancestors(run.glob("*/export"))}


def test_a_run_leads_back_to_its_data_and_every_node_follows_its_parents(tmp_path):
    found = ancestors(write_run(tmp_path / "tiny").glob("*/export"))
    names = {one.key: one.title for one in found}
    assert {one.title: [names[key] for key in one.parents] for one in found} == {
        "text data": [],
        "tokenizer": ["text data"],
        "pretrain": ["tokenizer", "text data"],
        "chat data": [],
        "sft": ["pretrain", "chat data"],
        "rm": ["sft"],
        "ppo": ["sft", "rm"],
    }
    places = {one.key: place for place, one in enumerate(found)}
    assert all(places[parent] < places[one.key] for one in found for parent in one.parents)


def test_a_node_has_its_headline_metric_size_minutes_seed_and_commit(tmp_path):
    found = by_title(write_run(tmp_path / "tiny"))
    size = (tmp_path / "tiny/pretrain/export/card.json").stat().st_size
    assert found["pretrain"].facts == ["val/loss 1.25, learned", f"{size} B", "1.5 minutes", "seed 3, commit abc"]
    assert found["text data"].facts == ["built-in world, facts", "2,000 records, 50,000 tokens"]
    assert found["chat data"].facts == ["texts/<b>mine.jsonl"]  # not where it lies on the disk


def test_a_parent_in_another_run_is_followed_as_long_as_it_is_the_same(tmp_path):
    sft = write_run(tmp_path / "first") / "sft/export"
    ppo = write_card(tmp_path / "second/ppo/export", "ppo", content="o2", parents=[sft])
    titles = [one.title for one in ancestors([ppo])]
    assert titles[-2:] == ["sft of first", "ppo"] and "pretrain of first" in titles
    card = json.loads((sft / "card.json").read_text())
    (sft / "card.json").write_text(json.dumps(card | {"content": "trained again"}))
    [gone, kept] = ancestors([ppo])
    assert (gone.title, gone.facts, gone.folder) == ("sft", ["replaced or removed since"], None)
    assert kept.parents == [gone.key]


def test_cards_that_name_each_other_end(tmp_path):
    one = write_card(tmp_path / "run/a/export", "a", content="1")
    other = write_card(tmp_path / "run/b/export", "b", content="2", parents=[one])
    card = json.loads((one / "card.json").read_text())
    card["parents"] = {"b": {"path": str(other), "stage": "b", "content": "2"}}
    (one / "card.json").write_text(json.dumps(card))
    assert sorted(node.title for node in ancestors([one, other])) == ["a", "b"]


def test_a_folder_without_a_card_is_left_out_and_a_foreign_card_is_an_error(tmp_path):
    assert ancestors([tmp_path]) == []
    (tmp_path / "card.json").write_text('{"stage": 3}')
    with pytest.raises(ArtifactError, match=r"card\.json is not a card of Gradus: stage: "):
        ancestors([tmp_path])
