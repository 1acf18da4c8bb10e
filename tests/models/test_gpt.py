"""The decoder: shapes, sizes, and what must not change what it computes."""

import math

import pytest
import torch

from components.artifacts.weights import to_gpt2
from components.models.attention.layout import pack
from components.models.config import GPTConfig
from components.models.gpt import GPT
from components.models.heads import CausalLM, ScalarModel, new_causal_lm, scalar_from_causal
from components.models.lora import LoRA

SHAPE = dict(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
VARIANTS = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "qwen2": {"attention_bias": True},
    "llama with biases": {"attention_bias": True, "attention_output_bias": True},
    "qwen3": {"qk_norm": True, "head_dim": 16},
    "gpt2": {
        "norm": "layer",
        "positions": "learned",
        "mlp": "gelu",
        "attention_bias": True,
        "attention_output_bias": True,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
}


def model_of(**changes) -> CausalLM:
    torch.manual_seed(0)
    model = new_causal_lm(GPTConfig(**{**SHAPE, **changes})).eval()
    with torch.no_grad():  # away from the initial ones and zeros, so that a norm or bias left out would show
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ids(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, 50, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_counted_by_the_formula(name):
    config = GPTConfig(**{**SHAPE, **VARIANTS[name]})
    assert config.num_parameters() == sum(p.numel() for p in CausalLM(config).parameters())


@pytest.mark.parametrize(
    ("hidden", "layers", "heads", "width", "expected"),
    [
        (4096, 32, 32, 11008, 6_738_415_616),
        (5120, 40, 40, 13824, 13_015_864_320),
        (6656, 60, 52, 17920, 32_528_943_616),
        (8192, 80, 64, 22016, 65_285_660_672),
    ],
)
def test_llama_has_its_published_number_of_parameters(hidden, layers, heads, width, expected):
    config = GPTConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
    )
    with torch.device("meta"):
        built = CausalLM(config)
    assert sum(p.numel() for p in built.parameters()) == config.num_parameters() == expected


def test_the_first_loss_is_ln_of_the_vocabulary():
    torch.manual_seed(0)
    config = GPTConfig(**{**SHAPE, "vocab_size": 5000})
    logits = new_causal_lm(config)(torch.randint(0, 5000, (4, 64)))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(0, 5000, (256,)))
    assert abs(loss.item() / math.log(5000) - 1) < 0.05


def test_a_token_never_sees_what_follows_it():
    model, (text,) = model_of(), ids(20)
    changed = text[:12] + [(t + 1) % 50 for t in text[12:]]
    a, b = model(torch.tensor([text])), model(torch.tensor([changed]))
    assert torch.equal(a[:, :12], b[:, :12])
    assert (a[:, 12:] - b[:, 12:]).abs().max() > 1e-2


def test_right_padding_changes_nothing():
    model, (text,) = model_of(), ids(15)
    padded = torch.tensor([text + [0] * 9])
    assert (model(torch.tensor([text])) - model(padded)[:, :15]).abs().max() < 1e-5


def test_packed_documents_give_the_same_results_as_alone():
    model, documents = model_of(), ids(9, 17, 4, 12)
    packed = pack([[d] for d in documents], row_length=30, filler=0)
    logits = model(packed.input_ids, packed.layout).flatten(0, 1)
    naive = model(packed.input_ids).flatten(0, 1)  # the control: no layout, so texts see one another
    worst_naive = 0.0
    for document, [(start, length)] in zip(documents, packed.spans, strict=True):
        alone = model(torch.tensor([document]))[0]
        assert (logits[start : start + length] - alone).abs().max() < 1e-5
        worst_naive = max(worst_naive, (naive[start : start + length] - alone).abs().max().item())
    assert worst_naive > 1e-2


def test_completions_that_share_a_prompt_give_the_same_results_as_alone():
    model, (prompt, first, second, other) = model_of(), ids(8, 5, 7, 6)
    packed = pack([[prompt, first, second], [other]], row_length=40, filler=0)
    logits = model(packed.input_ids, packed.layout).flatten(0, 1)
    for completion, (start, length) in zip((first, second), packed.spans[0][1:], strict=True):
        alone = model(torch.tensor([prompt + completion]))[0, len(prompt) :]
        assert (logits[start : start + length] - alone).abs().max() < 1e-5


def test_gradients_of_a_packed_row_are_those_of_its_documents():
    model, documents = model_of(), ids(9, 14)

    def gradient(logits_of):
        model.zero_grad()
        sum(logits_of(d).square().sum() for d in range(2)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    packed = pack([[d] for d in documents], row_length=32, filler=0)

    def from_row(d):
        start, length = packed.spans[d][0]
        return model(packed.input_ids, packed.layout).flatten(0, 1)[start : start + length]

    alone = gradient(lambda d: model(torch.tensor([documents[d]])))
    assert (gradient(from_row) - alone).abs().max() < 1e-4 * alone.abs().max()


@pytest.mark.parametrize("name", VARIANTS)
def test_transformers_computes_the_same_logits(name):
    transformers = pytest.importorskip("transformers")
    model = model_of(**VARIANTS[name])
    fields = model.config.to_hf("CausalLM")
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.load_state_dict(to_gpt2(model.state_dict()) if name == "gpt2" else model.state_dict())
    text = torch.tensor(ids(24))
    with torch.no_grad():
        assert (model(text) - theirs(text).logits).abs().max() < 1e-4
    assert GPTConfig.from_hf(theirs.config.to_dict()) == model.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma"}, "model_type 'gemma'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope scaling 'llama3': expected"),
        *[
            ({"rope_scaling": {spelling: kind, "factor": 2.0}}, f"rope scaling '{kind}' is not supported")
            for kind in ("dynamic", "yarn", "longrope")
            for spelling in ("type", "rope_type")
        ],
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}}, "rope scaling 'yarn'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mrope_section": [1, 2]}}, "mrope_section"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "per layer type .full_attention"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "contradict rope_theta"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"auto_map": {"AutoConfig": "their.Config"}}, "auto_map"),
        ({"model_type": "mistral", "sliding_window": 16}, "sliding_window of 16 .* set context=16"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, "window"),
        (
            {
                "model_type": "qwen2",
                "use_sliding_window": True,
                "sliding_window": 64,
                "max_window_layers": 1,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "layer_types",
        ),
    ],
)
def test_a_feature_that_the_decoder_lacks_is_named_not_ignored(change, message):
    fields = GPTConfig(**SHAPE).to_hf("CausalLM") | change
    with pytest.raises(ValueError, match=message):
        GPTConfig.from_hf(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "relu"}, "activation_function='relu'"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
        ({"add_cross_attention": True}, "add_cross_attention"),
    ],
)
def test_a_feature_of_gpt2_that_the_decoder_lacks_is_named(change, message):
    fields = GPTConfig(**{**SHAPE, **VARIANTS["gpt2"]}).to_hf("CausalLM")
    GPTConfig.from_hf(fields)
    with pytest.raises(ValueError, match=message):
        GPTConfig.from_hf(fields | change)


def test_a_shape_that_no_family_has_is_not_written():
    with pytest.raises(ValueError, match="no Hugging Face architecture .* norm=layer"):
        GPTConfig(**{**SHAPE, "norm": "layer"}).to_hf("CausalLM")


def test_a_runs_context_is_its_longest_sequence_and_no_longer_than_the_model():
    assert GPTConfig(**SHAPE).longest == 64
    assert GPTConfig(**SHAPE, context=20).longest == 20
    with pytest.raises(ValueError, match="context=65: the model has 64 positions"):
        GPTConfig(**SHAPE, context=65)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 30}, "set head_dim"),
        ({"num_key_value_heads": 3}, "multiple of"),
        ({"head_dim": 7}, "even"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_an_impossible_shape_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{**SHAPE, **change})


def test_a_model_takes_its_vocabulary_from_the_tokenizer_but_not_one_too_small():
    assert GPTConfig(**{**SHAPE, "vocab_size": 0}).with_vocab(300).vocab_size == 300
    assert GPTConfig(**{**SHAPE, "vocab_size": 512}).with_vocab(300).vocab_size == 512
    with pytest.raises(ValueError, match="smaller than the tokenizer's 300"):
        GPTConfig(**SHAPE).with_vocab(300)


def test_a_scalar_model_starts_on_the_trunk_with_a_small_head():
    causal = model_of(hidden_size=256, num_hidden_layers=1)
    scalar = scalar_from_causal(causal)
    text = torch.tensor(ids(10))
    assert torch.equal(scalar.model(text), causal.model(text))
    assert scalar.score.weight.std().item() == pytest.approx(257**-0.5, rel=0.2)
    assert scalar.score.bias.item() == 0


@pytest.mark.parametrize("adapted", [False, True])
def test_scores_are_not_rounded_under_autocast(adapted):
    """Near 8, bf16 has a number every 1/32. The hidden states are the same in both, so scores differ by their head."""
    scalar = scalar_from_causal(model_of())
    if adapted:
        scalar.adapt(LoRA(rank=2))
    scalar.rescale_(scale=1.0, shift=8.0)
    text = torch.tensor(ids(40))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        hidden, scores = scalar.model(text, adapters=scalar.adapters), scalar(text)
    expected = hidden.double() @ scalar.score.weight.double()[0] + scalar.score.bias.double()
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected.float(), rtol=1e-6, atol=1e-6)


def test_scores_of_a_model_in_bf16_are_fp32_too():
    scalar = scalar_from_causal(model_of()).bfloat16()
    text = torch.tensor(ids(40))
    expected = scalar.model(text).double() @ scalar.score.weight.double()[0]
    torch.testing.assert_close(scalar(text), expected.float(), rtol=1e-6, atol=1e-6)


def test_rescaling_a_scalar_model_scales_and_shifts_every_score():
    scalar = scalar_from_causal(model_of())
    text = torch.tensor(ids(10))
    before = scalar(text)
    scalar.rescale_(scale=2.0, shift=-3.0)
    assert torch.allclose(scalar(text), 2 * before - 3, atol=1e-5)


def test_dropout_acts_in_training_only():
    model = model_of(dropout=0.5)
    text = torch.tensor(ids(10))
    assert torch.equal(model(text), model(text))
    model.train()
    assert not torch.equal(model(text), model(text))


def test_hidden_states_and_head_are_the_two_halves_of_forward():
    model, text = model_of(), torch.tensor(ids(10))
    assert torch.equal(model.head(model.hidden(text)), model(text))
    assert isinstance(model.model, GPT) and isinstance(scalar_from_causal(model), ScalarModel)
