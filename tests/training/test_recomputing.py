"""The estimate of a step's memory, against what a model really keeps."""

import math

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from components.models.heads import value_from_causal
from components.training.recomputing import KERNELS_BF16, KERNELS_TO_SAMPLE, LOGITS, Need, need_of
from tests.kit.tiny_stages import causal

WIDE = dict(hidden_size=64, intermediate_size=160, num_attention_heads=4, num_hidden_layers=3)


def kept_bytes(model, ids: torch.Tensor) -> int:
    """Of the activations and copies of matrices that a forward pass keeps."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model.hidden(ids)
    return sum(kept.values())


@pytest.mark.parametrize(("heads", "mixed"), [(4, False), (1, False), (4, True)])
def test_the_estimate_is_within_a_tenth_of_what_a_model_keeps(heads, mixed):
    """Without (1, True): in bf16 a processor repeats grouped keys and values for every head, which is not counted."""
    model, ids = causal(**WIDE, num_key_value_heads=heads), torch.ones(8, 64, dtype=torch.int64)
    need = need_of([model], ids.numel(), width=2 if mixed else 4, lean=True, mixed=mixed, compiled=False, on_cpu=False)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        kept = kept_bytes(model, ids)
    output = 2 * 4 * model.lm_head.weight.numel()  # whose gradient comes later
    assert need.kept - output == pytest.approx(kept, rel=0.1)
    assert need.states == 3 * 4 * sum(parameter.numel() for parameter in model.parameters())


def test_frozen_weights_have_no_states_and_recomputing_keeps_one_layer():
    model = causal(**WIDE, num_key_value_heads=4).requires_grad_(False)
    need = need_of([model], 100, width=4, lean=True, mixed=False, compiled=True, on_cpu=False)
    assert need.states == 0
    inputs, inside = 100 * 5 * 4 * 64, 100 * 4 * (64 + 4 * 64 + 2 * 160)
    assert (need.kept, need.recomputed) == (inputs + 3 * inside, inputs + inside)


def fixed(model, width: int, *, on_cpu: bool = True, sampling: float = 0.0) -> float:
    shape = dict(lean=True, mixed=False, compiled=False)
    return need_of([model], 100, width=width, on_cpu=on_cpu, sampling=sampling, **shape).fixed


def test_on_a_cpu_a_process_takes_logits_if_it_has_a_head_of_them_and_kernels_of_onednn():
    model = causal(**WIDE, num_key_value_heads=4)
    assert fixed(model, 4, on_cpu=False) == fixed(model, 2, on_cpu=False, sampling=1.0) == 0
    assert fixed(model, 4) == LOGITS
    assert fixed(model, 4, sampling=1.0) == LOGITS + KERNELS_TO_SAMPLE
    assert fixed(model, 2) == fixed(model, 2, sampling=1.0) == LOGITS + KERNELS_BF16
    assert fixed(value_from_causal(model), 4) == 0


def test_sampling_and_updates_take_turns_and_on_a_cpu_leave_holes():
    """Moments that stay (twice 10) and a cache that comes and goes (30) where 50 or, recomputed, 8 of activations
    were."""
    gpu = Need(states=10, kept=50, recomputed=8, fixed=1, sampling=30)
    assert (gpu.taken(False), gpu.taken(True)) == (10 + 1 + 50, 10 + 1 + 30)
    cpu = gpu._replace(holes=100)
    assert (cpu.taken(False), cpu.taken(True)) == (10 + 1 + 50 + 20 + 30, 10 + 1 + 30 + 8 + 8)
    assert gpu._replace(holes=40).taken(False) == 10 + 1 + 50 + 40


def test_the_note_says_what_is_needed_what_there_is_and_what_follows():
    need = Need(2**30, 2 * 2**30, 2**29)
    assert need.note(4 * 2**30) == "a step takes about 3.0 GB, 4.0 GB are free: activations are kept"
    assert need.note(3 * 2**30) == (
        "a step takes about 3.0 GB, 3.0 GB are free: layers are recomputed in the backward pass, which takes about "
        "1.5 GB (gradient_checkpointing=auto)"
    )
    assert need.note(math.inf) == "a step takes about 3.0 GB: activations are kept"
