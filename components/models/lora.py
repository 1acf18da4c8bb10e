"""Low-rank adapters on frozen weights: W·x + (alpha / rank)·B·A·x (Hu et al. 2022, eq. 3).

Adapters are a separate module, passed to the trunk's forward. So several models, each with its own adapters and head,
can share one trunk in memory, and a model without its adapters is the model from before training.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from components.models.config import GPTConfig
from components.models.flops import Flops, flops_per_token
from components.models.quantized import quantize_

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
TARGETS = (*ATTENTION, *MLP)


@dataclass(frozen=True)
class LoRA:
    """How a stage adapts its models instead of training all weights.

    rank: of A and B. alpha: the product B·A is scaled by alpha / rank. dropout: on A's input, in training.
    targets: the projections that get adapters in every layer, among q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj
    and down_proj. base: how the frozen projections are stored in memory: null, as loaded; int8 or nf4, quantized in
    blocks (Dettmers et al. 2022; 2023, QLoRA), which needs bitsandbytes.
    Raises ValueError for values that no adapter can have.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: Sequence[str] = TARGETS
    base: Literal["int8", "nf4"] | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.targets) - set(TARGETS))
        if unknown or not self.targets:
            raise ValueError(f"lora.targets: expected one or more of {', '.join(TARGETS)}, got {unknown or 'none'}")
        if self.rank < 1:
            raise ValueError(f"lora.rank must be at least 1, got {self.rank}")
        if self.alpha <= 0:
            raise ValueError(f"lora.alpha must be above 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout must be in [0, 1), got {self.dropout}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LowRank(nn.Module):
    """A (rank, inputs), initialized like a linear layer's weight, and B (outputs, rank), 0: adds nothing at first."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)


class LayerAdapters(nn.Module):
    """The adapters of one layer, by the projection's name. shapes: (outputs, inputs) by name."""

    def __init__(self, shapes: dict[str, tuple[int, int]], lora: LoRA) -> None:
        super().__init__()
        self.lora = lora
        for name in lora.targets:
            outputs, inputs = shapes[name]
            setattr(self, name, LowRank(inputs, outputs, lora.rank))
        self.shapes = shapes

    def joined(self, names: Sequence[str]) -> tuple[Tensor, Tensor] | None:
        """(A (R, inputs), scaled B (all outputs, R)) of projections that read the same input; None if none is a target.

        The A's are stacked by rows and the B's are on a block diagonal, so R is the sum of their ranks.
        """
        chosen = [name for name in names if name in self.lora.targets]
        if not chosen:
            return None
        down = torch.cat([getattr(self, name).down for name in chosen])
        ups = [getattr(self, name).up if name in chosen else down.new_zeros(self.shapes[name][0], 0) for name in names]
        return down, torch.block_diag(*ups) * self.lora.scale

    @property
    def dropout(self) -> float:
        """The current rate: 0 unless training."""
        return self.lora.dropout if self.training else 0.0


class Adapters(nn.Module):
    """A model's adapters, layer by layer, initialized from torch's global generator.

    Raises ValueError for a target that the model does not have.
    """

    def __init__(self, config: GPTConfig, lora: LoRA) -> None:
        super().__init__()
        self.lora = lora
        shapes = config.projections()
        absent = [name for name in lora.targets if name not in shapes]
        if absent:
            raise ValueError(f"lora.targets: this model has no {', '.join(absent)}; it has {', '.join(shapes)}")
        self.layers = nn.ModuleList(LayerAdapters(shapes, lora) for _ in range(config.num_hidden_layers))


class Adaptable(nn.Module):
    """A head on a trunk, with or without adapters. A subclass sets head_name and trained_head."""

    head_name: str
    trained_head: bool  # whether the head is trained along with adapters

    def __init__(self, config: GPTConfig, trunk: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.model: Any = trunk
        self.adapters: Adapters | None = None

    def adapt(self, lora: LoRA) -> None:
        """Freezes the trunk, quantizes it if lora.base is set, and makes the adapters trainable: the model's own, or
        fresh ones, which leave its outputs unchanged at first."""
        self.requires_grad_(False)
        if lora.base is not None:
            quantize_(self.model, TARGETS, lora.base)
        if self.adapters is None:
            self.adapters = Adapters(self.config, lora)
        self.adapters.requires_grad_(True)
        getattr(self, self.head_name).requires_grad_(self.trained_head)

    def bare(self) -> Self:
        """This model without its adapters; the trunk and the head are shared, not copied."""
        return self._on_this_trunk(getattr(self, self.head_name))

    def fork(self) -> Self:
        """A model equal to this one at first, on the same trunk, with copies of the head and of any adapters."""
        twin = self._on_this_trunk(copy.deepcopy(getattr(self, self.head_name)))
        twin.adapters = copy.deepcopy(self.adapters)
        return twin

    def trained_names(self) -> set[str]:
        """The names of the weights that have a gradient, those of adapters as PEFT has them."""
        named = self.named_parameters(remove_duplicate=False)
        names = {name for name, parameter in named if parameter.requires_grad}
        return {adapter_name(name) if name.startswith("adapters.") else name for name in names}

    @property
    def flops_per_token(self) -> Flops:
        """FLOPs per token in the longest sequence, given which weights have a gradient now."""
        ranks = dict.fromkeys(self.adapters.lora.targets, self.adapters.lora.rank) if self.adapters else {}
        trained = self.trained_names().__contains__
        return flops_per_token(self.config, self.config.longest, trained=trained, ranks=ranks, head=self.head_name)

    def _on_this_trunk(self, head: nn.Module) -> Self:
        with torch.device("meta"):
            twin = type(self)(self.config, self.model)
        setattr(twin, self.head_name, head)
        return twin


def projection_name(layer: int, target: str) -> str:
    """The module name of a projection in the Llama family: model.layers.0.self_attn.q_proj."""
    return f"model.layers.{layer}.{'self_attn' if target in ATTENTION else 'mlp'}.{target}"


def adapter_name(name: str) -> str:
    """PEFT's name of a weight: adapters.layers.0.q_proj.down → model.layers.0.self_attn.q_proj.lora_A.weight."""
    _, _, layer, target, part = name.split(".")
    return f"{projection_name(int(layer), target)}.{'lora_A' if part == 'down' else 'lora_B'}.weight"


def merged(weights: dict[str, Tensor], lora: LoRA) -> dict[str, Tensor]:
    """A model's weights by name with its adapters added to the projections: W + scale·B·A, in W's dtype."""
    merged_weights = {name: weight for name, weight in weights.items() if not name.startswith("adapters.")}
    for name in [n.removesuffix(".down") for n in weights if n.startswith("adapters.") and n.endswith(".down")]:
        _, _, layer, target = name.split(".")
        key = f"{projection_name(int(layer), target)}.weight"
        product = weights[f"{name}.up"].float() @ weights[f"{name}.down"].float()
        merged_weights[key] = (weights[key].float() + lora.scale * product).to(weights[key].dtype)
    return merged_weights
