"""Adapters in PEFT's format, both ways, and in the artifacts of stages."""

import dataclasses
import json
import warnings
from dataclasses import replace

import pytest
import torch

from components.artifacts import store
from components.artifacts.peft import CONFIG, AdapterError, base_of, read_adapters
from components.models.config import GPTConfig
from components.models.heads import new_causal_lm, scalar_from_causal
from components.models.lora import TARGETS, LoRA

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing.*:FutureWarning"
)  # peft's use of transformers

SHAPE = GPTConfig(
    vocab_size=60,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
    attention_bias=True,
    initializer_range=0.2,
)
IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(3))


def how(**changes) -> LoRA:
    return LoRA(**({"rank": 3, "alpha": 12.0, "dropout": 0.0, "targets": TARGETS} | changes))


def stirred(model: torch.nn.Module) -> torch.nn.Module:
    """The same with nonzero adapters."""
    for name, parameter in model.named_parameters():
        if name.endswith((".up", "lora_B.default.weight")):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def base(tmp_path):
    """A folder with a language model."""
    torch.manual_seed(0)
    store.write_artifact(tmp_path / "base", card={"stage": "sft"}, model=new_causal_lm(SHAPE))
    return tmp_path / "base"


@pytest.fixture
def export(base, tmp_path):
    """(model with adapters on that base, its artifact)."""
    model = store.load_causal_lm(base)
    model.adapt(how())
    card = {"stage": "dpo", "parents": {"model": {"path": str(base), "content": store.read_card(base)["content"]}}}
    store.write_artifact(tmp_path / "export", card=card, model=stirred(model))
    return model, tmp_path / "export"


PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
SUPPORTED = {  # fields of LoraConfig that are read: values that change what is computed, or where
    "task_type": ["CAUSAL_LM"],
    "r": [2],
    "target_modules": [list(TARGETS), "all-linear", r".*\.q_proj"],
    "exclude_modules": [["model.layers.0.self_attn.q_proj"]],
    "lora_alpha": [3],
    "bias": ["all", "lora_only"],
    "use_rslora": [True],
    "modules_to_save": [["lm_head"], ["embed_tokens", "norm"], ["gate_proj"], ["layers.1.input_layernorm"]],
    "init_lora_weights": [False, "gaussian", "eva"],
    "layers_to_transform": [[1]],
    "layers_pattern": ["layers"],
    "rank_pattern": [{"q_proj": 2, "^model.layers.0.self_attn.v_proj": 7}],
    "alpha_pattern": [
        {"layers.0.self_attn.v_proj": 3, "v_proj": 1, "^model.layers.1.mlp.down_proj": 2},
        {r".*layers\.0.*": 3, "down.proj$": 1},  # regular expressions, as PEFT reads them
    ],
}
REFUSED = {  # values that make another kind of adapter, refused by field name
    "peft_type": ["IA3"],
    "task_type": ["TOKEN_CLS", "SEQ_2_SEQ_LM"],
    "fan_in_fan_out": [True],
    "init_lora_weights": ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "orthogonal", "mica"],
    "alpha_pattern": [{"v_proj(": 3}],
    "megatron_config": [{"tensor_model_parallel_size": 2}],
    "trainable_token_indices": [[1, 2], {"embed_tokens": [1]}],
    "use_dora": [True],
    "velora_config": [{"rank": 1}],
    "alora_invocation_tokens": [[5, 6]],
    "use_qalora": [True],
    "monteclora_config": [{"samples": 2}],
    "layer_replication": [[[0, 2], [1, 2]]],
    "lora_bias": [True],
    "target_parameters": [["self_attn.o_proj.weight"]],
    "use_bdlora": [{"nblocks": 2}],
    "arrow_config": [{"top_k": 2}],
    "kasa_config": [{"beta": 1e-4}],
    "ensure_weight_tying": [True],
    "a_field_of_tomorrow": [1, True, False, "x"],
}
NO_PART = {  # in the computation, once the adapters exist
    "auto_mapping": {"base_model_class": "LlamaForCausalLM"},
    "peft_version": "9.9",
    "base_model_name_or_path": None,  # the base's path
    "revision": "main",
    "inference_mode": False,
    "lora_dropout": 0.5,
    "megatron_core": "megatron.other",
    "loftq_config": {"loftq_bits": 4},
    "eva_config": {"rho": 2.0},
    "corda_config": {"corda_method": "kpm"},
    "lora_ga_config": {"direction": "ArB2r"},
    "qalora_group_size": 8,
    "runtime_config": {"ephemeral_gpu_offload": True},
    "a_field_of_tomorrow": None,
}


def test_every_field_of_pefts_config_is_used_or_refused_or_irrelevant():
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields <= SUPPORTED.keys() | REFUSED.keys() | NO_PART.keys()


@pytest.mark.parametrize(("field", "value"), [(name, value) for name, values in SUPPORTED.items() for value in values])
@pytest.mark.filterwarnings(
    "ignore:Bias term:UserWarning", "ignore:.*lora with `bias`.*", "ignore:Careful.*bias", "ignore:.*eva.*:UserWarning"
)
def test_an_adapter_that_peft_made_is_the_same_model_here(base, tmp_path, field, value):
    check_same(
        tmp_path, **(PLAIN | {field: value} | ({"layers_to_transform": [0]} if field == "layers_pattern" else {}))
    )


GPT2S = {  # fields of LoraConfig that differ from Llama's because they use GPT-2's module names
    "alpha_pattern": {"^transformer.h.0.attn.c_attn": 3, "attn.c_proj": 5, "c_proj": 2},
    "rank_pattern": {"c_attn": 7},
    "use_rslora": True,
    "bias": "all",
    "modules_to_save": ["wpe", "ln_1", "ln_f", "c_fc", "lm_head"],
}


@pytest.mark.parametrize("field", GPT2S)
@pytest.mark.filterwarnings("ignore:Bias term:UserWarning", "ignore:.*lora with `bias`.*", "ignore:Careful.*bias")
def test_an_adapter_that_peft_made_of_a_gpt2_is_the_same_model_here(tmp_path, field):
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "initializer_range": 0.2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ids)).save_pretrained(tmp_path / "base")
    check_same(tmp_path, target_modules=["c_attn", "c_proj"], **{field: GPT2S[field]})


def test_a_whole_block_that_peft_trained_is_read(base, tmp_path):
    check_same(tmp_path, target_modules=["q_proj"], modules_to_save=["mlp"])


def check_same(folder, **settings):
    """The model that PEFT makes from folder/base and these settings, and the one read from what it saves."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of fan_in_fan_out, which it then sets
        adapted = peft.get_peft_model(theirs, config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(parameter.requires_grad * 0.3 * torch.randn_like(parameter))
        adapted.save_pretrained(folder / "theirs")
        expected = adapted(IDS).logits
        torch.testing.assert_close(store.load_causal_lm(folder / "theirs")(IDS), expected, atol=2e-5, rtol=1e-4)
        with adapted.disable_adapter():
            assert (expected - adapted(IDS).logits).abs().max() > 1e-2  # the adapters have an effect


@pytest.mark.parametrize(("field", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_another_kind_of_adapter_is_refused_by_the_name_of_its_field(export, field, value):
    folder = export[1] / "adapter"
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {field: value}))
    with pytest.raises(AdapterError, match=field):
        read_adapters(folder)


def test_irrelevant_fields_change_nothing(export):
    folder = export[1] / "adapter"
    before = read_adapters(folder)[1]
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | NO_PART))
    after = read_adapters(folder)[1]
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_a_tied_matrix_that_adapters_would_untie_is_refused(tmp_path):
    torch.manual_seed(0)
    tied = new_causal_lm(replace(SHAPE, tie_word_embeddings=True))
    store.write_artifact(tmp_path / "base", card={}, model=tied)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own warning about it
        adapted = peft.get_peft_model(theirs, peft.LoraConfig(**PLAIN, modules_to_save=["embed_tokens"]))
        with torch.no_grad():
            adapted.get_input_embeddings().weight.add_(1.0)
        adapted.save_pretrained(tmp_path / "theirs")
    with pytest.raises(store.ArtifactError, match="tie_word_embeddings, but lm_head.weight differs"):
        store.load_causal_lm(tmp_path / "theirs")


def test_an_adapter_made_here_is_the_same_model_in_peft(base, export):
    model, folder = export
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(theirs, folder / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model(IDS), atol=1e-5, rtol=1e-5)


def test_an_export_contains_the_merged_weights_for_programs_without_adapters(export):
    model, folder = export
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model(IDS), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(store.load_causal_lm(folder)(IDS), model(IDS), atol=1e-5, rtol=1e-5)


def test_a_reward_model_of_adapters_is_read_through_the_trunk_that_it_was_trained_on(base, tmp_path):
    reward = scalar_from_causal(store.load_causal_lm(base))
    reward.adapt(how(targets=("q_proj", "up_proj")))
    content = store.read_card(base)["content"]
    card = {"stage": "rm", "parents": {"model": {"path": str(base), "content": content}}}
    store.write_artifact(tmp_path / "rm", card=card, model=stirred(reward))
    assert store.adapts(tmp_path / "rm", content)
    policy = store.load_causal_lm(base)
    shared = store.load_scalar(tmp_path / "rm", trunk=policy.model)
    assert shared.model is policy.model
    with torch.no_grad():
        assert torch.equal(shared(IDS), reward(IDS))
        torch.testing.assert_close(store.load_scalar(tmp_path / "rm")(IDS), reward(IDS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("k_proj", "o_proj", "down_proj"), ("up_proj",)])
def test_adapters_of_a_gpt2_are_the_same_model_in_peft_and_read_again(tmp_path, targets):
    """Its q, k and v are one module, c_attn."""
    torch.manual_seed(0)
    gpt2 = {"norm": "layer", "positions": "learned", "mlp": "gelu", "attention_output_bias": True}
    shape = replace(SHAPE, num_key_value_heads=4, **gpt2)
    store.write_artifact(tmp_path / "base", card={"stage": "sft"}, model=new_causal_lm(shape))
    model = store.load_causal_lm(tmp_path / "base")
    bare = model(IDS).detach()
    model.adapt(how(targets=targets))
    card = {"stage": "dpo", "parents": {"model": {"path": str(tmp_path / "base")}}}
    store.write_artifact(tmp_path / "export", card=card, model=stirred(model))
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "export/adapter").eval()
    with torch.no_grad():
        assert (model(IDS) - bare).abs().max() > 1e-2  # the adapters have an effect
        torch.testing.assert_close(theirs(IDS).logits, model(IDS), atol=1e-5, rtol=1e-5)
        again = store.load_causal_lm(tmp_path / "export/adapter")
        torch.testing.assert_close(again(IDS), model(IDS), atol=1e-5, rtol=1e-5)


def test_a_gpt2_reward_model_of_adapters_is_read_through_its_trunk(tmp_path):
    torch.manual_seed(0)
    gpt2 = {"norm": "layer", "positions": "learned", "mlp": "gelu", "attention_output_bias": True}
    base = new_causal_lm(replace(SHAPE, num_key_value_heads=4, **gpt2)).eval()
    reward = scalar_from_causal(base).eval()
    reward.adapt(how(targets=("q_proj", "up_proj")))
    store.write_artifact(tmp_path / "rm", card={"stage": "rm"}, model=stirred(reward))
    with torch.no_grad():
        shared = store.load_scalar(tmp_path / "rm", trunk=base.model)
        torch.testing.assert_close(shared(IDS), reward(IDS), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_adapters_of_a_reward_model_score_alike_in_peft_but_for_the_shift(base, tmp_path):
    """transformers assumes two labels for a base without a score head, so the reader has to set one."""
    reward = scalar_from_causal(store.load_causal_lm(base))
    reward.adapt(how(targets=("q_proj", "up_proj")))
    reward.score.bias.fill_(0.5)
    card = {"stage": "rm", "parents": {"model": {"path": str(base)}}}
    store.write_artifact(tmp_path / "rm", card=card, model=stirred(reward))
    files = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the shift, which transformers' classifiers lack
        auto = peft.AutoPeftModelForSequenceClassification
        theirs = auto.from_pretrained(tmp_path / "rm/adapter", num_labels=1).eval()
    theirs.config.pad_token_id = 0
    torch.testing.assert_close(theirs(IDS).logits[:, 0] + 0.5, reward(IDS)[:, -1], atol=1e-5, rtol=1e-5)
    store.load_scalar(tmp_path / "rm"), store.load_scalar(tmp_path / "rm/adapter")
    assert files == {
        file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()
    }  # reading writes nothing


def test_only_adapters_of_the_same_base_share_its_trunk(base, export):
    _, folder = export
    assert not store.adapts(folder, "another content")
    assert not store.adapts(base, store.read_card(base)["content"])
    (folder / "card.json").write_text(json.dumps({"parents": {"model": {"content": ""}}}))
    assert not store.adapts(folder, "")  # two folders without a card are not the same for that reason


def test_the_hash_of_an_artifact_covers_its_adapters(export):
    _, folder = export
    before = store.content_hash(folder)
    assert before == store.read_card(folder)["content"]
    (folder / "adapter" / CONFIG).write_text("{}")
    assert store.content_hash(folder) != before


def test_a_rank_that_is_not_a_number_is_an_error_that_names_it(export):
    folder = export[1] / "adapter"
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"r": None}))
    with pytest.raises(AdapterError, match="r, lora_alpha"):
        read_adapters(folder)


def test_damage_is_an_error_that_names_the_file(export):
    folder = export[1] / "adapter"
    (folder / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(AdapterError, match="adapter_model.safetensors"):
        read_adapters(folder)
    for content in ("[", "[" * 100_000, "[]"):
        (folder / CONFIG).write_text(content)
        with pytest.raises(AdapterError, match="adapter_config.json"):
            read_adapters(folder)


def test_an_adapter_whose_base_is_not_here_says_where_to_name_it(export):
    folder = export[1] / "adapter"
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "somebody/model"}))
    with pytest.raises(AdapterError, match="somebody/model.*Set base_model_name_or_path"):
        base_of(folder)
