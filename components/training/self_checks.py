"""Checks at the start of training. Each returns a line that reports success, or raises SelfCheckError."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from components.functional.masking import last_index
from components.models.lora import Adapters
from components.models.shards import local_part

log = logging.getLogger(__name__)
INITIAL_BAND = 0.05  # share of ln V by which a fresh model's first loss can differ from it


class SelfCheckError(ValueError):
    """A startup self-check failed: training would optimize something other than intended."""


def log_check(line: str) -> None:
    """Logs the result of a self-check."""
    log.info(f"self-check: {line}")


def check_even(what: str, batches: float, module: Any) -> None:
    """Raises ValueError if processes have different numbers of batches: they wait for each other in every batch, so
    they would wait forever for one that has fewer.

    batches: of this process, of the data that `what` names. module: a Stage.
    """
    total, count = float(module.all_reduced(batches)), module.trainer.world_size
    most = float(module.reduced(torch.tensor(batches), "max"))
    if total != most * count:
        raise ValueError(
            f"{what} data: process {module.global_rank} has {batches:g} batches and the {count} processes have "
            f"{total:g} in total, expected {most:g} for each. Use a loader that gives processes equal shares, as "
            "components.data.loading.sampler does"
        )


def check_first_forward(
    logprobs: Tensor, old_logprobs: Tensor, reference: Tensor | None, mask: Tensor, *, exact: bool
) -> str:
    """Before any update, the ratio to the old policy is 1 and the policy's log-probabilities are the reference's.

    logprobs, old_logprobs, reference: (N, R) nats; reference None is not checked. mask: (N, R) bool, True on response
    tokens. exact: True for fp32 forwards, tolerance 1e-4; else (bf16, fp16) 2e-2.
    """
    tolerance = 1e-4 if exact else 2e-2
    deviation = float((logprobs - old_logprobs)[mask].exp().sub(1).abs().max())
    if deviation > tolerance:
        raise SelfCheckError(
            f"self-check: max |ratio − 1| before the first update is {deviation:.2e}, expected below {tolerance:.0e}. "
            "Rollout and training forwards disagree: dropout, positions, masks, temperature or precision"
        )
    line = f"max |ratio − 1| {deviation:.1e}"
    if reference is not None:
        drift = float((logprobs - reference)[mask].abs().max())
        if drift > tolerance:
            raise SelfCheckError(
                f"self-check: the policy differs from its reference before the first update (log-ratio {drift:.2e}, "
                f"expected below {tolerance:.0e}). Do both load the same artifact (artifacts.sft)?"
            )
        line += f", max |log π/π_ref| {drift:.1e}"
    return f"{line} before the first update"


def check_initial_loss(loss: float, vocab_size: int) -> str:
    """A fresh model predicts uniformly, so its first loss is near ln V; if not, warns instead of raising.

    loss: nats per token. vocab_size: V.
    """
    expected = math.log(vocab_size)
    if loss > (1 + INITIAL_BAND) * expected:
        log.warning(
            f"the first loss, {loss:.3f}, is above ln V = {expected:.3f}, that of a uniform guess. The initial weights "
            "are too large, and the first steps are spent on shrinking them. Try a smaller model.initializer_range"
        )
    if loss < (1 - INITIAL_BAND) * expected:
        log.warning(
            f"the first loss, {loss:.3f}, is below ln V = {expected:.3f}, that of a uniform guess. Unless the weights "
            "were trained before, the model sees the tokens that it should predict"
        )
    return f"first loss {loss:.3f}, ln V = {expected:.3f}"


def check_frozen(networks: Mapping[str, nn.Module]) -> str:
    """No parameter of these networks requires a gradient, and none of their modules is in training mode."""
    for name, network in networks.items():
        trainable = [part for part, parameter in network.named_parameters() if parameter.requires_grad]
        if trainable or any(module.training for module in network.modules()):
            fault = f"its {trainable[0]} requires a gradient" if trainable else "a part of it is in training mode"
            raise SelfCheckError(
                f"self-check: {name} must not change, but {fault}. Name it in `frozen` and pass it to Stage.adopt"
            )
    return f"{' and '.join(networks)} frozen"


def check_separate(networks: Mapping[str, nn.Module]) -> str:
    """No two networks share the storage of a trained weight: an update of one would change the other."""
    owners: dict[int, tuple[str, bool]] = {}
    shared_trunk = False  # whether some share frozen weights
    for name, network in networks.items():
        storages: dict[int, bool] = {}  # of this process's part of every weight, and whether anything in it is trained
        for p in network.parameters():
            local = local_part(p)
            if local.numel():
                storage = local.untyped_storage().data_ptr()
                storages[storage] = storages.get(storage, False) or p.requires_grad
        for storage, trained in storages.items():
            owner, owner_trains = owners.setdefault(storage, (name, trained))
            shared_trunk |= owner != name
            if owner != name and (trained or owner_trains):
                raise SelfCheckError(
                    f"self-check: {name} and {owner} share weights, so training one changes the other. "
                    "Each builder must load or make its own model"
                )
    return f"{', '.join(networks)} share no {'trained ' if shared_trunk else ''}weights"


def check_no_dropout(networks: Mapping[str, nn.Module]) -> str:
    """No network has dropout: ratios and KL compare two forwards, which dropout would make differ."""
    for name, network in networks.items():
        rates = [module.p for module in network.modules() if isinstance(module, nn.Dropout) and module.p > 0]
        rates += [m.lora.dropout for m in network.modules() if isinstance(m, Adapters) and m.lora.dropout > 0]
        if rates:
            raise SelfCheckError(f"self-check: {name} has dropout {rates[0]}, expected 0: ratios and KL would be noise")
    return "no dropout"


def check_responses(
    ids: Tensor,
    mask: Tensor,
    finished: Tensor,
    *,
    vocab_size: int,
    stop_ids: Collection[int],
    unused_ids: Sequence[int] = (),
) -> str:
    """Sampled ids (N, R) are in the vocabulary and none is unused; finished (N,) responses contain one stop token, at
    the end, others none. mask: (N, R) bool, True on response tokens."""
    real = ids[mask]
    if len(real) and not 0 <= int(real.min()) <= int(real.max()) < vocab_size:
        raise SelfCheckError(
            f"self-check: sampled ids are from {int(real.min())} to {int(real.max())}, expected 0 to {vocab_size - 1}"
        )
    unused = real[torch.isin(real, real.new_tensor(unused_ids))]
    if len(unused):
        raise SelfCheckError(f"self-check: id {int(unused[0])} was sampled, but the tokenizer has no token for it")
    stops = torch.isin(ids, ids.new_tensor(sorted(stop_ids))) & mask
    at_the_end = stops.gather(1, last_index(mask)[:, None]).squeeze(1)
    wrong = (stops.sum(1) != finished.long()) | (at_the_end != finished)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        expected = "one, at its end" if finished[first] else "none, as it did not end by itself"
        raise SelfCheckError(
            f"self-check: response {first} has {int(stops[first].sum())} stop tokens, expected {expected}: "
            f"{ids[first][mask[first]].tolist()}"
        )
    return f"{len(ids)} responses with ids below {vocab_size}, {int(finished.sum())} ended, with one stop token each"


def check_score_positions(input_ids: Tensor, last: Tensor, response_ids: Tensor, mask: Tensor) -> str:
    """Scores are read at each response's last token. last (N,): flat indices in the packed rows input_ids (B, T)."""
    expected = response_ids.gather(1, last_index(mask)[:, None]).squeeze(1)
    actual = input_ids.flatten()[last]
    if not torch.equal(actual, expected):
        wrong = int((actual != expected).nonzero()[0])
        raise SelfCheckError(
            f"self-check: the score of response {wrong} is read at token {int(actual[wrong])}, expected its last, "
            f"{int(expected[wrong])}: the indices do not match how the rows are packed"
        )
    return "scores read at each response's last token"


class FirstStep:
    """Checks that the optimizer changes the trained parameters, once, at the first step that could change any.

    Raises SelfCheckError unless every trained parameter is in exactly one group of the optimizer. Steps without a
    gradient or at a learning rate of 0, and steps that a guard or a gradient scaler skips, are not checked. The check
    compares the entry of each parameter with the largest gradient, so it costs one pass over the gradients.

    trained: parameters by name; log_check: called with the line that reports success.
    """

    def __init__(
        self, trained: Mapping[str, nn.Parameter], optimizer: Optimizer, log_check: Callable[[str], None]
    ) -> None:
        held = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
        for name, parameter in trained.items():
            if held[id(parameter)] != 1:
                raise SelfCheckError(
                    f"self-check: {name} should be trained, but is in {held[id(parameter)]} groups of the optimizer, "
                    "expected 1. Pass each parameter of Stage.named_groups to the optimizer once"
                )
        self._trained, self._log_check = dict(trained), log_check
        self._before: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # an index, and the gradient and weight at it
        self._done = False
        self._hook = optimizer.register_step_post_hook(lambda stepped, *_: self._check(stepped))

    @torch.no_grad()
    def note(self) -> None:
        """Records gradients and weights; call it when gradients are final and weights not yet updated."""
        if self._done:
            return
        self._before = {}
        for name, parameter in self._trained.items():
            gradient = None if parameter.grad is None else local_part(parameter.grad).reshape(-1)
            if gradient is not None and gradient.numel():
                index = gradient.abs().argmax()
                self._before[name] = index, gradient[index], local_part(parameter).reshape(-1)[index].clone()

    @torch.no_grad()
    def _check(self, optimizer: Optimizer) -> None:
        """Checks the step just taken.

        A parameter with optimizer state was updated, even if by less than its dtype can represent. Without state, a
        step of rate times gradient must be visible.
        """
        rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        steps = {n: rates[id(self._trained[n])] * g.abs() for n, (_, g, _) in self._before.items()}
        steps = {name: step for name, step in steps.items() if step > 0}
        moved = 0
        for name, step in steps.items():
            parameter, (index, _, before) = self._trained[name], self._before[name]
            changed = bool(local_part(parameter).reshape(-1)[index] != before)
            visible = step > 2 * before.abs() * torch.finfo(before.dtype).eps
            if not changed and visible and not optimizer.state.get(parameter):
                raise SelfCheckError(
                    f"self-check: the optimizer's first step did not change {name}, although its gradient is not 0: "
                    f"{type(optimizer).__name__} does not train it"
                )
            moved += changed
        self._before = {}
        if steps:
            self._done = True
            self._hook.remove()
            rest = (
                f", {len(self._trained) - len(steps)} have no gradient yet" if len(steps) < len(self._trained) else ""
            )
            self._log_check(f"the first step changed {moved} of {len(self._trained)} trained parameters{rest}")
