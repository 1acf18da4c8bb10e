"""The folder between two stages: it is read back unchanged, is complete or absent, and other programs can read it."""

import hashlib
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.artifacts import store
from components.artifacts.store import ArtifactError, load_causal_lm, load_scalar, read_card, write_artifact
from components.models.heads import CausalLM
from tests.kit import tiny_models

IDS = torch.tensor([[5, 9, 3, 17, 2, 8, 11]])
VARIANTS = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "llama_bias": {"attention_bias": True, "attention_output_bias": True},
    "qwen2": {"attention_bias": True},
    "qwen3": {"qk_norm": True, "rope_theta": 50_000.0, "rms_norm_eps": 1e-6},
}


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def edit_json(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture
def folder(tmp_path, small_tokenizer):
    """A complete artifact of a language model."""
    model = tiny_models.random_model(small_tokenizer.vocab_size)
    write_artifact(tmp_path / "export", card={"stage": "sft"}, tokenizer=small_tokenizer, model=model)
    return tmp_path / "export"


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_a_language_model_comes_back_bit_for_bit(tmp_path, changes):
    model = tiny_models.random_model(24, **changes)
    write_artifact(tmp_path / "x", card={}, model=model)
    loaded = load_causal_lm(tmp_path / "x")
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    assert torch.equal(loaded(IDS), model(IDS))
    assert not loaded.training


def test_tied_weights_are_written_once_and_come_back_tied(tmp_path):
    write_artifact(tmp_path / "x", card={}, model=tiny_models.random_model(24, tie_word_embeddings=True))
    loaded = load_causal_lm(tmp_path / "x")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(tmp_path / "x" / "model.safetensors")


@torch.no_grad()
def test_a_reward_model_comes_back_with_the_shift_of_its_score(tmp_path):
    model = tiny_models.random_scalar(24)
    model.rescale_(scale=0.5, shift=-1.25)
    write_artifact(tmp_path / "x", card={}, model=model)
    loaded = load_scalar(tmp_path / "x")
    assert loaded.score.bias.item() == -1.25
    assert torch.equal(loaded(IDS), model(IDS))
    assert not loaded.training


def test_a_foreign_classifier_without_a_bias_has_none(tmp_path):
    write_artifact(tmp_path / "x", card={}, model=tiny_models.random_scalar(24))
    assert "score.bias" not in load_file(tmp_path / "x" / "model.safetensors")  # nor does ours while it is zero
    assert load_scalar(tmp_path / "x").score.bias.item() == 0


def test_a_new_reward_model_uses_the_language_models_trunk(folder):
    trunk = load_causal_lm(folder).model.state_dict()
    scalar = store.load_scalar_from_causal(folder)
    assert all(torch.equal(scalar.model.state_dict()[name], value) for name, value in trunk.items())
    assert scalar.score.bias.item() == 0


def test_the_tokenizer_travels_along(folder, small_tokenizer):
    assert store.load_tokenizer(folder).fingerprint == small_tokenizer.fingerprint
    stops = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert stops == list(small_tokenizer.stop_ids)


def test_the_weights_have_the_cards_permissions(folder):
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1


def test_weights_gathered_elsewhere_are_the_ones_written(tmp_path):
    model, other = tiny_models.random_model(24), tiny_models.random_model(24, seed=1)
    write_artifact(tmp_path / "x", card={}, model=model, weights=store.whole_weights(other))
    assert torch.equal(load_causal_lm(tmp_path / "x").lm_head.weight, other.lm_head.weight)


def test_weights_split_over_several_files_are_read_together(folder):
    before = load_causal_lm(folder).state_dict()
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    after = load_causal_lm(folder).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_cards_content_is_a_hash_of_all_other_files(folder):
    # by hand: for every file except the two cards, in the order of names, its name and then the digest of its bytes
    digest = hashlib.sha256()
    for name, content in sorted(files_of(folder).items()):
        if name not in ("card.json", "README.md"):
            digest.update(name.encode() + hashlib.sha256(content).digest())
    assert read_card(folder) == {"stage": "sft", "content": digest.hexdigest()}
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert store.content_hash(folder) != digest.hexdigest()


def test_equal_models_have_equal_content_independent_of_their_cards(folder, tmp_path, small_tokenizer):
    model = tiny_models.random_model(small_tokenizer.vocab_size)
    write_artifact(tmp_path / "again", card={"stage": "other", "seed": 3}, tokenizer=small_tokenizer, model=model)
    assert read_card(tmp_path / "again")["content"] == read_card(folder)["content"]


def test_writing_replaces_an_earlier_artifact_and_leaves_no_other_files(folder):
    write_artifact(folder, card={"stage": "new"}, model=tiny_models.random_scalar(24))
    assert read_card(folder)["stage"] == "new"
    assert sorted(files_of(folder)) == ["README.md", "card.json", "config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["export"]


def failing(error):
    def fail(*arguments, **settings):
        raise error

    return fail


class Killed(BaseException):
    """Stops a process without being an Exception, like an interrupt."""


@pytest.mark.parametrize("step", ["save_file", "content_hash", "sync", "swap"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Killed()], ids=["disk_full", "interrupt"])
def test_a_write_that_fails_midway_leaves_the_earlier_artifact_whole(folder, monkeypatch, step, error):
    before = files_of(folder)
    monkeypatch.setattr(store, step, failing(error))
    expected = Killed if isinstance(error, Killed) else ArtifactError
    with pytest.raises(expected) as caught:
        write_artifact(folder, card={"stage": "new"}, model=tiny_models.random_model(24, seed=1))
    if expected is ArtifactError:
        assert "No space left on device" in str(caught.value) and str(folder) in str(caught.value)
    assert files_of(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["export"]


def test_an_artifact_comes_back_if_the_new_one_cannot_take_its_place(folder, monkeypatch):
    before = files_of(folder)
    rename = Path.rename

    def refuse(self, target):
        if "writing" in self.name:
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ArtifactError, match="Permission denied; the previous contents are untouched"):
        write_artifact(folder, card={}, model=tiny_models.random_model(24, seed=1))
    assert files_of(folder) == before


def test_a_full_disk_while_weights_are_written_is_reported_as_such(folder):
    resource = pytest.importorskip("resource")
    before = files_of(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # maximum bytes of a file
    try:
        with pytest.raises(ArtifactError, match="could not write .*; the previous contents are untouched"):
            write_artifact(folder, card={}, model=tiny_models.random_model(24, seed=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files_of(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["export"]


def test_a_missing_artifact_is_reported(tmp_path):
    for load in (load_causal_lm, load_scalar, store.load_tokenizer):
        with pytest.raises(ArtifactError, match="no artifact at .*nowhere"):
            load(tmp_path / "nowhere")
    assert read_card(tmp_path) == {}


def test_a_folder_without_a_model_is_reported_with_its_contents(tmp_path, small_tokenizer):
    write_artifact(tmp_path / "x", card={}, tokenizer=small_tokenizer)
    with pytest.raises(ArtifactError, match="no config.json: .* found README.md, card.json, tokenizer"):
        load_causal_lm(tmp_path / "x")


def test_the_wrong_kind_of_model_is_reported(folder, tmp_path):
    write_artifact(tmp_path / "rm", card={}, model=tiny_models.random_scalar(24))
    with pytest.raises(ArtifactError, match="expected a language model .*, got a reward model"):
        load_causal_lm(tmp_path / "rm")
    with pytest.raises(ArtifactError, match="expected a reward model .*, got a language model"):
        load_scalar(folder)


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


DAMAGES = {
    "cut weights": (truncate, "model.safetensors is damaged"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "expected a JSON object, got list"),
    "config lacks a field": (
        lambda f: (f / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'),
        "lacks the field 'num_attention_heads'",
    ),
    "unknown architecture": (
        lambda f: edit_json(f / "config.json", architectures=["LlamaForMaskedLM"]),
        "'LlamaForMaskedLM' is neither",
    ),
    "unknown family": (lambda f: edit_json(f / "config.json", model_type="bert"), "model_type 'bert'"),
    "another width": (
        lambda f: edit_json(f / "config.json", intermediate_size=25),
        r"mlp.* has shape \((24, 16|16, 24)\), config.json asks for \((25, 16|16, 25)\)",
    ),
    "another depth": (lambda f: edit_json(f / "config.json", num_hidden_layers=3), "missing .'model.layers.2"),
    "fewer layers": (lambda f: edit_json(f / "config.json", num_hidden_layers=1), "unknown .'model.layers.1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artifact_is_reported_with_file_and_cause(folder, damage):
    spoil, message = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(ArtifactError, match=message) as caught:
        load_causal_lm(folder)
    assert str(folder) in str(caught.value)


def test_a_card_that_is_not_json_is_reported(folder):
    (folder / "card.json").write_text("nonsense")
    with pytest.raises(ArtifactError, match="card.json is not JSON"):
        read_card(folder)


def test_dropout_belongs_to_the_run_and_not_to_the_artifact(folder):
    assert load_causal_lm(folder).config.dropout == 0
    assert load_causal_lm(folder, dropout=0.25).model.dropout.p == 0.25
    assert "dropout" not in json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its own imports
        return pytest.importorskip("transformers")


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_transformers_reads_our_language_models_with_equal_logits(tmp_path, small_tokenizer, changes, transformers):
    model = tiny_models.random_model(small_tokenizer.vocab_size, **changes)
    write_artifact(tmp_path / "x", card={}, tokenizer=small_tokenizer, model=model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "x").eval()
    assert (theirs(IDS).logits - model(IDS)).abs().max() < 1e-4
    assert theirs.generation_config.eos_token_id == list(small_tokenizer.stop_ids)


@torch.no_grad()
def test_transformers_reads_our_reward_models_with_equal_scores_but_for_the_shift(
    tmp_path, small_tokenizer, transformers
):
    model = tiny_models.random_scalar(small_tokenizer.vocab_size)
    model.rescale_(scale=0.5, shift=-1.25)
    write_artifact(tmp_path / "x", card={}, tokenizer=small_tokenizer, model=model)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "x").eval()
    score = theirs(IDS).logits
    assert score.shape == (1, 1)  # theirs is at the last token; their class has no bias for ours
    assert abs(float(score) - 1.25 - float(model(IDS)[0, -1])) < 1e-4


@torch.no_grad()
def test_a_folder_that_transformers_wrote_is_read_with_equal_logits(folder, tmp_path, transformers):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_causal_lm(tmp_path / "theirs")
    assert isinstance(ours, CausalLM)
    assert (theirs(IDS).logits - ours(IDS)).abs().max() < 1e-4
    assert read_card(tmp_path / "theirs") == {}


def test_an_artifact_can_be_moved(folder, tmp_path):
    shutil.move(folder, tmp_path / "elsewhere")
    assert read_card(tmp_path / "elsewhere")["content"] == store.content_hash(tmp_path / "elsewhere")
    load_causal_lm(tmp_path / "elsewhere")


def test_an_artifact_left_under_its_previous_name_by_a_kill_is_restored(tmp_path, small_tokenizer):
    write_artifact(tmp_path / "export", card={"stage": "tokenizer"}, tokenizer=small_tokenizer)
    (tmp_path / "export").rename(tmp_path / "export.previous")
    assert store.load_tokenizer(tmp_path / "export").fingerprint == small_tokenizer.fingerprint
    assert not (tmp_path / "export.previous").exists()
