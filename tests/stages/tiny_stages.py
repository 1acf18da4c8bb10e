"""Stages, batches and trainers as small as they come.

Where no words are needed the vocabulary is 16 ids: PAD, BOS, END and thirteen tokens without a meaning.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from components.callbacks.checkpoint_io import AtomicCheckpointIO
from components.data.batches import LMBatch, PreferenceBatch
from components.data.experience import ExperienceLoader
from components.generation.generate import Sampling
from components.models.config import GPTConfig
from components.models.heads import CausalLM, ScalarModel, new_causal_lm, scalar_from_causal
from components.models.layout import pack
from components.optim import adamw, schedule
from components.stages.ppo import PPO
from components.stages.stage import Stage

PAD, BOS, END = 0, 1, 2
STOPS = (END, 10, 11, 12)  # of PPO: an untrained policy draws one of four about as often as it should
CONSTANT = partial(schedule, "constant", warmup_steps=0, final_fraction=1.0)


def config(vocab_size: int = 16, **changes: Any) -> GPTConfig:
    """Random weights of this spread give logits that differ by whole units."""
    shape = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=96, initializer_range=0.2,
    )  # fmt: skip
    return GPTConfig(vocab_size=vocab_size, **(shape | changes))


def causal(seed: int = 0, vocab_size: int = 16, **changes: Any) -> CausalLM:
    torch.manual_seed(seed)
    return new_causal_lm(config(vocab_size, **changes))


def scalar(seed: int = 1, vocab_size: int = 16, **changes: Any) -> ScalarModel:
    return scalar_from_causal(causal(seed, vocab_size, **changes))


def adam(lr: float, weight_decay: float = 0.0) -> Callable[..., torch.optim.Optimizer]:
    return partial(adamw, lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay)


class Keeper(torch.optim.SGD):
    """SGD of a rate that keeps the gradients of its last step, as they came out of clipping."""

    def step(self, closure=None):
        loss = closure()
        self.kept = torch.cat([p.grad.flatten().clone() for group in self.param_groups for p in group["params"]])
        super().step()
        return loss


def keeper(lr: float = 0.0) -> Callable[..., Keeper]:
    return lambda named: Keeper([parameter for _, parameter in named], lr=lr)


class Batches:
    """A loader of ready batches; of several processes each has its own list."""

    def __init__(self, *of_ranks: Sequence[Any]) -> None:
        self.of_ranks = of_ranks

    def __len__(self) -> int:
        return len(self.of_ranks[0])

    def __iter__(self) -> Iterator[Any]:
        rank = torch.distributed.get_rank() if len(self.of_ranks) > 1 else 0
        yield from self.of_ranks[rank]


class ListLogger(DummyLogger):
    """Keeps what was logged: logged["name"] lists (step, value)."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[str, list[tuple[int, float]]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.logged.setdefault(name, []).append((step, float(value)))

    def __getitem__(self, name: str) -> list[float]:
        return [value for _, value in self.logged[name]]


def trainer(**settings: Any) -> L.Trainer:
    """A silent trainer on one CPU process; it needs max_steps or max_epochs."""
    defaults = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_model_summary": False, "max_epochs": -1,
        "enable_progress_bar": False, "enable_checkpointing": False, "log_every_n_steps": 1,
        "num_sanity_val_steps": 0, "use_distributed_sampler": False, "plugins": [AtomicCheckpointIO()],
    }  # fmt: skip
    return L.Trainer(**(defaults | settings))


def fit(stage: Stage, batches: Batches | Sequence[Any], **settings: Any) -> L.Trainer:
    """Trains on ready batches, without validation; returns the trainer."""
    run = trainer(limit_val_batches=0, **settings)
    quiet_fit(run, stage, Batches(batches) if isinstance(batches, Sequence) else batches, Batches([]))
    return run


def quiet_fit(run: L.Trainer, *args: Any, **kwargs: Any) -> None:
    """`run.fit`, where frozen networks in eval mode are no surprise."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
        run.fit(*args, **kwargs)


def attached(stage: Stage, **settings: Any) -> Stage:
    """The stage with its models built and a trainer to ask, outside of any fit."""
    stage.trainer = trainer(max_steps=1, **settings)
    stage.configure_model()
    return stage


def gradient(stage: Stage, batches: Sequence[Any]) -> Tensor:
    """The flat gradient of one optimizer step over micro-batches, from a real fit; needs a `keeper` optimizer."""
    run = fit(stage, batches, max_steps=1, accumulate_grad_batches=len(batches))
    assert run.global_step == 1
    return run.optimizers[0].kept


def flat_gradient(stage: Stage, loss: Tensor) -> Tensor:
    """Gradient of a loss in all trainable parameters, 0 where it does not reach."""
    parameters = [parameter for _, parameter in stage.named_groups()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, found)])


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def lm_batch(documents: Sequence[tuple[list[int], list[int]]], *, filler: int = PAD, row_length: int = 96) -> LMBatch:
    """(prompt, answer) documents, packed; the answer's tokens are the targets that count."""
    rows = pack([[prompt + answer] for prompt, answer in documents], row_length=row_length, filler=filler)
    targets = torch.full_like(rows.input_ids, filler)
    mask = torch.zeros_like(targets, dtype=torch.bool)
    for (prompt, answer), [(start, _)] in zip(documents, rows.spans):
        places = slice(start + len(prompt) - 1, start + len(prompt) + len(answer) - 1)
        targets.view(-1)[places] = torch.tensor(answer, dtype=torch.int64)
        mask.view(-1)[places] = True
    return LMBatch(rows.input_ids, targets, mask, rows.layout, mask.sum())


Ranking = tuple[list[int], list[list[int]], list[float]]


def preference_batch(rankings: Sequence[Ranking], *, tails: Sequence[int] = (), row_length: int = 96):
    """(prompt, answers, ranks), packed; `tails`: tokens put after every answer's end, which its score is not to see."""
    documents = [[prompt, *(answer + list(tails) for answer in answers)] for prompt, answers, _ in rankings]
    rows = pack(documents, row_length=row_length, filler=PAD)
    spans = [span for spans in rows.spans for span in spans[1:]]
    lengths = torch.tensor([length - len(tails) for _, length in spans])
    return PreferenceBatch(
        rows.input_ids, rows.layout,
        last=torch.tensor([start for start, _ in spans]) + lengths - 1,
        prompt_last=torch.tensor([sum(spans[0]) - 1 for spans in rows.spans for _ in spans[1:]]),
        groups=torch.tensor([g for g, (_, answers, _) in enumerate(rankings) for _ in answers]),
        ranks=torch.tensor([rank for _, _, ranks in rankings for rank in ranks]),
        lengths=lengths, finished=torch.ones_like(lengths, dtype=torch.bool),
    )  # fmt: skip


PROMPTS = [
    {"ids": [BOS, *ids], "prompt": "", "reference": None}
    for ids in ([3], [4, 5, 6], [7, 8], [9, 3, 10, 11], [12, 12], [5, 13, 14, 3, 8], [15], [6, 4])
]


def ppo(kind: type[PPO] = PPO, **changes: Any) -> PPO:
    """PPO on 16 ids; an untrained policy ends most of its six-token responses."""
    settings: dict[str, Any] = dict(
        policy=causal, reward=scalar, value=scalar, optimizer=adam(1e-3), value_lr=1e-3, schedule=CONSTANT,
        sampling=Sampling(max_new_tokens=6), stop_ids=STOPS, pad_id=PAD, beta=0.1, epochs=2, minibatches=2,
        missing_end_score=-3.0, kl_target=None, kl_horizon=10_000, gamma=1.0, lam=0.95, clip=0.2, value_clip=0.2,
        value_coefficient=0.1, target_kl=None, pretraining_coefficient=0.0,
    )  # fmt: skip
    return kind(**(settings | changes))


def fit_ppo(stage: PPO, max_steps: int, *, prompts: Sequence[dict] = PROMPTS, per_rollout: int = 8, **settings: Any):
    """Trains on prompts; returns the trainer."""
    run = trainer(max_steps=max_steps, limit_val_batches=0, **settings)
    loader = ExperienceLoader(prompts, prompts_per_rollout=per_rollout, seed=0, trainer=run)
    quiet_fit(run, stage, loader, Batches([]))
    assert run.global_step == max_steps
    return run
