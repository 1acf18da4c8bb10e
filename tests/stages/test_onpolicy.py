"""From sampled responses to what on-policy stages learn from: scores, their scale, beta, advantages."""

import functools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from components.data.data_contract import DataContract
from components.functional.seeding import seeded
from components.generation.generate import Samples, Sampling
from components.generation.rollout import Minibatch
from components.models.flops import flops_per_token
from components.rewards.table_reward import TableReward
from components.stages.grpo import GRPO
from components.stages.onpolicy import OnPolicy
from components.stages.ppo import PPO
from components.training.contract import RunContext, Spent
from tests.kit.tiny_stages import (
    END,
    PAD,
    PROMPTS,
    STOPS,
    Batches,
    ListLogger,
    attached,
    config,
    fit_prompts,
    given,
    grpo,
    moved,
    ppo,
    quiet_fit,
    rejection,
    rloo,
    same_bits,
    slow_logprob,
    trainer,
    weights,
)

GIVEN = Samples(
    torch.tensor([[7, END, PAD], [3, 4, 5], [END, PAD, PAD], [6, 6, END]]),
    torch.tensor([[True, True, False], [True, True, True], [True, False, False], [True, True, True]]),
    torch.tensor([True, False, True, True]),
)


class Given(PPO):
    """Four responses that are known in advance, the second without an end."""

    def sample(self, prompts, generator):
        return Samples(*(tensor.clone() for tensor in GIVEN))


def collected(**changes) -> tuple[PPO, ListLogger, Minibatch]:
    """The stage, what it logged, and its one minibatch in sampling order."""
    logger = ListLogger()
    stage = attached(ppo(Given, epochs=1, minibatches=1, **changes), logger=logger)
    [batch] = stage.collect(PROMPTS[:4], 0)
    return stage, logger, batch


def raw_scores(stage: PPO) -> Tensor:
    """The unscaled scores of the given responses, each read in a row of its own."""
    with torch.no_grad():
        texts = [p["ids"] + row[keep].tolist() for p, row, keep in zip(PROMPTS, GIVEN.ids, GIVEN.mask)]
        return torch.stack([stage.reward(torch.tensor([ids]))[0, -1] for ids in texts])


def test_a_response_without_an_end_gets_the_fixed_score_and_the_others_the_scaled_one():
    stage, logger, _ = collected(missing_end_score=-3.0)
    scaled = raw_scores(stage) * stage.score_scale
    expected = (scaled[0] - 3.0 + scaled[2] + scaled[3]) / 4
    assert logger["rollout/score"] == [pytest.approx(float(expected), abs=1e-5)]
    assert logger["rollout/finished"] == [0.75]
    assert logger["rollout/length"] == [2.25]


def test_the_scale_is_measured_on_the_first_rollout_alone_and_gives_unit_deviation():
    stage, _, _ = collected()
    assert (raw_scores(stage) * stage.score_scale).std(correction=0) == pytest.approx(1.0, abs=1e-5)
    measured = stage.score_scale.clone()
    with torch.no_grad():
        stage.reward.score.weight.mul_(10)
    stage.collect(PROMPTS[:4], 1)
    assert torch.equal(stage.score_scale, measured)


def test_the_value_model_starts_as_the_scaled_reward_model():
    """Values are read at the token before each token; the recorded ones and the trained model's agree."""
    stage, _, batch = collected()
    texts = [p["ids"] + row[keep].tolist() for p, row, keep in zip(PROMPTS, GIVEN.ids, GIVEN.mask)]
    for n, ids in enumerate(texts):
        length = int(GIVEN.mask[n].sum())
        with torch.no_grad():
            rewards = stage.reward(torch.tensor([ids]))[0, -length - 1 : -1] * stage.score_scale
            values = stage.value(torch.tensor([ids]))[0, -length - 1 : -1]
        torch.testing.assert_close(values, rewards)
        torch.testing.assert_close(batch.old_values[n, :length], rewards)


def test_on_a_gpu_too_the_scale_does_not_depend_on_the_mean_of_the_scores(monkeypatch):
    """Around 1000, squares are 1e6 times as large as their variance, so fp32 has one digit of it left."""
    scores = torch.randn(64, generator=torch.Generator().manual_seed(0)) + 1000
    stage = attached(ppo())
    monkeypatch.setattr(stage, "reduced", lambda numbers, how: numbers)
    monkeypatch.setattr(PPO, "device", torch.device("cuda"))
    OnPolicy.calibrate(stage, None, scores)
    assert float(stage.score_scale) == pytest.approx(1 / float(scores.double().std(correction=0)), rel=1e-6)


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_an_error_that_names_the_model_the_prompt_and_the_response(score):
    class Broken(nn.Module):
        def __init__(self, path):
            super().__init__()

        def forward(self, input_ids, layout):
            return torch.where(input_ids == 4, score, 0.5)

    stage = attached(ppo(given(PPO, [7, END], [3, 4]), reward=functools.partial(Broken, path="logs/x/rm/export")))
    asked = [prompt | {"prompt": [{"role": "user", "content": name}]} for prompt, name in zip(PROMPTS, "ab")]
    with pytest.raises(
        ValueError, match=rf"(?s)at logs/x/rm/export gave 1 of 2.*{score} on.*prompt: .b.*response: .*3, 4"
    ):
        stage.collect(asked, 0)


def test_scores_that_are_all_alike_are_refused():
    class Constant(nn.Module):
        def forward(self, input_ids, layout):
            return torch.full(input_ids.shape, 0.5)

    stage = attached(ppo())
    stage.adopt("reward", Constant())
    with pytest.raises(ValueError, match="gives every response the same score"):
        stage.collect(PROMPTS, 0)


def test_returns_and_advantages_are_those_of_a_slow_loop():
    """γ 0.9, λ 0.8, and a reference that has been left: r_t = −β·kl_t, plus the score at the last token."""
    stage = moved(attached(ppo(Given, epochs=1, minibatches=1, gamma=0.9, lam=0.8, beta=0.3)))
    [batch] = stage.collect(PROMPTS[:4], 1)  # not rollout 0, where policy and reference have to agree
    scores = raw_scores(stage) * stage.score_scale
    scores[1] = -3.0
    advantages = []
    for n in range(4):
        length = int(GIVEN.mask[n].sum())
        kl = batch.old_logprobs[n] - batch.reference_logprobs[n]
        assert kl[:length].abs().min() > 1e-3
        values = batch.old_values[n].tolist()[:length] + [0.0]
        following = 0.0
        for t in reversed(range(length)):
            reward = -0.3 * float(kl[t]) + (float(scores[n]) if t == length - 1 else 0.0)
            following = reward + 0.9 * values[t + 1] - values[t] + 0.9 * 0.8 * following
            assert float(batch.returns[n, t]) == pytest.approx(following + values[t], abs=1e-5)
            advantages.append(((n, t), following))
    numbers = torch.tensor([value for _, value in advantages], dtype=torch.float64)
    whitened = (numbers - numbers.mean()) / (numbers.var(correction=0) + 1e-8).sqrt()
    for ((n, t), _), expected in zip(advantages, whitened.tolist()):
        assert float(batch.advantages[n, t]) == pytest.approx(expected, abs=1e-5)
    assert (batch.advantages[~batch.mask] == 0).all()


def test_adaptive_beta_follows_the_known_path():
    """512 responses, target 6, horizon 10000, from 0.15 with KL 12, then 3, then 6.5."""
    stage = attached(ppo(beta=0.15, kl_target=6.0, kl_horizon=10_000))
    for kl, expected in ((12.0, 0.151536), (3.0, 0.1499842714), (6.5, 0.1506242043)):
        stage.adapt_beta(torch.full((512, 4), kl / 4))
        assert float(stage.beta) == pytest.approx(expected, abs=1e-7)


def test_an_adaptive_beta_cannot_start_at_zero():
    with pytest.raises(ValueError, match="stage.beta: got 0 with stage.kl_target=6.0.*stage.beta=0.1"):
        ppo(beta=0.0, kl_target=6.0)


def test_returns_that_are_all_equal_have_no_explained_variance():
    """One response of one token has one return; of two with different scores, the values explain something."""
    logger = ListLogger()
    one = attached(ppo(given(PPO, [END]), score_scale=1.0, epochs=1, minibatches=1), logger=logger)
    one.collect(PROMPTS[:1], 0)
    assert "rollout/explained_variance" not in logger.logged
    _, logger, _ = collected()
    [explained] = logger["rollout/explained_variance"]
    assert explained < 1


def test_beta_moves_after_the_rollout_it_was_used_in_and_not_at_all_without_a_target():
    adaptive, fixed = ListLogger(), ListLogger()
    fit_prompts(ppo(beta=0.1, kl_target=6.0, kl_horizon=80, epochs=1, minibatches=1), 3, logger=adaptive)
    fit_prompts(ppo(beta=0.1, epochs=1, minibatches=1), 3, logger=fixed)
    assert adaptive["rollout/beta"] == pytest.approx([0.1, 0.098, 0.09604])  # KL near 0: ·(1 − 0.2·8/80) a rollout
    assert fixed["rollout/beta"] == pytest.approx([0.1] * 3)


KINDS = pytest.mark.parametrize("make", [ppo, grpo, rloo, rejection])


@KINDS
def test_collecting_takes_no_gradient_and_leaves_the_modes_as_they_were(make):
    stage = attached(make())
    before = {name: module.training for name, module in stage.named_modules()}
    seen = []
    for network in stage.children():
        network.model.register_forward_pre_hook(lambda trunk, _: seen.append((trunk.training, torch.is_grad_enabled())))
    asked = [prompt for prompt in PROMPTS for _ in range(stage.samples_per_prompt)]
    with stage.collecting():
        stage.assess(asked, stage.sample([prompt["ids"] for prompt in asked], seeded("cpu", 0)))
    assert set(seen) == {(False, False)}
    assert {name: module.training for name, module in stage.named_modules()} == before
    assert stage.policy.training and not stage.reference.training and not stage.reward.training
    parts = stage.collect(PROMPTS, 0)
    assert not any(tensor.requires_grad for part in parts for tensor in part.tensors().values())


@pytest.mark.parametrize(("make", "count"), [(ppo, 8), (grpo, 32), (rloo, 32), (rejection, 8)])
def test_every_epoch_hands_out_every_response_once_in_another_order(make, count):
    """Of rejection the best of four to each prompt."""
    stage = attached(make(epochs=2, minibatches=3))
    parts = stage.collect(PROMPTS, 0)
    texts = [[tuple(row[keep].tolist()) for row, keep in zip(p.packed.response_ids, p.mask)] for p in parts]
    first, second = sum(texts[:3], []), sum(texts[3:], [])
    assert sorted(first) == sorted(second) and len(first) == count
    assert first != second


def test_a_finished_response_ends_in_its_only_stop_token():
    stage = attached(ppo(sampling=Sampling(max_new_tokens=8)))
    sampled = stage.sample([prompt["ids"] for prompt in PROMPTS * 4], seeded("cpu", 1))
    assert 0 < sampled.finished.float().mean() < 1
    for ids, mask, finished in zip(*sampled):
        response = ids[mask].tolist()
        assert [token in STOPS for token in response] == [False] * (len(response) - 1) + [bool(finished)]
        assert finished or len(response) == 8


def test_a_rollout_in_few_rows_has_the_responses_of_one_in_many():
    asked = [prompt["ids"] for prompt in PROMPTS * 4]
    few, many, at_once = (
        attached(ppo(sampling=Sampling(max_new_tokens=8), rollout_width=width)).sample(asked, seeded("cpu", 1))
        for width in (3, 100, None)
    )
    assert few.responses() == many.responses()
    assert few.responses() != at_once.responses(), "all at once, sampling depends on when other rows end"


@KINDS
def test_validation_reports_held_out_prompts_and_changes_nothing(make):
    stage = attached(make())
    before = weights(stage)
    stage.trainer.validate(stage, Batches([PROMPTS[:3], PROMPTS[3:]]), verbose=False)
    metrics = stage.trainer.callback_metrics
    assert {f"val/{name}" for name in ("score", "kl", "entropy", "length", "finished")} <= set(metrics)
    assert metrics["val/kl"] == 0
    assert 1 <= metrics["val/length"] <= 6
    assert same_bits(before, weights(stage))


def test_the_responses_of_a_group_are_adjacent_and_answer_their_own_prompt():
    """Each response's recorded log-probability is that after its own prompt, read in a row of its own."""
    stage = attached(grpo(samples_per_prompt=3, epochs=1, minibatches=1))
    [batch] = stage.collect(PROMPTS, 0)
    different = 0
    with torch.no_grad():
        for n, (ids, keep) in enumerate(zip(batch.packed.response_ids, batch.mask)):
            response = ids[keep].tolist()
            expected = float(slow_logprob(stage.policy, PROMPTS[n // 3]["ids"], response))
            other = float(slow_logprob(stage.policy, PROMPTS[(n // 3 + 1) % 8]["ids"], response))
            assert float(batch.old_logprobs[n].sum()) == pytest.approx(expected, abs=1e-4)
            different += abs(expected - other) > 1e-2
    assert different > 20


@pytest.mark.parametrize(("make", "kind", "scalars"), [(ppo, PPO, 2), (grpo, GRPO, 1)])
@pytest.mark.parametrize("frozen", [[], ["model.layers"]])
def test_a_rollout_costs_its_sampling_and_one_forward_of_each_model_that_reads_it(make, kind, scalars, frozen):
    """Nine sampled tokens; PPO: four prompts of 2, 4, 3 and 5 tokens; GRPO: the first of them, read once for all."""
    stage = attached(make(given(kind, [7, END], [3, 4, 5], [END], [6, 6, END]), minibatches=1, freeze=frozen))
    prompts = PROMPTS[: 4 // stage.samples_per_prompt]
    read = 9 + (2 + 4 + 3 + 5 if make is ppo else 2)
    reading, scoring = (flops_per_token(config(), 96, head=head).forward for head in ("lm_head", "score"))
    stage.collect(prompts, 0)
    assert stage.spent() == Spent(9, read * (3 * reading + scalars * scoring))  # sampling, policy and reference
    stage.collect(prompts, 1)
    assert stage.spent().generated_tokens == 18


def test_the_kl_comes_with_its_standard_error_over_responses():
    logger = ListLogger()
    stage = moved(attached(ppo(Given, epochs=1, minibatches=1), logger=logger))
    [batch] = stage.collect(PROMPTS[:4], 3)
    totals = (batch.old_logprobs - batch.reference_logprobs).sum(1).tolist()  # of the four responses
    mean = sum(totals) / 4
    assert logger["rollout/kl"] == [pytest.approx(mean, abs=1e-5)]
    deviation = (sum((total - mean) ** 2 for total in totals) / 4) ** 0.5
    assert logger["rollout/kl_stderr"] == [pytest.approx(deviation / 2, rel=1e-4)]
    assert deviation > 0.01


def test_a_policy_without_room_for_the_longest_prompt_and_its_response_is_refused_before_training(data):
    module = data("ppo")
    stage = ppo(sampling=Sampling(90))
    with pytest.raises(ValueError, match=r"reads at most 96 tokens.*max_new_tokens: 90.*Set data.max_prompt=6, a smal"):
        quiet_fit(trainer(max_steps=1), stage, datamodule=module)
    assert stage.spent() == Spent()


@pytest.mark.parametrize("longest", ["train_examples", "val_examples"])
def test_prompts_of_either_kind_need_room_but_held_out_ones_only_if_they_are_answered(longest):
    stage = attached(ppo(sampling=Sampling(90)))
    module = stage.trainer.datamodule = DataContract()
    tokens = {"train_examples": 6, "val_examples": 6}
    for name, count in (tokens | {longest: 7}).items():
        setattr(module, name, SimpleNamespace(tokens=torch.tensor([2, count, 3])))
    with pytest.raises(
        ValueError, match=r"longest prompt \(7 tokens\) and its response.* up to 97\. Set data.max_prompt=6"
    ):
        stage.on_fit_start()
    stage.trainer.limit_val_batches = 0
    module.train_examples = SimpleNamespace(tokens=torch.tensor([6]))
    stage.on_fit_start()


def test_pretraining_text_is_refused_by_a_stage_that_would_not_train_on_it(data):
    module = data("ppo_ptx")
    stage = grpo()
    with pytest.raises(ValueError, match="GRPO does not train on pretraining text.*data.pretraining=null.*stage=ppo"):
        quiet_fit(trainer(max_steps=1), stage, datamodule=module)
    assert stage.spent() == Spent()


def table() -> TableReward:
    return TableReward(torch.zeros(1, 16, dtype=torch.int64), torch.tensor([0.5]))


def test_a_table_that_scores_has_no_layers_to_compile_or_to_shard(monkeypatch):
    compiled, sharded = [], []
    monkeypatch.setattr("components.stages.stage.compile_layers", compiled.append)
    monkeypatch.setattr("components.stages.stage.shard", lambda model, mesh: sharded.append(model))
    stage = ppo(reward=table, run=RunContext(compile=True))
    stage._device_mesh = object()
    attached(stage)
    assert compiled == sharded == [stage.policy, stage.reference, stage.value]


def test_the_largest_minibatch_has_the_longest_prompts_and_responses_of_full_length(data):
    """Of 8 prompts in 2 minibatches, 4 with one response each, or all 8 with half of their 3 responses."""
    module = data("ppo", prompts_per_rollout=8)
    module.prepare_data()
    module.setup("fit")
    lengths = sorted((len(prompt["ids"]) for prompt in module.train_examples), reverse=True)
    for make, number, responses in ((ppo, 4, 4), (functools.partial(grpo, samples_per_prompt=3), 8, 12)):
        stage = attached(make(sampling=Sampling(6), minibatches=2))
        stage.trainer.datamodule = module
        assert stage.largest_batch() == sum(lengths[:number]) + responses * 6


@pytest.mark.parametrize(("width", "rows"), [(None, 24), (5, 5)])
def test_sampling_takes_a_copy_of_the_weights_and_a_cache_of_the_responses_sampled_at_a_time(data, width, rows):
    module = data("ppo", prompts_per_rollout=8)
    module.prepare_data()
    module.setup("fit")
    stage = attached(grpo(sampling=Sampling(6), samples_per_prompt=3, rollout_width=width))
    stage.trainer.datamodule = module
    longest = max(len(prompt["ids"]) for prompt in module.train_examples)
    starts = torch.zeros(rows, dtype=torch.int64)
    cache = stage.policy.new_cache(starts, longest + 6, dtype=torch.float32)
    cached = sum(tensor.nbytes for tensor in (*cache.keys, *cache.values))
    copied = sum(weight.nbytes for weight in stage.policy.parameters())
    assert stage.bytes_to_sample() == cached + copied
