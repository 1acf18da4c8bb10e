"""What must hold before the first update. Each check returns the line that tells it held, or raises SelfCheckError."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from components.functional.masking import last_index
from components.models.lora import Adapters

log = logging.getLogger(__name__)
INITIAL_BAND = 0.05  # share of ln V by which a fresh model's first loss may differ from it


class SelfCheckError(ValueError):
    """A start-up self-check failed: training on would optimise something else than it says."""


def tell(line: str) -> None:
    log.info(f"self-check: {line}")


def check_first_forward(
    logprobs: Tensor, old_logprobs: Tensor, reference: Tensor | None, mask: Tensor, *, exact: bool
) -> str:
    """Before any update the ratio to the old policy is 1 and (if given) the KL to the reference 0.

    exact: fp32 forwards, held to 1e-4; otherwise (bf16, fp16) 2e-2.
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
    """A fresh model guesses evenly, so its first loss is near ln V; elsewhere it is warned of, not refused."""
    expected = math.log(vocab_size)
    if loss > (1 + INITIAL_BAND) * expected:
        log.warning(
            f"the first loss, {loss:.3f}, is above ln V = {expected:.3f}, that of an even guess: the initial weights "
            "are too large, and the first steps go into making them smaller. Try a smaller model.initializer_range"
        )
    if loss < (1 - INITIAL_BAND) * expected:
        log.warning(
            f"the first loss, {loss:.3f}, is below ln V = {expected:.3f}, that of an even guess. Unless the weights "
            "were trained before, the model sees what it should predict"
        )
    return f"first loss {loss:.3f}, ln V = {expected:.3f}"


def check_frozen(networks: Mapping[str, nn.Module]) -> str:
    """No parameter of these takes a gradient, and none of their parts is in training mode."""
    for name, network in networks.items():
        learning = [part for part, parameter in network.named_parameters() if parameter.requires_grad]
        if learning or any(module.training for module in network.modules()):
            fault = f"its {learning[0]} takes a gradient" if learning else "a part of it is in training mode"
            raise SelfCheckError(
                f"self-check: {name} must stay as it is, but {fault}. Name it in `frozen` and give it to Stage.adopt"
            )
    return f"{' and '.join(networks)} frozen"


def check_separate(networks: Mapping[str, nn.Module]) -> str:
    """No two networks share the storage of a weight that is trained: an update of one would move the other."""
    owners: dict[int, tuple[str, bool]] = {}
    trunk = False  # whether some share one that stays as it is
    for name, network in networks.items():
        places: dict[int, bool] = {}  # this process's part of every weight, and whether anything there is trained
        for p in network.parameters():
            local = local_part(p)
            if local.numel():
                place = local.untyped_storage().data_ptr()
                places[place] = places.get(place, False) or p.requires_grad
        for place, trained in places.items():
            owner, trained_there = owners.setdefault(place, (name, trained))
            trunk |= owner != name
            if owner != name and (trained or trained_there):
                raise SelfCheckError(
                    f"self-check: {name} and {owner} share weights, so training one changes the other. "
                    "Let every builder load or make a model of its own"
                )
    return f"{', '.join(networks)} share no {'trained ' if trunk else ''}weights"


def check_no_dropout(networks: Mapping[str, nn.Module]) -> str:
    """Ratios and KL compare two forwards of a text, which dropout would make two different models."""
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
    """Sampled ids (N, R) are in the vocabulary and none is unused; finished responses hold one stop token, at the end,
    others none."""
    real = ids[mask]
    if len(real) and not 0 <= int(real.min()) <= int(real.max()) < vocab_size:
        raise SelfCheckError(
            f"self-check: drawn ids lie in {int(real.min())} … {int(real.max())}, expected 0 … {vocab_size - 1}"
        )
    unused = real[torch.isin(real, real.new_tensor(unused_ids))]
    if len(unused):
        raise SelfCheckError(f"self-check: the id {int(unused[0])} was sampled, which the tokenizer has no piece for")
    stops = torch.isin(ids, ids.new_tensor(sorted(stop_ids))) & mask
    at_the_end = stops.gather(1, last_index(mask)[:, None]).squeeze(1)
    wrong = (stops.sum(1) != finished.long()) | (at_the_end != finished)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        expected = "one, at its end" if finished[first] else "none, as it did not end by itself"
        raise SelfCheckError(
            f"self-check: response {first} holds {int(stops[first].sum())} stop tokens, expected {expected}: "
            f"{ids[first][mask[first]].tolist()}"
        )
    return f"{len(ids)} responses within the {vocab_size} ids, {int(finished.sum())} ended, with one stop token each"


def check_score_places(input_ids: Tensor, last: Tensor, response_ids: Tensor, mask: Tensor) -> str:
    """Scores are read where packed rows (B, T) hold each response's last token. last (N,): flat indices."""
    expected = response_ids.gather(1, last_index(mask)[:, None]).squeeze(1)
    found = input_ids.flatten()[last]
    if not torch.equal(found, expected):
        wrong = int((found != expected).nonzero()[0])
        raise SelfCheckError(
            f"self-check: the score of response {wrong} is read at token {int(found[wrong])}, expected its last, "
            f"{int(expected[wrong])}: the rows are packed otherwise than the places were counted"
        )
    return "scores read at each response's last token"


class FirstStep:
    """Whether the optimizer moves what is trained: checked once, at the first step that could have moved anything.

    Raises SelfCheckError unless every trained parameter is in exactly one group of the optimizer. Steps without a
    gradient or at a rate of 0, and those that a guard or a gradient scaler leaves out, are passed over. Looked at is
    the entry of every parameter with the largest gradient, so a step costs one pass over the gradients, once.

    trained: parameters by name; tell: takes the line that says the check held.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], optimizer: Optimizer, tell: Callable[[str], None]) -> None:
        held = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
        for name, parameter in trained.items():
            if held[id(parameter)] != 1:
                raise SelfCheckError(
                    f"self-check: {name} is to be trained, but is in {held[id(parameter)]} groups of the optimizer, "
                    "expected 1. Give the optimizer every parameter of Stage.named_groups once"
                )
        self._trained, self._tell = dict(trained), tell
        self._before: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # place, gradient and weight there
        self._done = False
        self._hook = optimizer.register_step_post_hook(lambda stepped, *_: self._look(stepped))

    @torch.no_grad()
    def note(self) -> None:
        """To be called where gradients are final and weights are not yet changed."""
        if self._done:
            return
        self._before = {}
        for name, parameter in self._trained.items():
            gradient = None if parameter.grad is None else local_part(parameter.grad).reshape(-1)
            if gradient is not None and gradient.numel():
                place = gradient.abs().argmax()
                self._before[name] = place, gradient[place], local_part(parameter).reshape(-1)[place].clone()

    @torch.no_grad()
    def _look(self, optimizer: Optimizer) -> None:
        """Judges the step just taken.

        An optimizer that keeps state has moved what it has state of, if by less than its type can tell. Without any,
        a step of rate times gradient has to show.
        """
        rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        could = {n: rates[id(self._trained[n])] * g.abs() for n, (_, g, _) in self._before.items()}
        could = {name: step for name, step in could.items() if step > 0}
        moved = 0
        for name, step in could.items():
            parameter, (place, _, before) = self._trained[name], self._before[name]
            changed = bool(local_part(parameter).reshape(-1)[place] != before)
            visible = step > 2 * before.abs() * torch.finfo(before.dtype).eps
            if not changed and visible and not optimizer.state.get(parameter):
                raise SelfCheckError(
                    f"self-check: the optimizer's first step left {name} where it was, though its gradient is not 0: "
                    f"{type(optimizer).__name__} does not train it"
                )
            moved += changed
        self._before = {}
        if could:
            self._done = True
            self._hook.remove()
            rest = (
                f", {len(self._trained) - len(could)} have no gradient yet" if len(could) < len(self._trained) else ""
            )
            self._tell(f"the first step moved {moved} of {len(self._trained)} trained parameters{rest}")


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
