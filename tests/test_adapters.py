"""Adapters in PEFT's format, both ways, and in the artifacts of stages."""

import json

import pytest
import torch

from components import artifacts
from components.adapters import CONFIG, AdapterError, base_of, read_adapters
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
)
IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(3))


def how(**changes) -> LoRA:
    return LoRA(**({"rank": 3, "alpha": 12.0, "dropout": 0.0, "targets": TARGETS} | changes))


def stirred(model: torch.nn.Module) -> torch.nn.Module:
    """The same with adapters that do something."""
    for name, parameter in model.named_parameters():
        if name.endswith((".up", "lora_B.default.weight")):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def base(tmp_path):
    """A folder with a language model."""
    torch.manual_seed(0)
    artifacts.write_artifact(tmp_path / "base", card={"stage": "sft"}, model=new_causal_lm(SHAPE))
    return tmp_path / "base"


@pytest.fixture
def export(base, tmp_path):
    """(model with adapters on that base, its artifact)."""
    model = artifacts.load_causal_lm(base)
    model.adapt(how())
    card = {"stage": "dpo", "parents": {"model": {"path": str(base), "content": artifacts.read_card(base)["content"]}}}
    artifacts.write_artifact(tmp_path / "export", card=card, model=stirred(model))
    return model, tmp_path / "export"


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": list(TARGETS)},
        {"target_modules": ["down_proj"], "use_rslora": True},
    ],
)
def test_an_adapter_that_peft_made_is_the_same_model_here(base, tmp_path, settings):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    adapted = stirred(peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=8, **settings))).eval()
    adapted.save_pretrained(tmp_path / "theirs")
    ours = artifacts.load_causal_lm(tmp_path / "theirs")
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), adapted(IDS).logits, atol=1e-5, rtol=1e-5)


def test_an_adapter_made_here_is_the_same_model_in_peft(base, export):
    model, folder = export
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(theirs, folder / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model(IDS), atol=1e-5, rtol=1e-5)


def test_an_export_holds_the_merged_weights_for_whoever_knows_no_adapters(export):
    model, folder = export
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model(IDS), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(artifacts.load_causal_lm(folder)(IDS), model(IDS), atol=1e-5, rtol=1e-5)


def test_a_reward_model_of_adapters_is_read_through_the_trunk_that_it_was_trained_on(base, tmp_path):
    reward = scalar_from_causal(artifacts.load_causal_lm(base))
    reward.adapt(how(targets=("q_proj", "up_proj")))
    content = artifacts.read_card(base)["content"]
    card = {"stage": "rm", "parents": {"model": {"path": str(base), "content": content}}}
    artifacts.write_artifact(tmp_path / "rm", card=card, model=stirred(reward))
    assert artifacts.adapts(tmp_path / "rm", content)
    policy = artifacts.load_causal_lm(base)
    shared = artifacts.load_scalar(tmp_path / "rm", trunk=policy.model)
    assert shared.model is policy.model
    with torch.no_grad():
        assert torch.equal(shared(IDS), reward(IDS))
        torch.testing.assert_close(artifacts.load_scalar(tmp_path / "rm")(IDS), reward(IDS), atol=1e-5, rtol=1e-5)


def test_only_adapters_of_the_very_base_share_its_trunk(base, export):
    _, folder = export
    assert not artifacts.adapts(folder, "another content")
    assert not artifacts.adapts(base, artifacts.read_card(base)["content"])
    (folder / "card.json").write_text(json.dumps({"parents": {"model": {"content": ""}}}))
    assert not artifacts.adapts(folder, "")  # two folders without a card are not therefore the same


def test_the_hash_of_an_artifact_covers_its_adapters(export):
    _, folder = export
    before = artifacts.content_hash(folder)
    assert before == artifacts.read_card(folder)["content"]
    (folder / "adapter" / CONFIG).write_text("{}")
    assert artifacts.content_hash(folder) != before


@pytest.mark.parametrize(
    "change, named",
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": None}, "r,"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
    ],
)
def test_what_is_no_plain_low_rank_adapter_is_an_error_that_names_it(export, change, named):
    folder = export[1] / "adapter"
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(AdapterError, match=named):
        read_adapters(folder)


def test_damage_is_an_error_that_names_the_file(export):
    folder = export[1] / "adapter"
    (folder / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(AdapterError, match="adapter_model.safetensors"):
        read_adapters(folder)
    (folder / CONFIG).write_text("[")
    with pytest.raises(AdapterError, match="adapter_config.json"):
        read_adapters(folder)


def test_an_adapter_whose_base_is_not_here_says_where_to_name_it(export):
    folder = export[1] / "adapter"
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "somebody/model"}))
    with pytest.raises(AdapterError, match="somebody/model.*Set base_model_name_or_path"):
        base_of(folder)
