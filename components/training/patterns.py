"""Weights chosen by pattern: those that are frozen, and those with a learning rate of their own.

A pattern is a shell pattern (fnmatch: * is any characters, ? one, [0-9] one of these) for the name of a weight, as in
Hugging Face's Llama family, or of a module that contains it. model.layers.[0-9].* and model.layers.[0-9] are the first
ten layers: unlike in a regular expression, a dot is only a dot, so every name is a pattern for itself, and [0-9] is one
digit, so layer 10 does not match. An adapter has the name that PEFT gives it, such as
model.layers.0.self_attn.q_proj.lora_A.weight. A stage that trains several networks applies a pattern to all of them,
or to one with its name in front: value.model.layers.0. A tied matrix has two names; either means the one matrix.
"""

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Annotated, NamedTuple

from pydantic import Field
from torch import nn
from torch.nn import Parameter

from components.models.lora import adapter_name

SINGLE = "model"  # the name of the network of a stage that has only one
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]  # of a learning rate
OF_REGULAR_EXPRESSIONS = set("\\^$|(){}+")


class Frozen(NamedTuple):
    """What was frozen: the names of weights in their model, and the patterns that matched."""

    names: set[str]
    patterns: set[str]


def freeze_(network: str, model: nn.Module, patterns: Sequence[str]) -> Frozen:
    """Turns off the gradients of the weights that match.

    Raises ValueError if nothing would be left to train, or for a head of scores, which stages rescale by themselves.
    """
    frozen = Frozen(set(), set())
    trained = {parameter: names for parameter, names in _names(network, model).items() if parameter.requires_grad}
    for parameter, names in trained.items():
        matching = {pattern for pattern in patterns if _matches(pattern, names)}
        if matching and names[0].startswith("score."):
            raise ValueError(
                f"stage.freeze: {' and '.join(map(repr, sorted(matching)))} matches {names[-1]}, which this stage "
                "rescales even if it does not train it. 'model' freezes all but this head"
            )
        parameter.requires_grad_(not matching)
        frozen.patterns.update(matching)
    if frozen.patterns and not any(parameter.requires_grad for parameter in trained):
        raise ValueError(
            f"stage.freeze: {' and '.join(map(repr, sorted(frozen.patterns)))} would freeze all {len(trained)} trained "
            f"weights of the {network}, which leaves nothing to train"
        )
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter in trained and not parameter.requires_grad:
            frozen.names.add(name)
    return frozen


def rates_of(networks: Mapping[str, nn.Module], factors: Mapping[str, float]) -> dict[Parameter, float]:
    """The factor of the learning rate for each weight that matches a pattern, by the first one that it matches.

    Raises ValueError for a pattern that applies to no trained weight.
    """
    if not factors:
        return {}
    decided: dict[Parameter, float] = {}
    used: set[str] = set()
    for network, model in networks.items():
        for parameter, names in _names(network, model).items():
            pattern = next((p for p in factors if _matches(p, names)), None) if parameter.requires_grad else None
            if pattern is not None:
                decided[parameter] = factors[pattern]
                used.add(pattern)
    check_used("stage.learning_rates", factors, used, networks)
    return decided


def check_used(
    setting: str, patterns: Collection[str], used: Collection[str], networks: Mapping[str, nn.Module]
) -> None:
    """Raises ValueError for a pattern that is not in `used`, naming the weights that are nearest to it."""
    for pattern in (pattern for pattern in patterns if pattern not in used):
        every = [(parameter, names) for n, model in networks.items() for parameter, names in _names(n, model).items()]
        matching = [(parameter, names) for parameter, names in every if _matches(pattern, names)]
        if any(parameter.requires_grad for parameter, _ in matching):
            fault = "matches only weights that an earlier pattern matches, which is the one that counts"
        elif matching:
            fault = f"matches only weights that are not trained, such as {matching[0][1][0]}"
        else:
            fault = "matches no weight"
        trained = [name for parameter, names in every if parameter.requires_grad for name in names]
        raise ValueError(f"{setting}: {pattern!r} {fault}. {_hint(pattern, trained)}")


def _names(network: str, model: nn.Module) -> dict[Parameter, list[str]]:
    """Every weight with all names that a pattern can mean."""
    found: dict[Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        own = adapter_name(name) if name.startswith("adapters.") else name
        found.setdefault(parameter, []).extend([own] if network == SINGLE else [own, f"{network}.{own}"])
    return found


def _matches(pattern: str, names: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for name in names)


def _hint(pattern: str, names: Sequence[str]) -> str:
    modules = {name.rpartition(".")[0] for name in names}
    near = get_close_matches(pattern, [*names, *sorted(modules)], n=3, cutoff=0.5) or sorted(names)[:3]
    syntax = "; only * ? and [0-9] have a meaning, as in a shell" if OF_REGULAR_EXPRESSIONS & set(pattern) else ""
    return f"Near it: {', '.join(near)}{syntax}"
