"""README.md of an artifact: YAML that the Hub reads, lineage, and what transformers ignores."""

import yaml

from components.artifacts import store
from components.artifacts.model_card import model_card
from tests.kit import tiny_models

PARENT = {"path": "logs/tiny/pretrain/export", "stage": "pretrain", "content": "c0ffee"}
CARD = {
    "stage": "sft",
    "run": "tiny",
    "seed": 7,
    "commit": "abc1234",
    "data": "d0d0",
    "parents": {"model": PARENT},
    "metrics": {"val/loss": 1.23456789, "steps": 5},
    "inputs": {"hidden": "setting"},
}


def front(text: str) -> dict:
    return yaml.safe_load(text.split("---")[1])


def test_the_front_matter_is_yaml_with_a_base_model_only_from_the_hub():
    text = model_card(CARD, kind="CausalLM", shape="2 layers", shift=None)
    assert front(text) == {"library_name": "transformers", "tags": ["gradus", "sft"], "pipeline_tag": "text-generation"}
    theirs = CARD | {"parents": {"model": PARENT | {"hub": "owner/name"}, "tokenizer": PARENT | {"hub": "owner/name"}}}
    assert front(model_card(theirs, kind="CausalLM", shape="", shift=None))["base_model"] == "owner/name"


def test_lineage_seed_commit_data_and_metrics_are_shown_and_settings_are_not():
    text = model_card(CARD, kind="CausalLM", shape="2 layers", shift=None)
    for line in (
        "| model | logs/tiny/pretrain/export | pretrain | c0ffee |",
        "| seed | 7 |",
        "| commit | abc1234 |",
        "| data | d0d0 |",
        "| val/loss | 1.23457 |",
    ):
        assert line in text
    assert "hidden" not in text and "AutoModelForCausalLM" in text


def test_the_shift_of_a_score_that_transformers_ignores_is_shown(tmp_path):
    model = tiny_models.random_scalar(24)
    model.rescale_(scale=0.5, shift=-1.25)
    store.write_artifact(tmp_path / "x", card=CARD, model=model)
    text = (tmp_path / "x/README.md").read_text()
    assert "Gradus adds -1.25 to it" in text and "AutoModelForSequenceClassification" in text
    assert front(text)["pipeline_tag"] == "text-classification"


def test_a_tokenizers_card_names_no_model(tmp_path, small_tokenizer):
    store.write_artifact(tmp_path / "x", card={"stage": "tokenizer"}, tokenizer=small_tokenizer)
    text = (tmp_path / "x/README.md").read_text()
    assert "AutoTokenizer" in text and "AutoModel" not in text and "pipeline_tag" not in front(text)
