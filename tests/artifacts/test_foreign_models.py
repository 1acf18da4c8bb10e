"""Models from transformers: read from its folders, they compute the same as there, and are written back unchanged."""

import json
import math
import warnings

import pytest
import torch
from safetensors.torch import load_file

from components.artifacts import store
from components.artifacts.store import ArtifactError, load_causal_lm, load_scalar, write_artifact
from components.functional.seeding import seeded
from components.generation.generate import Sampling, generate
from components.models.attention.layout import pack
from components.models.attention.rotary import slowing

LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
SHAPE = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=256,
    initializer_range=0.25,
)
GPT2 = dict(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.25)
FOREIGN = {
    "llama": ("Llama", SHAPE | {"num_key_value_heads": 2}),
    "llama tied, wide heads": ("Llama", SHAPE | {"tie_word_embeddings": True, "head_dim": 24}),
    "llama biases": ("Llama", SHAPE | {"attention_bias": True}),
    "llama3 rope": ("Llama", SHAPE | {"rope_parameters": LLAMA3 | {"rope_theta": 500_000.0}}),
    "linear rope": ("Llama", SHAPE | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "mistral": ("Mistral", SHAPE | {"num_key_value_heads": 2, "sliding_window": 256}),
    "qwen2": ("Qwen2", SHAPE | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen2 window": (
        "Qwen2",
        SHAPE | {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 300, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", SHAPE | {"num_key_value_heads": 2, "head_dim": 16}),
    "gpt2": ("GPT2", GPT2),
    "gpt2 untied, narrow": ("GPT2", GPT2 | {"tie_word_embeddings": False, "n_inner": 40}),
}


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its own imports
        return pytest.importorskip("transformers")


def theirs_of(transformers, name: str, head: str = "CausalLM"):
    """Random weights; norms and biases are also moved away from their initial ones and zeros."""
    family, settings = FOREIGN[name]
    class_name = "GPT2LMHeadModel" if (family, head) == ("GPT2", "CausalLM") else f"{family}For{head}"
    settings = settings | ({"num_labels": 1, "pad_token_id": 0} if head == "SequenceClassification" else {})
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(getattr(transformers, f"{family}Config")(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def text(length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 96, (1, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FOREIGN)
@torch.no_grad()
def test_a_foreign_model_computes_here_what_it_computes_there(name, transformers, tmp_path):
    theirs = theirs_of(transformers, name)
    theirs.save_pretrained(tmp_path / "x")
    ours, ids = load_causal_lm(tmp_path / "x"), text(120)
    expected = theirs(ids).logits
    assert expected.std() > 0.5  # a model of zeros would agree with anything
    assert (ours(ids) - expected).abs().max() < 1e-4
    assert ours.config.num_parameters() == theirs.num_parameters()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("llama", "mistral", "qwen3", "gpt2") else pytest.mark.slow)
        for name in FOREIGN
    ],
)
@torch.no_grad()
def test_200_greedy_tokens_through_the_cache_are_transformers_own(name, transformers, tmp_path):
    theirs = theirs_of(transformers, name)
    theirs.save_pretrained(tmp_path / "x")
    ours, prompt = load_causal_lm(tmp_path / "x"), text(20)
    expected = theirs.generate(prompt, max_new_tokens=200, do_sample=False, eos_token_id=None, pad_token_id=0)
    samples = generate(
        ours, prompt.tolist(), Sampling(200, temperature=0.0), stop_ids=[], pad_id=0, generator=seeded("cpu", 0)
    )
    assert samples.ids[0].tolist() == expected[0, 20:].tolist()
    assert len(set(samples.ids[0].tolist())) > 3


@pytest.mark.parametrize("name", FOREIGN)
@torch.no_grad()
def test_a_foreign_model_goes_out_as_it_came_in(name, transformers, tmp_path):
    theirs = theirs_of(transformers, name)
    theirs.save_pretrained(tmp_path / "x")
    ours = load_causal_lm(tmp_path / "x")
    write_artifact(tmp_path / "y", card={}, model=ours)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "y").eval()
    assert type(back) is type(theirs)
    state = theirs.state_dict()
    assert back.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in back.state_dict().items())
    assert (back(text(60)).logits - theirs(text(60)).logits).abs().max() < 1e-5
    told = (
        "max_position_embeddings",
        "rope_parameters",
        "sliding_window",
        "use_sliding_window",
        "tie_word_embeddings",
        "num_key_value_heads",
        "head_dim",
        "n_inner",
        "rms_norm_eps",
        "layer_norm_epsilon",
        "layer_types",
    )
    before, after = theirs.config.to_dict(), back.config.to_dict()
    for field in told:
        if field in ("n_inner", "head_dim") and before.get(field) is None:
            continue  # a value derived from the width comes back as a number
        assert after.get(field) == before.get(field), field


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
@torch.no_grad()
def test_a_foreign_reward_model_scores_equally_both_ways(name, transformers, tmp_path):
    theirs = theirs_of(transformers, name, "SequenceClassification")
    theirs.save_pretrained(tmp_path / "x")
    ours, ids = load_scalar(tmp_path / "x"), text(30)
    assert (ours(ids)[:, -1:] - theirs(ids).logits).abs().max() < 1e-4
    write_artifact(tmp_path / "y", card={}, model=ours)
    back = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "y", pad_token_id=0).eval()
    assert (back(ids).logits - theirs(ids).logits).abs().max() < 1e-5
    assert "score.bias" not in load_file(tmp_path / "y/model.safetensors")  # theirs has none; ours is zero


@pytest.mark.parametrize("name", ["llama3 rope", "gpt2"])
@torch.no_grad()
def test_shards_and_old_files_hold_the_same_model(name, transformers, tmp_path):
    theirs = theirs_of(transformers, name)
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    (tmp_path / "old").mkdir()
    (tmp_path / "old/config.json").write_bytes((tmp_path / "whole/config.json").read_bytes())
    torch.save(theirs.state_dict(), tmp_path / "old/pytorch_model.bin")
    whole = load_causal_lm(tmp_path / "whole").state_dict()
    for other in ("shards", "old"):
        found = load_causal_lm(tmp_path / other).state_dict()
        assert all(torch.equal(value, found[key]) for key, value in whole.items())


@torch.no_grad()
def test_gpt2_as_published_on_the_hub_is_read_without_a_prefix_and_with_its_masks(transformers, tmp_path):
    theirs = theirs_of(transformers, "gpt2")
    theirs.config.save_pretrained(tmp_path)
    weights = {key.removeprefix("transformer."): value for key, value in theirs.state_dict().items()}
    weights.pop("lm_head.weight")
    weights |= {f"h.{n}.attn.bias": torch.ones(1, 1, 8, 8).tril() for n in range(2)}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["GPT2LMHeadModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert (load_causal_lm(tmp_path)(text(50)) - theirs(text(50)).logits).abs().max() < 1e-4


def test_the_older_spelling_of_rope_scaling_means_the_same(transformers, tmp_path):
    theirs = theirs_of(transformers, "llama3 rope")
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    new = load_causal_lm(tmp_path).config
    fields = json.loads(file.read_text())
    fields.pop("rope_parameters")
    file.write_text(json.dumps(fields | {"rope_theta": 500_000.0, "rope_scaling": LLAMA3}))
    assert load_causal_lm(tmp_path).config == new
    assert new.rope_scaling == LLAMA3 and new.rope_theta == 500_000.0


def test_llama3_slows_long_waves_by_the_factor_and_short_ones_not_at_all():
    # 32 tokens of context, turns from 1 to 4 of it in between: a wave of 4 tokens turns 8 times, one of 64 half a time,
    # one of 16 twice, a third of the way from 1 to 4
    waves = torch.tensor([4.0, 64.0, 16.0])
    found = slowing(2 * math.pi / waves, LLAMA3)
    assert found.tolist() == pytest.approx([1, 8, 1 / (1 / 3 + 2 / 3 / 8)])


@torch.no_grad()
def test_packed_rows_of_gpt2_compute_what_their_texts_compute_alone(transformers, tmp_path):
    theirs_of(transformers, "gpt2").save_pretrained(tmp_path)
    model = load_causal_lm(tmp_path)
    prompt, first, second, other = (text(n, seed=n)[0].tolist() for n in (8, 5, 7, 11))
    packed = pack([[prompt, first, second], [other]], row_length=40, filler=0)
    logits = model(packed.input_ids, packed.layout).flatten(0, 1)
    texts = [prompt, prompt + first, prompt + second, other]
    for whole, (start, length) in zip(texts, [s for spans in packed.spans for s in spans], strict=True):
        alone = model(torch.tensor([whole]))[0, -length:]
        assert (logits[start : start + length] - alone).abs().max() < 1e-5


@torch.no_grad()
def test_prompts_of_unequal_length_have_their_own_learned_positions(transformers, tmp_path):
    theirs_of(transformers, "gpt2").save_pretrained(tmp_path)
    model, prompts = load_causal_lm(tmp_path), [text(n, seed=n)[0].tolist() for n in (4, 19)]
    settings = dict(stop_ids=[], pad_id=0, generator=seeded("cpu", 0))
    together = generate(model, prompts, Sampling(30, temperature=0.0), **settings).ids
    for prompt, row in zip(prompts, together, strict=True):
        assert generate(model, [prompt], Sampling(30, temperature=0.0), **settings).ids[0].tolist() == row.tolist()


def test_a_window_shorter_than_the_context_is_refused_and_a_context_as_short_is_not(transformers, tmp_path):
    theirs = theirs_of(transformers, "mistral")
    theirs.config.sliding_window = 64
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="sliding_window of 64 tokens is shorter than .* of 256.*context=64"):
        load_causal_lm(tmp_path)
    ours, ids = load_causal_lm(tmp_path, context=64), text(64)
    assert (ours(ids) - theirs(ids).logits).abs().max() < 1e-4
    assert ours.config.longest == 64
    assert (ours(text(120)) - theirs(text(120)).logits).abs().max() > 1e-2  # the control: beyond it they differ
    write_artifact(tmp_path / "y", card={}, model=ours)
    fields = json.loads((tmp_path / "y/config.json").read_text())
    assert (fields["sliding_window"], fields["max_position_embeddings"]) == (64, 256)
    assert "context" not in fields


def test_a_context_beyond_the_models_positions_is_refused(transformers, tmp_path):
    theirs_of(transformers, "gpt2").save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="context=257: the model has 256 positions"):
        store.load_config(tmp_path, context=257)


@torch.no_grad()
def test_frozen_networks_can_be_kept_in_bfloat16(transformers, tmp_path):
    theirs_of(transformers, "llama", "SequenceClassification").save_pretrained(tmp_path)
    coarse, fine = load_scalar(tmp_path, dtype="bfloat16"), load_scalar(tmp_path)
    assert {p.dtype for p in coarse.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in fine.parameters()} == {torch.float32}
    scores = coarse(text(20))
    assert scores.dtype == torch.float32
    assert 0 < (scores - fine(text(20))).abs().max() < 0.1 * fine(text(20)).abs().max()
