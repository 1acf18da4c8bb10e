"""Low-rank adapters: what they add, what they leave alone, and one trunk for several models."""

import pytest
import torch

from components.models.config import GPTConfig
from components.models.heads import CausalLM, ScalarModel, new_causal_lm
from components.models.lora import TARGETS, LoRA, merged

CONFIG = GPTConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
)
IDS = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(3))


def how(**changes) -> LoRA:
    return LoRA(**({"rank": 2, "alpha": 6.0, "dropout": 0.0, "targets": TARGETS} | changes))


def adapted(**changes) -> CausalLM:
    """A model whose adapters have an effect."""
    torch.manual_seed(0)
    model = new_causal_lm(CONFIG)
    model.adapt(how(**changes))
    for name, parameter in model.adapters.named_parameters():
        if name.endswith("up"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_fresh_adapters_change_nothing():
    torch.manual_seed(0)
    model = new_causal_lm(CONFIG)
    before = model(IDS)
    model.adapt(how())
    assert torch.equal(model(IDS), before)


@pytest.mark.parametrize("targets", [TARGETS, ("q_proj", "v_proj"), ("o_proj",), ("up_proj", "down_proj")])
def test_adapters_add_alpha_over_rank_times_b_a_to_the_projection(targets):
    model = adapted(targets=targets)
    got = model(IDS)
    for number, layer in enumerate(model.model.layers):
        for name in targets:
            pair = getattr(model.adapters.layers[number], name)
            part = layer.self_attn if name in ("q_proj", "k_proj", "v_proj", "o_proj") else layer.mlp
            getattr(part, name).weight.data += 6.0 / 2 * pair.up.data @ pair.down.data
    model.adapters = None
    torch.testing.assert_close(model(IDS), got, atol=1e-5, rtol=1e-5)


def test_merged_weights_are_those_of_a_model_without_adapters():
    model = adapted()
    plain = CausalLM(CONFIG)
    plain.load_state_dict(merged(model.state_dict(), how()))
    torch.testing.assert_close(plain(IDS), model(IDS), atol=1e-5, rtol=1e-5)


def test_generation_reads_the_adapters():
    model = adapted()
    with torch.no_grad():
        cache = model.new_cache(torch.zeros(2, dtype=torch.long), 12, dtype=torch.float32)
        torch.testing.assert_close(model.next_logits(IDS, cache), model(IDS)[:, -1], atol=1e-5, rtol=1e-5)


def test_only_adapters_take_a_gradient():
    model = adapted()
    model(IDS).square().mean().backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved == {name for name, _ in model.named_parameters() if name.startswith("adapters.")}
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.adapters.parameters())


def test_a_scalar_model_trains_its_head_too():
    torch.manual_seed(0)
    model = ScalarModel(CONFIG)
    model.adapt(how())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"score.weight", "score.bias"} < trained
    assert not any(name.startswith("model.") for name in trained)


def test_without_adapters_the_same_trunk_is_the_model_before_training():
    torch.manual_seed(0)
    model = new_causal_lm(CONFIG)
    before = model(IDS)
    model = adapted()
    bare = model.bare()
    assert torch.equal(bare(IDS), before)
    assert not torch.allclose(model(IDS), before)
    assert {p.data_ptr() for p in bare.parameters()} < {p.data_ptr() for p in model.parameters()}


def test_a_fork_starts_equal_shares_the_trunk_and_then_trains_independently():
    torch.manual_seed(0)
    reward = ScalarModel(CONFIG)
    value = reward.fork()
    value.adapt(how())
    assert torch.equal(value(IDS), reward(IDS))
    value(IDS).sum().backward()
    with torch.no_grad():
        for parameter in value.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
    before = reward(IDS)
    assert not torch.equal(value(IDS), before)
    assert reward.model is value.model and reward.score is not value.score
    fork = value.fork()
    assert torch.equal(fork(IDS), value(IDS)) and fork.adapters is not value.adapters


def test_dropout_acts_on_the_adapters_input_and_only_in_training():
    model = adapted(dropout=0.5)
    bare = model.bare()(IDS)
    model.train()
    assert not torch.equal(model(IDS), model(IDS))
    assert torch.equal(model.bare()(IDS), bare)
    model.eval()
    assert torch.equal(model(IDS), model(IDS))


def test_joined_frozen_projections_are_stored_once():
    model = adapted()
    got = model(IDS)
    model.model.freeze_()
    torch.testing.assert_close(model(IDS), got)
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.weight.untyped_storage().data_ptr() == attention.v_proj.weight.untyped_storage().data_ptr()
    place = attention.q_proj.weight.data_ptr()
    model(IDS)
    assert attention.q_proj.weight.data_ptr() == place
    assert model.model.layers[0].weights().qkv.weight.data_ptr() == place
    model.load_state_dict(adapted().state_dict())  # views or not, weights load in place
    torch.testing.assert_close(model(IDS), got)
    model.double().float()  # no longer side by side: joined again
    torch.testing.assert_close(model(IDS), got)


def test_frozen_projections_that_are_adjacent_in_memory_by_chance_are_still_joined():
    """As an allocator that cuts blocks from one (CUDA's) may lay them: side by side, each with a storage of its own."""
    model = adapted()
    expected = model(IDS)
    attention = model.model.layers[0].self_attn
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    room = bytearray(4 * sum(one.weight.numel() for one in projections))
    start = 0
    for one in projections:
        moved = torch.frombuffer(room, dtype=torch.float32, count=one.weight.numel(), offset=4 * start)
        one.weight.data = moved.view_as(one.weight).copy_(one.weight.data)
        start += moved.numel()
    model.model.freeze_()
    torch.testing.assert_close(model(IDS), expected)


def test_recomputed_layers_give_the_same_gradients():
    grads = []
    for recompute in (False, True):
        model = adapted(dropout=0.3)
        model.model.recompute = recompute
        model.train()
        torch.manual_seed(1)
        model(IDS).square().mean().backward()
        grads.append([parameter.grad for parameter in model.adapters.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("kind, close", [("int8", 0.01), ("nf4", 0.12)])
def test_a_quantized_base_is_nearly_equal_and_takes_at_most_a_quarter_of_the_memory(kind, close):
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = new_causal_lm(CONFIG)
    before = model.hidden(IDS)
    dense = sum(p.numel() * 4 for n, p in model.named_parameters() if "_proj" in n)
    model.adapt(how(base=kind))
    error = (model.hidden(IDS) - before).norm() / before.norm()
    assert 0 < error < close
    packed = [buffer for name, buffer in model.named_buffers() if name.endswith("packed")]
    assert sum(buffer.numel() for buffer in packed) <= dense / 4
    assert not any("packed" in name for name in model.state_dict())
    model(IDS).sum().backward()
    assert all(p.grad is not None for p in model.adapters.parameters())


def test_values_that_no_adapter_can_have_are_errors():
    for bad, named in (
        ({"targets": ("wq",)}, "wq"),
        ({"targets": ()}, "targets"),
        ({"rank": 0}, "rank"),
        ({"alpha": 0.0}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
    ):
        with pytest.raises(ValueError, match=named):
            how(**bad)
