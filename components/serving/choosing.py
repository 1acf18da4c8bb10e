"""The next token of each row: rows with different settings, seeds and constraints share one batch of logits."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from components.functional.sampling import filter_logits, sample_at
from components.functional.seeding import uniform
from components.serving.rows import Row, Scored


def choose(logits: Tensor, rows: Sequence[Row]) -> list[Scored]:
    """One token for each row of logits (B, V), which are finite or −inf.

    What a row gets depends on its own logits, settings and (seed, sample, number of tokens so far) alone.
    """
    adjusted = _adjusted(logits.float(), rows)
    tokens = adjusted.argmax(1)
    groups: dict[tuple[float, int, float], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        options = row.options
        if options.temperature >= torch.finfo(torch.float32).tiny:  # a smaller one cannot be divided by
            groups[options.temperature, options.top_k, options.top_p].append(place)
    for (temperature, top_k, top_p), places in groups.items():
        part = adjusted[places]
        part = part - part.amax(1, keepdim=True)  # so a low temperature overflows only to −inf
        kept = filter_logits(part, temperature=temperature, top_k=top_k, top_p=top_p)
        noise = [uniform(rows[place].options.seed, rows[place].index, len(rows[place].ids)) for place in places]
        tokens[places] = sample_at(kept, torch.tensor(noise, dtype=_precise(kept), device=kept.device))
    return _scored(logits, tokens, rows)


def _precise(logits: Tensor) -> torch.dtype:
    return torch.float32 if logits.device.type == "mps" else torch.float64  # Apple's GPUs have no double precision


def _adjusted(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """The logits with each row's bias, penalties and constraint; a copy if there are any."""
    changed = logits
    for place, row in enumerate(rows):
        options = row.options
        penalized = row.counts if options.frequency_penalty or options.presence_penalty else {}
        additions = dict(options.bias)
        for token, count in penalized.items():
            penalty = options.frequency_penalty * count + options.presence_penalty
            additions[token] = additions.get(token, 0.0) - penalty
        if not additions and row.constraint is None:
            continue
        changed = logits.clone() if changed is logits else changed
        if additions:
            tokens = torch.tensor(list(additions), device=logits.device)
            changed[place, tokens] += torch.tensor(list(additions.values()), device=logits.device)
        if row.constraint is not None:
            changed[place].masked_fill_(~row.constraint.allowed().to(logits.device), float("-inf"))
    return changed


def _scored(logits: Tensor, tokens: Tensor, rows: Sequence[Row]) -> list[Scored]:
    scored = [Scored(token, 0.0) for token in tokens.tolist()]
    asking = [place for place, row in enumerate(rows) if row.options.top is not None]
    if asking:
        logprobs = logits[asking].float().log_softmax(1)
        for place, one in zip(asking, score(logprobs, tokens[asking], [rows[p].options.top or 0 for p in asking])):
            scored[place] = one
    return scored


def score(logprobs: Tensor, tokens: Tensor, tops: Sequence[int]) -> list[Scored]:
    """Each row's token (B,) with its log-probability of logprobs (B, V), and the row's number of likeliest tokens."""
    own = logprobs.gather(1, tokens[:, None]).squeeze(1).tolist()
    values, ids = (part.tolist() for part in logprobs.topk(min(max(tops, default=0), logprobs.shape[1]), dim=1))
    return [
        Scored(token, logprob, list(zip(ids[row][:top], values[row][:top])))
        for row, (token, logprob, top) in enumerate(zip(tokens.tolist(), own, tops))
    ]
