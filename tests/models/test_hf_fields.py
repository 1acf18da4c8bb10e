"""Every field of transformers' config classes, one at a time: honored, or refused by name, never ignored."""

import json
import warnings

import pytest
import torch

from components.artifacts.store import ArtifactError, load_causal_lm, load_config

SHAPE = dict(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.3,
)
NARROW = dict(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3)
SHAPES = {
    "Llama": SHAPE,
    "Mistral": SHAPE | {"sliding_window": 64},
    "Qwen2": SHAPE,
    "Qwen3": SHAPE | {"head_dim": 8},
    "GPT2": NARROW,
}
IDS = torch.randint(0, 40, (1, 20), generator=torch.Generator().manual_seed(0))
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
OTHERS = {  # values in addition to those that follow from a field's type
    "hidden_act": ["gelu", "relu"],
    "activation_function": ["gelu", "gelu_pytorch_tanh", "relu"],
    "rope_parameters": [
        ROPE | {"rope_theta": 500.0},
        ROPE | {"rope_type": "linear", "factor": 2.0},
        ROPE | {"rope_type": "dynamic", "factor": 2.0},
        ROPE | {"rope_type": "yarn", "factor": 2.0},
        ROPE | {"partial_rotary_factor": 0.5},
    ],
    "sliding_window": [8, 64, None],
    "layer_types": [["full_attention", "sliding_attention"], ["full_attention", "full_attention"]],
    "num_key_value_heads": [1, 2, 4],
    "head_dim": [4, 6],
    "n_inner": [20],
    "dtype": ["bfloat16"],
    "pad_token_id": [0],
}
TOLD_AS = {
    "rope_parameters": ("rope scaling", "partial_rotary_factor"),
    "max_position_embeddings": ("sliding_window of 64",),
}
NOT_THERE = {  # fields of other families, of older releases and of tomorrow: refused where they are not empty
    "quantization_config": {"quant_method": "gptq"},
    "auto_map": {"AutoModelForCausalLM": "evil.Model"},
    "is_causal": False,
    "use_mrope": True,
    "pruned_heads": {"0": [1]},
    "rope_interleaved": True,
    "attn_logit_softcapping": 30.0,
    "qk_layernorm": True,
    "residual_multiplier": 0.5,
    "num_experts": 8,
    "suppress_tokens": [5],
    "begin_suppress_tokens": [5],
    "forced_bos_token_id": 1,
    "forced_eos_token_id": 2,
    "bad_words_ids": [[5]],
    "a_field_of_tomorrow": False,
}


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its own imports
        return pytest.importorskip("transformers")


def classes(transformers, family):
    model = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    return getattr(transformers, f"{family}Config"), getattr(transformers, model)


def values(name, default):
    """Values other than the default, of its type."""
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, int):
        return [default + 1, 2 * default]
    if isinstance(default, float):
        return [default * 2 + 0.1]
    return [] if isinstance(default, dict | list | str) else [1, "x", True, 0.5]


@pytest.mark.parametrize("family", SHAPES)
def test_a_config_that_transformers_writes_at_its_defaults_is_read(transformers, tmp_path, family):
    config, model = classes(transformers, family)
    written = config(architectures=[model.__name__])
    written.save_pretrained(tmp_path)
    shape, kind = load_config(tmp_path, context=1024)
    assert kind == "CausalLM" and shape.vocab_size == written.vocab_size
    everything = written.to_dict()  # also what is not written since it is at its default
    (tmp_path / "config.json").write_text(json.dumps(everything))
    assert load_config(tmp_path, context=1024)[0] == shape


@pytest.mark.parametrize(
    "family", [pytest.param(one, marks=() if one in ("Llama", "GPT2") else pytest.mark.slow) for one in SHAPES]
)
@torch.no_grad()
def test_every_field_is_honored_or_refused_by_name(transformers, tmp_path, family):
    config, model = classes(transformers, family)
    torch.manual_seed(0)
    base = model(config(**SHAPES[family])).eval()
    for parameter in base.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    base.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text())
    honored, refused, moved = set(), set(), set()
    for name, default in (config(**SHAPES[family]).to_dict() | fields).items():
        if name in ("model_type", "architectures"):
            continue
        for value in [*values(name, default), *OTHERS.get(name, [])]:
            file.write_text(json.dumps(fields | {name: value}))
            theirs = logits_of(transformers, model, tmp_path, base)
            try:
                found = load_causal_lm(tmp_path)(IDS)
            except ArtifactError as error:
                by_weights = "weights do not fit" in str(error) or "has shape" in str(error) or "tie_word" in str(error)
                named = any(told in str(error) for told in (name, *TOLD_AS.get(name, ())))
                assert named or by_weights or theirs is None, (name, value, str(error))
                refused.add(name)
            else:
                if theirs is None:  # transformers cannot build it, and here the field takes no part
                    continue
                assert (found - theirs).abs().max() < 1e-4, (name, value)
                honored.add(name)
                moved |= {name} if (theirs - base(IDS).logits).abs().max() > 1e-3 else set()
    assert len(honored) >= 16 and refused
    read = {"GPT2": {"layer_norm_epsilon"}}.get(family, {"rms_norm_eps", "rope_parameters"})
    assert read <= moved  # the control: these change what is computed, there as here


def logits_of(transformers, model, folder, base):
    """What transformers computes with that config and the weights of `base`; None if it cannot build the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            theirs = model(transformers.AutoConfig.from_pretrained(folder)).eval()
            theirs.load_state_dict(base.state_dict())
            return theirs.float()(IDS).logits
        except Exception:  # it raises anything on what is no config
            return None


@pytest.mark.parametrize("name", NOT_THERE)
def test_a_field_that_no_table_knows_is_refused_unless_it_is_empty(transformers, tmp_path, name):
    config, model = classes(transformers, "Llama")
    config(**SHAPE, architectures=[model.__name__]).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps(fields | {name: NOT_THERE[name]}))
    with pytest.raises(ArtifactError, match=name):
        load_config(tmp_path)
    file.write_text(json.dumps(fields | {name: None}))
    load_config(tmp_path)


def test_the_fields_of_published_folders_are_known(tmp_path):
    """GPT-2, SmolLM2, Llama 2 and Qwen2.5 as on the Hub: older names, and fields of other programs."""
    llama = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SHAPE, "hidden_act": "silu"}
    published = [
        {
            **{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1},
            **{"bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02},
            **{"layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12},
            **{"n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None},
            **{"summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index"},
            **{"summary_use_proj": True, "vocab_size": 50257},
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        },
        llama
        | {"is_llama_config": True, "rope_interleaved": False, "rope_scaling": None, "unk_token_id": 0}
        | {"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "torch_dtype": "bfloat16"},
        llama | {"_name_or_path": "meta-llama/Llama-2-7b-hf", "pretraining_tp": 1, "max_length": 4096},
        {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **SHAPE, "hidden_act": "silu"}
        | {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21, "use_mrope": False}
        | {"attention_dropout": 0.0, "rope_theta": 1000000.0, "torch_dtype": "bfloat16", "use_cache": True},
    ]
    for fields in published:
        (tmp_path / "config.json").write_text(json.dumps(fields))
        load_config(tmp_path)
