"""Optimizers over named parameters.

Every parameter group has a distinct "name", so {group["name"]: group["lr"]} can be logged.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from components.system import installing
from components.system.limits import NonNegative

NamedParameters = Iterable[tuple[str, Parameter]]


def parameter_groups(named_params: NamedParameters, *, weight_decay: float) -> list[dict[str, Any]]:
    """One group that decays (weights of two or more dimensions) and one that does not (norms, biases).

    Leaves out parameters that require no gradient, and empty groups; the others keep their order.
    Returns dicts with "params" and "weight_decay".  Raises ValueError if nothing is trainable.
    Source: Brown et al. 2020 (GPT-3), appendix B; Touvron et al. 2023 (LLaMA), section 2.3.
    """
    trainable = [parameter for _, parameter in named_params if parameter.requires_grad]
    if not trainable:
        raise ValueError("optimizer: expected at least one parameter that requires a gradient, got none")
    decaying = [parameter for parameter in trainable if parameter.dim() >= 2]
    others = [parameter for parameter in trainable if parameter.dim() < 2]
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def named_groups(groups: Mapping[str, NamedParameters], *, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for each entry: "policy", with weight decay, and "policy_no_decay"; see parameter_groups.

    Raises ValueError if an entry has nothing trainable.
    """
    named = []
    for name, named_params in groups.items():
        for group in parameter_groups(named_params, weight_decay=weight_decay):
            label = name if group["params"][0].dim() >= 2 else f"{name}_no_decay"
            named.append({**group, "name": label})
    return named


def adamw_groups(
    groups: dict[str, tuple[NamedParameters, float]],
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> torch.optim.AdamW:
    """One AdamW over several models, each with its own learning rate: {"policy": (named_params, lr), …}.

    Its groups are those of `named_groups`.
    Raises ValueError if an entry has nothing trainable, or two entries share a parameter.
    Source: Loshchilov & Hutter 2019, algorithm 2.
    """
    named = [
        {**group, "lr": lr}
        for name, (named_params, lr) in groups.items()
        for group in named_groups({name: named_params}, weight_decay=weight_decay)
    ]
    return torch.optim.AdamW(named, betas=betas, eps=eps, fused=True)


def adamw(
    named_params: NamedParameters,
    *,
    lr: NonNegative,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> torch.optim.AdamW:
    """AdamW whose groups are named "model" and "model_no_decay"; see adamw_groups."""
    return adamw_groups({"model": (named_params, lr)}, betas=betas, eps=eps, weight_decay=weight_decay)


class Joint(torch.optim.Optimizer):
    """Several optimizers as one: one step, one state, one list of groups, in the order of `parts`."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts: list[torch.optim.Optimizer] = []
        for part in parts:
            self.parts += part.parts if isinstance(part, Joint) else [part]
        self._sizes: list[int] = []  # number of groups of each part, once all are added
        super().__init__([group for part in self.parts for group in part.param_groups], defaults={})
        self._sizes = [len(part.param_groups) for part in self.parts]
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raises ValueError: a group that belongs to no part would never be updated."""
        if self._sizes:
            raise ValueError(
                f"optimizer: got one more group, {param_group.get('name', '')!r}, which none of the joint parts would "
                "update. Build an optimizer for it and join the two with components.training.optimizers.Joint"
            )
        super().add_param_group(param_group)

    def _share(self) -> None:
        """Gives every part this optimizer's groups and state, so schedulers and checkpoints apply to the parts."""
        start = 0
        for part, size in zip(self.parts, self._sizes, strict=True):
            part.param_groups = self.param_groups[start : start + size]
            part.state = self.state
            start += size

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in Optimizer. Each part loads its own share, since one can store states that are not of its parameters'
        dtype."""
        start = 0
        groups: list[dict[str, Any]] = []
        state: dict[Tensor, Any] = {}
        for part, size in zip(self.parts, self._sizes, strict=True):
            own = state_dict["param_groups"][start : start + size]
            numbers = {number for group in own for number in group["params"]}
            states = {number: entry for number, entry in state_dict["state"].items() if number in numbers}
            part.load_state_dict({"state": states, "param_groups": own})
            groups += part.param_groups
            state.update(part.state)
            start += size
        self.param_groups = groups
        self.state.clear()
        self.state.update(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all groups; the closure, if any, is evaluated once and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


def scaled(optimizer: torch.optim.Optimizer, factors: Mapping[Parameter, float]) -> torch.optim.Optimizer:
    """The optimizer, with its groups split so that every parameter in `factors` has its group's learning rate times
    its factor; a split group holds the factor as "rate_factor", which is in its name, too. Call it before the first
    step, and before a scheduler reads the groups' rates."""
    if not factors:
        return optimizer
    parts = optimizer.parts if isinstance(optimizer, Joint) else [optimizer]
    for part in parts:
        part.param_groups = [piece for group in part.param_groups for piece in _split(group, factors)]
    return Joint(*parts) if isinstance(optimizer, Joint) else optimizer


def base_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the first group, without its factor."""
    first = optimizer.param_groups[0]
    return first["lr"] / first.get("rate_factor", 1.0)


def _split(group: dict[str, Any], factors: Mapping[Parameter, float]) -> list[dict[str, Any]]:
    pieces: dict[float, list[Parameter]] = {}
    for parameter in group["params"]:
        pieces.setdefault(factors.get(parameter, 1.0), []).append(parameter)
    return [
        {**group, "params": parameters}
        if factor == 1
        else {
            **group,
            "params": parameters,
            "lr": group["lr"] * factor,
            "rate_factor": factor,
            "name": f"{group.get('name', '')} x{factor:g}",
        }
        for factor, parameters in pieces.items()
    ]


def muon(
    named_params: NamedParameters,
    *,
    lr: NonNegative,
    betas: tuple[float, float],
    eps: float,
    weight_decay: NonNegative,
    momentum: NonNegative = 0.95,
) -> Joint:
    """Muon for the matrices of the hidden layers, AdamW for embeddings, heads, norms and biases.

    A hidden matrix is a two-dimensional parameter with "layers" in its dotted name. Its update is scaled to the size
    of AdamW's, so both use the same learning rate and weight decay. betas, eps: of AdamW; momentum: of Muon, with a
    default, so a config can replace adamw by muon by name alone.
    Groups: "muon", "adamw", "adamw_no_decay".
    Raises ValueError if there is no trainable hidden matrix.
    Sources: Jordan 2024, "Muon"; the scaling 0.2·√max(rows, columns): Liu et al. 2025, eq. 4.
    """
    trainable = [(name, parameter) for name, parameter in named_params if parameter.requires_grad]
    hidden = {name for name, parameter in trainable if parameter.dim() == 2 and "layers" in name.split(".")}
    if not hidden:
        raise ValueError('muon: expected a trainable matrix with "layers" in its name, got none; use adamw')
    matrices = [parameter for name, parameter in trainable if name in hidden]
    rest = [(name, parameter) for name, parameter in trainable if name not in hidden]
    inner = torch.optim.Muon(
        [{"params": matrices, "name": "muon"}],
        lr=lr,
        weight_decay=weight_decay,
        momentum=momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    if not rest:
        return Joint(inner)
    outer = adamw_groups({"adamw": (rest, lr)}, betas=betas, eps=eps, weight_decay=weight_decay)
    return Joint(inner, outer)


def adamw8bit(
    named_params: NamedParameters, *, lr: NonNegative, betas: tuple[float, float], eps: float, weight_decay: NonNegative
) -> Joint:
    """AdamW with moments in 8 bits, quantized in blocks of 256 by bitsandbytes: 2 bytes for each weight, not 8.

    Moments of embeddings, and of tensors with fewer than 4,096 weights, are in 32 bits. The command line accepts it on
    CUDA only.
    Groups: "model", "model_no_decay", "embeddings".
    Raises ValueError if nothing is trainable or bitsandbytes is not installed.
    Source: Dettmers et al. 2022 (8-bit optimizers), sections 2.1 and 2.3.
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise ValueError(installing.missing("adamw8bit", "bitsandbytes", "quant")) from None
    trained = [(name, parameter) for name, parameter in named_params if parameter.requires_grad]
    embedding = [(name, p) for name, p in trained if {"embed_tokens", "embed_positions"} & set(name.split("."))]
    in_32_bits = {name for name, _ in embedding}
    rest = [(name, p) for name, p in trained if name not in in_32_bits]
    parts: list[torch.optim.Optimizer] = []
    if rest or not embedding:
        named = named_groups({"model": rest}, weight_decay=weight_decay)
        parts.append(AdamW8bit(named, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
    if embedding:
        parts.append(adamw_groups({"embeddings": (embedding, lr)}, betas=betas, eps=eps, weight_decay=weight_decay))
    return Joint(*parts)
