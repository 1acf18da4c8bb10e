"""AdamW with its moments in 8 bits: what is stored how, and that it trains and resumes like any optimizer."""

import copy
import sys

import pytest
import torch
from torch import nn

from components.training.optimizers import Joint, adamw, adamw8bit
from tests.kit.tiny_stages import causal

pytest.importorskip("bitsandbytes")
ADAM = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}
WIDE = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 80}  # 4,096 weights and more in every matrix


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        ids = torch.randint(0, 80, (4, 12), generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        logits = model(ids[:, :-1])
        nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()


def test_moments_of_matrices_are_bytes_and_those_of_embeddings_and_norms_are_not():
    model = causal(**WIDE)
    optimizer = adamw8bit(model.named_parameters(), **ADAM)
    steps(model, optimizer, range(1))
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert list(groups) == ["model", "model_no_decay", "embeddings"]
    for name, parameter in model.named_parameters():
        moments = [
            optimizer.state[parameter][key] for key in ("exp_avg", "state1") if key in optimizer.state[parameter]
        ]
        in_bytes = parameter.dim() == 2 and "embed_tokens" not in name
        assert [m.dtype for m in moments] == [torch.uint8 if in_bytes else torch.float32], name


def test_a_tied_matrix_is_an_embedding():
    optimizer = adamw8bit(causal(**WIDE, tie_word_embeddings=True).named_parameters(), **ADAM)
    assert [len(group["params"]) for group in optimizer.param_groups] == [14, 5, 1]


def test_only_what_is_there_gets_a_group():
    model = causal(**WIDE)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="at least one parameter that requires a gradient"):
        adamw8bit(model.named_parameters(), **ADAM)
    model.model.embed_tokens.requires_grad_(True)
    optimizer = adamw8bit(model.named_parameters(), **ADAM)
    assert [group["name"] for group in optimizer.param_groups] == ["embeddings"]


def test_its_first_steps_are_close_to_those_of_adamw():
    one, other = causal(**WIDE), causal(**WIDE)
    start = copy.deepcopy(one)
    for model, build in ((one, adamw), (other, adamw8bit)):
        steps(model, build(model.named_parameters(), **ADAM), range(5))
    for a, b, before in zip(one.parameters(), other.parameters(), start.parameters(), strict=True):
        moved, apart = (a - before).detach(), (a - b).detach()
        assert apart.norm() < 0.1 * moved.norm() and moved.abs().max() > 1e-3


def test_a_resumed_run_ends_like_an_uninterrupted_one_to_the_bit(tmp_path):
    whole, resumed = causal(**WIDE), causal(**WIDE)
    steps(whole, adamw8bit(whole.named_parameters(), **ADAM), range(6))
    optimizer = adamw8bit(resumed.named_parameters(), **ADAM)
    steps(resumed, optimizer, range(3))
    torch.save([resumed.state_dict(), optimizer.state_dict()], tmp_path / "a.pt")
    again = causal(1, **WIDE)
    optimizer = adamw8bit(again.named_parameters(), **ADAM)
    for target, state in zip((again, optimizer), torch.load(tmp_path / "a.pt", weights_only=True), strict=True):
        target.load_state_dict(state)
    steps(again, optimizer, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    state = optimizer.state[again.lm_head.weight]
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8


def test_two_networks_with_a_rate_each_join_as_with_any_optimizer():
    """As PPO joins those of its policy and its value model."""
    one, other = causal(**WIDE), causal(1, **WIDE)
    joint = Joint(*(adamw8bit(model.named_parameters(), **ADAM) for model in (one, other)))
    for group in joint.param_groups[3:]:
        group["lr"] = 0.0
    before = [p.detach().clone() for model in (one, other) for p in model.parameters()]
    ids = torch.arange(12)[None]
    (one(ids).square().mean() + other(ids).square().mean()).backward()
    joint.step()
    moved = [not torch.equal(p, b) for p, b in zip([*one.parameters(), *other.parameters()], before, strict=True)]
    assert moved == [True] * 21 + [False] * 21


def test_without_bitsandbytes_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ValueError, match=r"adamw8bit needs the package bitsandbytes, .*\[quant\]"):
        adamw8bit(causal().named_parameters(), **ADAM)
