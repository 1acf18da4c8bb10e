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


def test_on_a_cpu_a_step_takes_more_whatever_the_model_and_in_bf16_kernels_too():
    model = causal(**WIDE, num_key_value_heads=4)
    arguments = dict(lean=True, mixed=False, compiled=False)
    somewhere, here, narrow = (
        need_of([model], 100, width=width, on_cpu=on_cpu, **arguments)
        for width, on_cpu in ((4, False), (4, True), (2, True))
    )
    assert here.taken(False) - somewhere.taken(False) == here.taken(True) - somewhere.taken(True) == LOGITS
    assert narrow.fixed == LOGITS + KERNELS_BF16


def test_without_a_head_of_logits_a_step_has_none():
    arguments = dict(lean=True, mixed=False, compiled=False, on_cpu=True)
    assert need_of([value_from_causal(causal())], 100, width=4, **arguments).fixed == 0


def test_what_sampling_takes_is_added_on_a_cpu_and_used_again_by_updates_elsewhere():
    model = causal(**WIDE, num_key_value_heads=4)
    arguments = dict(width=4, lean=True, mixed=False, compiled=False)
    here, there = (need_of([model], 100, on_cpu=on_cpu, **arguments) for on_cpu in (True, False))
    both = need_of([model], 100, on_cpu=True, sampling=2.0**20, **arguments)
    assert both.taken(False) - here.taken(False) == both.taken(True) - here.taken(True) == 2**20 + KERNELS_TO_SAMPLE
    small, large = (need_of([model], 100, on_cpu=False, sampling=s, **arguments) for s in (1.0, 2.0**40))
    assert small == there
    assert (large.kept, large.recomputed) == (2**40, 2**40)


def test_the_note_says_what_is_needed_what_there_is_and_what_follows():
    need = Need(2**30, 2 * 2**30, 2**29)
    assert need.note(4 * 2**30) == "a step takes about 3.0 GB, 4.0 GB are free: activations are kept"
    assert need.note(3 * 2**30) == (
        "a step takes about 3.0 GB, 3.0 GB are free: layers are recomputed in the backward pass, which takes about "
        "1.5 GB (gradient_checkpointing=auto)"
    )
    assert need.note(math.inf) == "a step takes about 3.0 GB: activations are kept"
