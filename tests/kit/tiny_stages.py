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
from torch import Tensor, nn

from components.data.batches import LMBatch, PreferenceBatch, UnpairedBatch, packed_answers
from components.data.loading.experience import ExperienceLoader
from components.generation.generate import Samples, Sampling
from components.generation.rollout import Experience, Minibatch
from components.models.attention.layout import Layout, pack
from components.models.config import GPTConfig
from components.models.heads import CausalLM, ScalarModel, new_causal_lm, scalar_from_causal
from components.stages.distill import Distill
from components.stages.dpo import DPO
from components.stages.grpo import GRPO
from components.stages.kto import KTO
from components.stages.onpolicy import OnPolicy
from components.stages.orpo import ORPO
from components.stages.ppo import PPO
from components.stages.rejection import Rejection
from components.stages.rloo import RLOO
from components.stages.rollouts import RolloutStage
from components.stages.simpo import SimPO
from components.stages.stage import Stage
from components.training.checkpoint_io import AtomicCheckpointIO
from components.training.optimizers import adamw
from components.training.schedules import schedule

PAD, BOS, END = 0, 1, 2
STOPS = (END, 10, 11, 12)  # of on-policy stages: an untrained policy draws one of four about as often as it should
CONSTANT = partial(schedule, "constant", warmup_steps=0, final_fraction=1.0)


def config(vocab_size: int = 16, **changes: Any) -> GPTConfig:
    """Random weights of this spread give logits that differ by whole units."""
    shape = dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=96,
        initializer_range=0.2,
    )
    return GPTConfig(vocab_size=vocab_size, **(shape | changes))


def causal(seed: int = 0, vocab_size: int = 16, **changes: Any) -> CausalLM:
    torch.manual_seed(seed)
    return new_causal_lm(config(vocab_size, **changes))


def another_reference(kind: type[Stage]) -> type[Stage]:
    """The stage with a reference that is not its first policy."""

    class AnotherReference(kind):  # type: ignore[misc, valid-type]
        def configure_model(self) -> None:
            super().configure_model()
            self.adopt("reference", causal(seed=5))

    return AnotherReference


def scalar(seed: int = 1, vocab_size: int = 16, **changes: Any) -> ScalarModel:
    return scalar_from_causal(causal(seed, vocab_size, **changes))


def adam(lr: float, weight_decay: float = 0.0) -> Callable[..., torch.optim.Optimizer]:
    return partial(adamw, lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay)


class Keeper(torch.optim.SGD):
    """SGD of a rate that keeps the gradients of its last step, as they came out of clipping."""

    def step(self, closure=None):
        loss = closure() if closure else None  # one of several that are joined gets none
        self.kept = torch.cat([p.grad.flatten().clone() for group in self.param_groups for p in group["params"]])
        super().step()
        return loss


def keeper(lr: float = 0.0) -> Callable[..., Keeper]:
    return lambda named: Keeper([parameter for _, parameter in named], lr=lr)


def kept(run: L.Trainer) -> Tensor:
    """What the keepers of a run kept."""
    [optimizer] = run.optimizers
    return torch.cat([part.kept for part in getattr(optimizer, "parts", [optimizer])])


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
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_model_summary": False,
        "max_epochs": -1,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "plugins": [AtomicCheckpointIO()],
    }
    return L.Trainer(**(defaults | settings))


def fit(stage: Stage, batches: Batches | Sequence[Any], **settings: Any) -> L.Trainer:
    """Trains on ready batches, without validation; returns the trainer."""
    run = trainer(limit_val_batches=0, **settings)
    quiet_fit(run, stage, Batches(batches) if isinstance(batches, Sequence) else batches, Batches([]))
    return run


def quiet_fit(run: L.Trainer, *args: Any, **kwargs: Any) -> None:
    """`run.fit`, where frozen networks in eval mode are no surprise, nor views of what sharded ones return."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
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
    return kept(run)


def flat_gradient(stage: Stage, loss: Tensor) -> Tensor:
    """Gradient of a loss in all trainable parameters, 0 where it does not reach."""
    parameters = [parameter for _, parameter in stage.named_groups()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, found)])


def slow_logprob(model: CausalLM, prompt: list[int], response: list[int]) -> Tensor:
    """Log-probability of a response, the end token too: one forward pass for every token, each on a row of its own."""
    texts = [prompt + response[:t] for t in range(len(response))]
    return sum(model(torch.tensor([ids]))[0, -1].log_softmax(-1)[token] for ids, token in zip(texts, response))


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
    return LMBatch.of(rows.input_ids, targets, mask, rows.layout, mask.sum())


Ranking = tuple[list[int], list[list[int]], list[float]]


def preference_batch(rankings: Sequence[Ranking], *, tails: Sequence[int] = (), row_length: int = 96):
    """(prompt, answers, ranks), packed; `tails`: tokens put after every answer's end, which its score is not to see."""
    documents = [[prompt, *(answer + list(tails) for answer in answers)] for prompt, answers, _ in rankings]
    rows = pack(documents, row_length=row_length, filler=PAD)
    spans = [span for spans in rows.spans for span in spans[1:]]
    lengths = torch.tensor([length - len(tails) for _, length in spans])
    return PreferenceBatch.of(
        input_ids=rows.input_ids,
        layout=rows.layout,
        last=torch.tensor([start for start, _ in spans]) + lengths - 1,
        prompt_last=torch.tensor([sum(spans[0]) - 1 for spans in rows.spans for _ in spans[1:]]),
        groups=torch.tensor([g for g, (_, answers, _) in enumerate(rankings) for _ in answers]),
        ranks=torch.tensor([rank for _, _, ranks in rankings for rank in ranks]),
        lengths=lengths,
        finished=torch.ones_like(lengths, dtype=torch.bool),
    )


Labeled = tuple[list[int], list[int], bool, list[int]]


def unpaired_batch(records: Sequence[Labeled], *, row_length: int = 96) -> UnpairedBatch:
    """(prompt, answer, whether it is desirable, mismatched answer), packed."""
    documents = [[prompt, answer, other] for prompt, answer, _, other in records]
    fields = packed_answers(documents, context=row_length, filler=PAD)
    return UnpairedBatch.of(desirable=torch.tensor([desirable for _, _, desirable, _ in records]), **fields)


PROMPTS = [
    {"ids": [BOS, *ids], "prompt": "", "reference": None}
    for ids in ([3], [4, 5, 6], [7, 8], [9, 3, 10, 11], [12, 12], [5, 13, 14, 3, 8], [15], [6, 4])
]


def on_policy(**own: Any) -> dict[str, Any]:
    """Settings of an on-policy stage on 16 ids; an untrained policy ends most of its six-token responses."""
    return (
        dict(
            policy=causal,
            reward=scalar,
            optimizer=adam(1e-3),
            schedule=CONSTANT,
            sampling=Sampling(max_new_tokens=6),
            stop_ids=STOPS,
            pad_id=PAD,
            epochs=2,
            minibatches=2,
            missing_end_score=-3.0,
        )
        | own
    )


def ppo(kind: type[PPO] = PPO, **changes: Any) -> PPO:
    settings = on_policy(
        value=scalar,
        value_lr=1e-3,
        beta=0.1,
        kl_target=None,
        kl_horizon=10_000,
        gamma=1.0,
        lam=0.95,
        clip=0.2,
        value_clip=0.2,
        value_coefficient=0.1,
        target_kl=None,
        pretraining_coefficient=0.0,
    )
    return kind(**(settings | changes))


class Mixed(PPO):
    """PPO on batches that hold text already, from any loader."""

    def on_fit_start(self) -> None: ...


def grpo(kind: type[GRPO] = GRPO, **changes: Any) -> GRPO:
    return kind(**(on_policy(variant="grpo", beta=0.1, clip=0.2, refill=0, samples_per_prompt=4) | changes))


def rloo(kind: type[RLOO] = RLOO, **changes: Any) -> RLOO:
    return kind(**(on_policy(beta=0.1, clip=0.2, samples_per_prompt=4) | changes))


def rejection(kind: type[Rejection] = Rejection, **changes: Any) -> Rejection:
    return kind(**(on_policy(samples_per_prompt=4) | changes))


def distill(kind: type[Distill] = Distill, **changes: Any) -> Distill:
    """The teacher has a width and weights of its own."""
    settings = on_policy(teacher=lambda: causal(5, hidden_size=16), divergence="reverse") | changes
    return kind(**{name: value for name, value in settings.items() if name not in ("reward", "missing_end_score")})


def dpo(kind: type[DPO] = DPO, **changes: Any) -> DPO:
    settings = dict(policy=causal, optimizer=adam(1e-3), schedule=CONSTANT, beta=0.1, variant="sigmoid")
    return kind(**(settings | changes))


def kto(kind: type[KTO] = KTO, **changes: Any) -> KTO:
    return kind(**(dict(policy=causal, optimizer=adam(1e-3), schedule=CONSTANT, beta=0.1) | changes))


def simpo(**changes: Any) -> SimPO:
    return SimPO(**(dict(policy=causal, optimizer=adam(1e-3), schedule=CONSTANT, beta=2.0, margin=0.5) | changes))


def orpo(**changes: Any) -> ORPO:
    return ORPO(**(dict(policy=causal, optimizer=adam(1e-3), schedule=CONSTANT, weight=0.1) | changes))


def fit_prompts(stage: RolloutStage, max_steps: int, *, prompts=PROMPTS, per_rollout: int = 8, **settings: Any):
    """Trains an on-policy stage on prompts; returns the trainer."""
    run = trainer(max_steps=max_steps, limit_val_batches=0, **settings)
    loader = ExperienceLoader(prompts, prompts_per_rollout=per_rollout, seed=0, trainer=run)
    quiet_fit(run, stage, loader, Batches([]))
    assert run.global_step == max_steps
    return run


def moved(stage: OnPolicy, by: float = 0.05) -> OnPolicy:
    """The stage, its policy some way from its reference."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in stage.policy.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return stage


def given(kind: type[RolloutStage], *responses: list[int]) -> type[RolloutStage]:
    """A stage that samples these responses; one ends by itself if its last token is a stop."""
    width = max(map(len, responses))
    sampled = Samples(
        torch.tensor([one + [PAD] * (width - len(one)) for one in responses]),
        torch.tensor([[t < len(one) for t in range(width)] for one in responses]),
        torch.tensor([one[-1] in STOPS for one in responses]),
    )
    sample = lambda self, prompts, generator: Samples(*(tensor.clone() for tensor in sampled))
    return type(f"Given{kind.__name__}", (kind,), {"sample": sample})


def by_prompt(responses: dict[int, list[list[int]]]) -> type[GRPO]:
    """A stage that samples the responses listed for a prompt, which its last id names."""

    class ByPrompt(GRPO):
        def sample(self, prompts, generator):
            chosen = [responses[prompt[-1]] for prompt in prompts[:: self.samples_per_prompt]]
            return given(GRPO, *(one for group in chosen for one in group)).sample(self, prompts, generator)

    return ByPrompt


def experience_of(rewards: Tensor, mask: Tensor, **fields: Tensor) -> Experience:
    """Experience with these rewards (N,), mask (N, R) and other fields, and 0 in the rest."""
    zeros = torch.zeros(mask.shape)
    defaults = dict(response_ids=zeros.long(), finished=torch.ones_like(rewards, dtype=torch.bool), kl=zeros)
    defaults |= dict.fromkeys(("old_logprobs", "reference_logprobs", "entropy"), zeros)
    return Experience(rewards=rewards, mask=mask, **(defaults | fields))


def garbled(batch: Minibatch, names: Sequence[str], garbage: float) -> Minibatch:
    """The minibatch with garbage in the masked entries of the fields of these names and of the response's ids."""
    ids = batch.packed.response_ids.masked_fill(~batch.mask, 999)
    fields = {name: getattr(batch, name).masked_fill(~batch.mask, garbage) for name in names}
    return batch._replace(packed=batch.packed._replace(response_ids=ids), **fields)


class CountsSevens(nn.Module):
    """Scores a response by how many of its tokens so far are 7."""

    def forward(self, input_ids: Tensor, layout: Layout) -> Tensor:
        same = layout.segments[:, :, None] == layout.segments[:, None, :]
        return ((input_ids == 7)[:, None, :] & same.tril()).sum(-1).float()


def with_reward(stage: OnPolicy, reward: nn.Module) -> OnPolicy:
    stage.configure_model()
    stage.adopt("reward", reward)
    return stage
