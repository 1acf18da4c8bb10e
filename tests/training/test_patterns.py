"""Which weights a pattern means, by hand: names, modules, layers, adapters, tied matrices, one network of several."""

import pytest
import torch
from torch import nn

from components.models.heads import CausalLM
from components.models.lora import LoRA
from components.training.optimizers import Joint, adamw, muon, scaled
from components.training.patterns import check_used, freeze_, rates_of
from tests.kit.tiny_stages import causal, config, scalar

ADAM = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
LORA = LoRA(rank=2, alpha=4.0, dropout=0.0, targets=("q_proj", "v_proj"))


def frozen_by(*patterns: str, model: nn.Module | None = None, network: str = "model") -> set[str]:
    """The names of the weights that the patterns freeze, which are those without a gradient."""
    if model is None:
        with torch.device("meta"):
            model = CausalLM(config(num_hidden_layers=11))
    trained = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    frozen = freeze_(network, model, patterns)
    assert frozen.patterns <= set(patterns)
    assert frozen.names == {n for n in trained if not model.get_parameter(n).requires_grad}
    return frozen.names


def layers(names: set[str]) -> set[int]:
    return {int(name.split(".")[2]) for name in names}


def test_a_name_and_a_module_are_patterns_for_themselves():
    assert frozen_by("model.embed_tokens.weight") == frozen_by("model.embed_tokens") == {"model.embed_tokens.weight"}
    assert frozen_by("model.layers.1.self_attn") == {
        f"model.layers.1.self_attn.{part}_proj.weight" for part in ("q", "k", "v", "o")
    }


@pytest.mark.parametrize("pattern", ["model.layers.[0-9].*", "model.layers.[0-9]", "model.layers.?"])
def test_a_range_is_one_digit_so_the_eleventh_layer_is_not_in_it(pattern):
    """As a regular expression, [0-9].* would also match layer 10."""
    frozen = frozen_by(pattern)
    assert layers(frozen) == set(range(10)) and len(frozen) == 10 * 9  # seven matrices and two norms in each


def test_a_dot_is_only_a_dot_and_a_name_is_not_cut_inside_a_part():
    assert frozen_by("model.layers.1") == {name for name in frozen_by("model.layers.*") if ".1." in name}
    assert frozen_by("model.embed") == frozen_by("model.embed.tokens") == set()


def test_a_star_passes_over_dots_and_several_patterns_add_up():
    assert frozen_by("*norm.weight", "model.norm") == frozen_by("*norm*")
    assert len(frozen_by("*norm*")) == 11 * 2 + 1


def test_a_tied_matrix_is_frozen_by_either_of_its_names():
    both = {"model.embed_tokens.weight", "lm_head.weight"}
    for name in ("model.embed_tokens", "lm_head"):
        assert frozen_by(name, model=causal(tie_word_embeddings=True)) == both
    assert frozen_by("lm_head") == {"lm_head.weight"}


def test_an_adapter_has_the_name_of_the_projection_that_it_adapts():
    def adapted():
        model = causal()
        model.adapt(LORA)
        return model

    assert frozen_by("model.layers.0", model=adapted()) == {
        f"adapters.layers.0.{target}.{part}" for target in ("q_proj", "v_proj") for part in ("down", "up")
    }
    assert frozen_by("*.q_proj.lora_A", model=adapted()) == {f"adapters.layers.{n}.q_proj.down" for n in (0, 1)}
    assert frozen_by("model.embed_tokens", model=adapted()) == set()  # which is not trained anyway


def test_a_pattern_can_name_one_network_of_several():
    for pattern, matched in (("value.model.layers.0", True), ("policy.model.layers.0", False)):
        assert bool(frozen_by(pattern, model=scalar(), network="value")) == matched
    assert frozen_by("model.model.layers.0") == set()  # of a stage's only network it is no part of a name


@pytest.mark.parametrize("pattern", ["*", "policy"])
def test_freezing_all_that_is_trained_is_refused(pattern):
    with pytest.raises(ValueError, match=r"'.*' would freeze all 21 trained weights of the policy"):
        freeze_("policy", causal(), [pattern])


@pytest.mark.parametrize("pattern", ["score", "score.bias", "value.score.weight"])
def test_a_head_of_scores_which_stages_rescale_is_not_frozen(pattern):
    with pytest.raises(ValueError, match=r"value\.score\.(weight|bias), which this stage\s+rescales"):
        freeze_("value", scalar(), [pattern])
    assert len(frozen_by("model", model=scalar())) == 20  # all but the head: a probe


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("model.embd_tokens", r"'model.embd_tokens' matches no weight. Near it: model.embed_tokens"),
        ("model.layers.7.mlp", r"matches no weight. Near it: model.layers.\d.mlp"),
        (r"model\.layers\.(0|1)\..*", r"matches no weight. .*only \* \? and \[0-9\] have a meaning, as in a shell"),
        ("xyzzy", "Near it: lm_head.weight, model.embed_tokens.weight"),
    ],
)
def test_a_pattern_that_matches_nothing_names_what_is_near(pattern, message):
    model = causal()
    with pytest.raises(ValueError, match=f"stage.freeze: .*{message}"):
        check_used("stage.freeze", [pattern], freeze_("model", model, [pattern]).patterns, {"model": model})


def test_a_pattern_for_weights_that_adapters_leave_frozen_says_so():
    model = causal()
    model.adapt(LORA)
    with pytest.raises(ValueError, match="only weights that are not trained, such as model.embed_tokens.weight"):
        check_used("stage.freeze", ["model.embed_tokens"], set(), {"model": model})


# learning rates


def rates(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("build", [adamw, muon])
def test_the_first_pattern_that_matches_gives_the_factor_and_others_keep_their_rate(build):
    model = causal()
    factors = {"model.layers.0.mlp": 0.5, "model.layers.*": 0.1, "lm_head": 3.0}
    optimizer = scaled(build(model.named_parameters(), **ADAM), rates_of({"model": model}, factors))
    for name, rate in rates(optimizer, model).items():
        first = 0.5 if ".0.mlp." in name else 0.1 if ".layers." in name else 3.0 if name == "lm_head.weight" else 1.0
        assert rate == pytest.approx(1e-3 * first), name
    assert len({group["name"] for group in optimizer.param_groups}) == len(optimizer.param_groups)
    decays = {name: group["weight_decay"] for group in optimizer.param_groups for name in [group["name"]]}
    assert all((decay == 0) == ("no_decay" in name) for name, decay in decays.items())


def test_a_joint_optimizer_steps_the_groups_that_were_split():
    model = causal()
    optimizer = scaled(muon(model.named_parameters(), **ADAM), rates_of({"model": model}, {"model.layers.0": 1e-30}))
    assert isinstance(optimizer, Joint)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.tensor([[3, 4, 5]])).logsumexp(-1).sum().backward()
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (".layers.0." in name), name


def test_without_factors_the_optimizer_is_as_it_was():
    optimizer = adamw(causal().named_parameters(), **ADAM)
    groups = list(optimizer.param_groups)
    assert scaled(optimizer, {}) is optimizer and all(a is b for a, b in zip(optimizer.param_groups, groups))


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"lm_heads": 0.1}, "'lm_heads' matches no weight. Near it: lm_head"),
        ({"model": 0.1, "model.norm": 0.5}, "'model.norm' matches only weights that an earlier pattern matches"),
        ({"model.embed_tokens": 0.5}, "'model.embed_tokens' matches only weights that are not trained"),
    ],
)
def test_a_factor_that_would_decide_nothing_is_refused(factors, message):
    model = causal()
    freeze_("model", model, ["model.embed_tokens"])
    with pytest.raises(ValueError, match=f"stage.learning_rates: {message}"):
        rates_of({"model": model}, factors)


def test_the_larger_rate_of_the_second_adapter_matrix_is_one_pattern():
    """LoRA+ (Hayou et al. 2024): B learns 16 times as fast as A."""
    model = causal()
    model.adapt(LORA)
    decided = rates_of({"model": model}, {"*.lora_B": 16.0})
    assert {name for name, p in model.named_parameters() if p in decided} == {
        f"adapters.layers.{layer}.{target}.up" for layer in (0, 1) for target in ("q_proj", "v_proj")
    }
