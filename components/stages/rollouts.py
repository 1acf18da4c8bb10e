"""Base of the stages that learn from the policy's own samples: responses to prompts, packed for models to read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from components.generation.generate import Samples, Sampling, generate
from components.generation.rollout import PackedResponses, packed
from components.models.activations import cached_bytes
from components.models.heads import CausalLM, ScalarModel
from components.models.shards import unsharded
from components.stages.stage import Stage
from components.system.limits import Count
from components.training.clock import Clock
from components.training.contract import Spent
from components.training.self_checks import check_responses

Further = Callable[[int], list[dict[str, Any]]]  # takes n more prompts
SHOWN = 8  # responses in the table of samples


class RolloutStage(Stage):
    """Samples responses to prompts. A subclass defines collect, minibatch_of and compute_loss.

    samples_per_prompt: responses to each prompt. epochs, minibatches: passes over a rollout, and the number of
    minibatches in each. rollout_width: the most responses that are sampled at a time, which bounds the memory of
    generation; the others wait, and take the rows of those that finish. None: all at once.

    rollout/ (before any update on it; val/ has the same on held-out prompts)
    entropy               mean nats per token; falls slowly; an early collapse to ~0 means too large a step
    length, finished      tokens per response; share of responses that ended by themselves, healthy 0.9 to 1
    seconds_*             mean over processes, of generate, update (on the previous rollout), other
    gold, correct         true quality of the same responses by the built-in world's judge
    wrong_name            share of responses that name a person other than the one asked about, by the same judge
    """

    policy: CausalLM
    rollout_is_spent = False  # whether the loader drops the rest of the current rollout
    mixes_text = False  # whether minibatches can come with pretraining text
    samples_at_hand = True

    def __init__(
        self,
        policy: Callable[[], CausalLM],
        sampling: Sampling,
        stop_ids: Sequence[int],
        pad_id: int,
        epochs: Count = 4,
        minibatches: Count = 4,
        samples_per_prompt: int = 1,
        rollout_width: Count | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if sampling.temperature <= 0 or sampling.top_k or sampling.top_p < 1:
            raise ValueError(
                "stage.sampling: rollouts must be sampled from the policy itself (temperature > 0, top_k 0, top_p 1), "
                f"got {sampling}; a filtered distribution is not the one that is trained"
            )
        self.policy_builder = policy
        self.sampling, self.stop_ids, self.pad_id = sampling, tuple(stop_ids), pad_id
        self.epochs, self.minibatches, self.samples_per_prompt = epochs, minibatches, samples_per_prompt
        self.rollout_width = rollout_width
        self.max_new_tokens, self.steps_per_rollout = sampling.max_new_tokens, epochs * minibatches
        self._spent = Spent()
        self.clock = Clock()
        self._checked = False
        self._latest: dict[str, Tensor] = {}  # of the latest rollout, for histograms
        self._shown: list[tuple[list[int], list[int], dict[str, float]]] = []

    def on_fit_start(self) -> None:
        """Raises ValueError if the data has text that this stage does not train on, or prompts that leave the policy no
        room for a response."""
        if self.data.pretraining is not None and not self.mixes_text:
            raise ValueError(
                f"data.pretraining: {type(self).__name__} does not train on pretraining text, only PPO does. Set "
                "data.pretraining=null (data=world_prompts instead of data=world_prompts_ptx), or stage=ppo"
            )
        self._check_room()
        super().on_fit_start()

    def _check_room(self) -> None:
        """Raises ValueError if the longest prompt and its response have more tokens than the policy reads."""
        held_out = self.data.val_examples if self.trainer.limit_val_batches else ()
        tokens = [getattr(examples, "tokens", ()) for examples in (self.data.train_examples, held_out)]
        prompt = max((int(max(lengths)) for lengths in tokens if len(lengths)), default=0)
        room, response = self.policy.config.longest, self.sampling.max_new_tokens
        if prompt + response > room:
            shorter = f"data.max_prompt={room - response}, " if room > response else ""
            raise ValueError(
                f"the policy reads at most {room} tokens, but the longest prompt ({prompt} tokens) and its response "
                f"(stage.sampling.max_new_tokens: {response}) have up to {prompt + response}. Set {shorter}a smaller "
                f"stage.sampling.max_new_tokens, or context={prompt + response} if the model has as many positions"
            )

    def repeated(self, prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Each prompt samples_per_prompt times in a row."""
        return [prompt for prompt in prompts for _ in range(self.samples_per_prompt)]

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Runs without gradients or dropout, in the trainer's precision."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad(), unsharded(self), self.trainer.precision_plugin.forward_context():
                yield
        finally:
            self.train(was_training)

    def sample(self, prompts: list[list[int]], generator: torch.Generator) -> Samples:
        """A response to each of N prompts; every samples_per_prompt prompts in a row are equal."""
        samples = generate(
            self.policy,
            prompts[:: self.samples_per_prompt],
            self.sampling,
            stop_ids=self.stop_ids,
            pad_id=self.pad_id,
            generator=generator,
            samples_per_prompt=self.samples_per_prompt,
            width=self.rollout_width,
        )
        self.clock.mark("generate")
        return samples

    def packed_rows(self, prompts: list[dict[str, Any]], ids: Tensor, mask: Tensor, rows: Tensor) -> PackedResponses:
        """Packs the responses `rows` (M,) int64 of ids and mask (N, R), after their prompts, for the models to read."""
        tensors, asked = (ids[rows.to(ids.device)], mask[rows.to(mask.device)]), [prompts[i]["ids"] for i in rows]
        return packed(asked, *tensors, row_length=self.row_length, pad_id=self.pad_id)

    def packed_parts(self, prompts: list[dict[str, Any]], ids: Tensor, mask: Tensor) -> list[PackedResponses]:
        """All responses (N, R) packed for the models to read, in one part per minibatch."""
        shares = torch.arange(len(prompts)).tensor_split(min(self.minibatches, len(prompts)))
        return [self.packed_rows(prompts, ids, mask, rows) for rows in shares]

    @property
    def row_length(self) -> int:
        """The most tokens in a packed row."""
        return self.policy.config.longest

    def largest_batch(self) -> int:
        """Tokens of a minibatch: its prompts, each read once, the responses to them, and any pretraining text."""
        data, prompts = self.data, self.data.prompts_per_rollout or 0
        responses = -(-prompts * self.samples_per_prompt // self.minibatches)
        text = data.pretraining.largest_batch() if data.pretraining is not None else 0
        return data.largest_prompts(min(prompts, responses)) + responses * self.sampling.max_new_tokens + text

    def mean_batch(self) -> float | None:
        return None

    def bytes_to_sample(self) -> float:
        """Of the policy's weights copied in the layout for sampling (CausalLM.new_cache), and of the keys and values of
        the responses that are sampled at a time, at their longest, with their prompts."""
        config, width = self.policy.config, self.width_of_products()
        rows = (self.data.prompts_per_rollout or 0) * self.samples_per_prompt
        rows = min(rows, self.rollout_width or rows)
        tokens = rows * (self.data.largest_prompts(1) + self.sampling.max_new_tokens)
        cached = cached_bytes(config, width=width, on_cpu=self.device.type == "cpu")
        return float(config.num_parameters() * width + tokens * cached)

    def count_spent(self, prompts: list[list[int]], mask: Tensor) -> None:
        """Adds a rollout's cost: a forward pass to sample, and one of every network."""
        self._spent = self._spent._replace(generated_tokens=self._spent.generated_tokens + int(mask.sum()))
        self.count_read(prompts, mask, [self.policy, *self.networks().values()])

    def count_read(self, prompts: list[list[int]], mask: Tensor, readers: Sequence[CausalLM | ScalarModel]) -> None:
        """Adds the cost of a forward pass of each of `readers` on responses and their prompts. Equal prompts count
        once."""
        read = int(mask.sum()) + sum(map(len, prompts[:: self.samples_per_prompt]))
        flops = read * sum(network.flops_per_token.forward for network in readers)
        self._spent = self._spent._replace(flops=self._spent.flops + flops)

    def spent(self) -> Spent:
        return self._spent

    def log_seconds(self) -> None:
        """Logs where the time since the last call went, mean over processes."""
        self.clock.mark("other")
        seconds = self.clock.read()
        means = self.all_reduced(torch.tensor(list(seconds.values()))) / self.trainer.world_size
        self.log_now({f"rollout/seconds_{name}": float(mean) for name, mean in zip(seconds, means, strict=True)})

    def show(
        self, prompts: list[dict[str, Any]], responses: Sequence[list[int]], of_responses: dict[str, Tensor]
    ) -> None:
        """Keeps the first responses for the table of samples, each with its numbers, of_responses (N,) by name."""
        columns = {name: values[:SHOWN].tolist() for name, values in of_responses.items()}
        self._shown = [
            (prompt["ids"], response, {name: column[i] for name, column in columns.items()})
            for i, (prompt, response) in enumerate(zip(prompts[:SHOWN], responses[:SHOWN], strict=True))
        ]

    def histograms(self) -> dict[str, Tensor]:
        """Distributions within the latest rollout of all processes."""
        return {name: self.gathered(values) for name, values in self._latest.items()}

    def sample_texts(self) -> list[dict[str, Any]]:
        """The first responses of the latest rollout, for the table of samples."""
        tokenizer = self.data.tokenizer
        if tokenizer is None:
            return []
        decode = tokenizer.decode
        return [
            {"prompt": decode(prompt), "response": decode(response, skip_special=False), **numbers}
            for prompt, response, numbers in self._shown
        ]

    def check_of_responses(self, ids: Tensor, mask: Tensor, finished: Tensor) -> str:
        """Checks that sampled responses are valid; returns the line that reports it. Raises SelfCheckError if not."""
        return check_responses(
            ids,
            mask,
            finished,
            vocab_size=self.policy.config.vocab_size,
            unused_ids=self.policy.config.unused_ids,
            stop_ids=self.stop_ids,
        )

    def sum_over_ranks(self, total: Tensor) -> Tensor:
        """`total` summed over all processes, in its own dtype."""
        return self.all_reduced(total).to(total.dtype)

    def exportable(self) -> CausalLM:
        return self.policy
