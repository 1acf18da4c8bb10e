"""KTO: the loss is that of each answer read alone, at one reference point; it starts at the reference."""

import copy
import math
import re

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from components.functional.seeding import seeded
from components.generation.generate import Sampling, generate
from components.models.heads import CausalLM
from components.stages import kto as module
from components.stages.kto import KTO, balance_advice
from components.stages.offline import answer_logprobs
from components.stages.sft import SFT
from components.tokenizer.tokenizer import Tokenizer
from components.training.self_checks import SelfCheckError
from components.world.world import World
from tests.kit.tiny_stages import (
    CONSTANT,
    END,
    Batches,
    ListLogger,
    adam,
    another_reference,
    attached,
    causal,
    fit,
    flat_gradient,
    kto,
    moved,
    quiet_fit,
    same_bits,
    slow_logprob,
    trainer,
    unpaired_batch,
    weights,
)

RECORDS = [
    ([1, 3, 4], [5, 6, END], True, [9, 9, END]),
    ([1, 11], [14, END], False, [5, 6, END]),
    ([1, 6, 7, 8], [9, 9, END], False, [14, END]),
    ([1, 3, 4], [7, END], True, [14, END]),
    ([1, 6, 7, 8], [END], True, [7, END]),
]
WEIGHTS = {"desirable_weight": 1.5, "undesirable_weight": 0.5}


@pytest.fixture
def stage() -> KTO:
    """Its policy has left the reference."""
    return moved(attached(kto(**WEIGHTS)))


def slow_ratios(stage: KTO) -> tuple[Tensor, Tensor]:
    """log π/π_ref of the answers, and of the mismatched ones without gradient, by a slow loop over tokens and ends."""

    def ratio(prompt: list[int], answer: list[int]) -> Tensor:
        return slow_logprob(stage.policy, prompt, answer) - slow_logprob(stage.reference, prompt, answer).detach()

    ratios, others = zip(*((ratio(p, answer), ratio(p, other)) for p, answer, _, other in RECORDS), strict=True)
    return torch.stack(ratios), torch.stack(others).detach()


DESIRABLE = torch.tensor([desirable for _, _, desirable, _ in RECORDS])


def test_the_first_loss_is_half_the_mean_weight_and_its_gradient_pulls_each_answer_by_its_label():
    stage = attached(kto(beta=0.3, **WEIGHTS))
    output = stage.compute_loss(unpaired_batch(RECORDS))
    assert float(output.loss.detach()) == pytest.approx((3 * 1.5 + 2 * 0.5) / 2 / 5, abs=1e-7)
    assert output.weight == 5
    pulls = [
        (1.5 if desirable else -0.5) * slow_logprob(stage.policy, prompt, answer)
        for prompt, answer, desirable, _ in RECORDS
    ]
    expected = flat_gradient(stage, -0.3 / 4 * sum(pulls) / 5)
    assert expected.abs().max() > 0.05
    assert_close(flat_gradient(stage, output.loss), expected, atol=1e-5, rtol=0)


def test_the_loss_is_that_of_a_slow_loop_with_the_mean_of_mismatched_answers_as_its_reference_point():
    stage = moved(attached(kto(beta=0.5, **WEIGHTS)), 0.1)
    ratios, others = slow_ratios(stage)
    mean = others.mean()
    assert mean > 0.1
    good, bad = 1 - torch.sigmoid(0.5 * (ratios - mean)), 1 - torch.sigmoid(0.5 * (mean - ratios))
    expected = torch.where(DESIRABLE, 1.5 * good, 0.5 * bad).mean()
    output = stage.compute_loss(unpaired_batch(RECORDS, row_length=32))
    assert_close(output.metrics["kl"], mean, atol=1e-5, rtol=0)
    assert_close(output.loss, expected, atol=1e-5, rtol=0)
    assert_close(flat_gradient(stage, output.loss), flat_gradient(stage, expected), atol=1e-5, rtol=0)


def test_packed_records_have_the_loss_and_gradient_of_each_alone_at_their_common_reference_point(stage, monkeypatch):
    together = stage.compute_loss(unpaired_batch(RECORDS, row_length=32))
    point = together.metrics["kl"].clamp(min=0)
    monkeypatch.setattr(module, "kto_reference_point", lambda mismatched, sum_over_ranks: point)
    losses = [stage.compute_loss(unpaired_batch([record])).loss for record in RECORDS]
    assert_close(together.loss, sum(losses) / 5, atol=1e-5, rtol=0)
    assert_close(flat_gradient(stage, together.loss), flat_gradient(stage, sum(losses) / 5), atol=1e-5, rtol=0)


def test_the_reference_point_is_over_all_processes_and_is_subtracted_from_every_answer(stage):
    """Other processes have five answers of 2 nats each."""
    alone = stage.compute_loss(unpaired_batch(RECORDS))
    point = (float(alone.metrics["kl"]) * 5 + 10) / 10
    stage.all_reduced = lambda sums: sums + torch.tensor([10.0, 5.0])
    gains = 0.1 * (slow_ratios(stage)[0] - point)
    expected = torch.where(DESIRABLE, 1.5 * torch.sigmoid(-gains), 0.5 * torch.sigmoid(gains)).mean()
    found = stage.compute_loss(unpaired_batch(RECORDS)).loss
    assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found - alone.loss).abs() > 1e-3


def test_mismatched_answers_have_no_gradient(stage):
    kept = {}
    stage.policy.model.register_forward_hook(lambda _, __, out: kept.update(hidden=out))
    loss = stage.compute_loss(unpaired_batch(RECORDS[:1])).loss
    [hidden] = torch.autograd.grad(loss, [kept["hidden"]])
    #                                      prompt 1 3 4         5 6 END            9 9 END
    assert (hidden[0].abs().sum(1) > 0).tolist() == [False, False, True, True, True, False, False, False, False]


def test_metrics_are_those_of_a_slow_loop(stage):
    ratios, others = (part.detach() for part in slow_ratios(stage))
    good, bad = ratios[DESIRABLE], ratios[~DESIRABLE]
    expected = {
        "desirable_reward": 0.1 * float(good.sum()) / 3,
        "undesirable_reward": 0.1 * float(bad.sum()) / 2,
        "desirable_gained": int((good > 0).sum()) / 3,
        "undesirable_gained": int((bad > 0).sum()) / 2,
        "kl": float(others.sum()) / 5,
        "desirable": 0.6,
    }
    output = stage.compute_loss(unpaired_batch(RECORDS))
    assert {name: float(value) for name, value in output.metrics.items()} == pytest.approx(expected, abs=1e-5)
    assert {name: int(weight) for name, weight in output.weights.items()} == {
        "desirable_reward": 3,
        "desirable_gained": 3,
        "undesirable_reward": 2,
        "undesirable_gained": 2,
    }


def test_it_memorizes_labels():
    """Of the same four answers to three prompts, those with a 7 are desirable."""
    answers = [([7, 3, END], True), ([5, 7, 4, END], True), ([4, 6, 8, END], False), ([9, 3, END], False)]
    records = [
        ([1, first], answer, desirable, answers[(i + 1) % 4][0])
        for first in (3, 4, 5)
        for i, (answer, desirable) in enumerate(answers)
    ]
    batch, logger, stage = unpaired_batch(records), ListLogger(), kto(optimizer=adam(1e-2))
    fit(stage, [batch] * 15, max_steps=15, logger=logger)
    assert logger["train/loss"][0] == pytest.approx(0.5, abs=1e-6)
    assert logger["train/desirable_gained"][0] == logger["train/undesirable_gained"][0] == 0.5  # ties count half
    assert logger["train/loss"][-1] < 0.35
    assert logger["train/margin"][-1] > 1
    with torch.no_grad():
        found = (answer_logprobs(stage.policy, batch) - answer_logprobs(stage.reference, batch))[::2].view(3, 4)
    assert (found[:, :2].amin(1) > found[:, 2:].amax(1)).all()
    assert same_bits(weights(stage.reference), weights(causal()))
    assert stage.exportable() is stage.policy


@pytest.mark.parametrize("scale", [{}, WEIGHTS], ids=["equal weights", "unequal weights"])
def test_training_refuses_to_start_if_the_policy_is_not_its_reference(scale):
    batch, logger = unpaired_batch(RECORDS), ListLogger()
    with pytest.raises(SelfCheckError, match="policy and reference differ before any update"):
        fit(kto(another_reference(KTO), **scale), [batch], max_steps=1)
    fit(kto(**scale), [batch], max_steps=1, logger=logger)
    assert logger["train/loss"] == [pytest.approx(0.55 if scale else 0.5, rel=1e-6)]


def test_in_bf16_too_the_first_loss_is_exact_and_the_policy_learns():
    logger, batch = ListLogger(), unpaired_batch(RECORDS)
    fit(kto(optimizer=adam(1e-2)), [batch] * 5, max_steps=5, precision="bf16-mixed", logger=logger)
    assert logger["train/loss"][0] == pytest.approx(0.5, abs=1e-7)
    assert logger["train/loss"][-1] < 0.45


def test_a_batch_with_one_label_only_has_no_metrics_of_the_other_and_no_margin():
    logger = ListLogger()
    fit(kto(), [unpaired_batch(RECORDS[:1]), unpaired_batch(RECORDS)], max_steps=2, logger=logger)
    assert len(logger.logged["train/desirable_reward"]) == 2
    for name in ("undesirable_reward", "undesirable_gained", "margin"):
        assert [step for step, _ in logger.logged[f"train/{name}"]] == [1]
    assert not any(math.isnan(value) for values in logger.logged.values() for _, value in values)


def test_validation_reports_means_over_the_answers_of_each_label_and_moves_nothing():
    stage = kto(another_reference(KTO), beta=1e-3)  # so small that the batches' own reference points hardly matter
    run = trainer(max_steps=1)
    stage.configure_model()
    before = weights(stage)
    parts = [RECORDS[:1], RECORDS[1:3], RECORDS[3:]]
    run.validate(stage, Batches([unpaired_batch(part) for part in parts]), verbose=False)
    with torch.no_grad():
        whole = stage.compute_loss(unpaired_batch(RECORDS))
    expected = {"loss": whole.loss, **whole.metrics}
    expected["margin"] = expected["desirable_reward"] - expected["undesirable_reward"]
    for name, value in expected.items():
        bound = 1e-2 if name == "loss" else 1e-5
        assert float(run.callback_metrics[f"val/{name}"]) == pytest.approx(float(value), abs=bound), name
    assert same_bits(before, weights(stage))


@pytest.mark.parametrize(
    ("given", "advised"),
    [
        ((100, 100, 1.0, 1.0), None),
        ((150, 100, 1.0, 1.0), None),
        ((96, 100, 1.0, 1.0), None),  # nearly
        ((100, 1000, 10.0, 1.0), None),
        ((400, 100, 1.0, 1.0), "count 4.00 to 1, advised is 1 to 1.5 .* set stage.undesirable_weight=4$"),
        ((100, 1000, 1.0, 1.0), "count 0.10 to 1, advised is 1 to 1.5 .* set stage.desirable_weight=10$"),
        ((100, 300, 1.0, 0.5), "count 0.67 to 1, .* set stage.desirable_weight=1.5$"),
    ],
)
def test_unbalanced_labels_are_reported_with_the_weight_that_balances_them(given, advised):
    advice = balance_advice(*given)
    if advised is None:
        assert advice is None
        return
    assert advice is not None
    assert advice.startswith(f"labels: {given[0]} desirable training records of weight {given[2]:g} and {given[1]}")
    assert re.search(advised, advice)


def test_a_run_on_unbalanced_labels_warns_once(data, caplog):
    module = data("kto", completions=4)
    run = trainer(max_steps=2, limit_val_batches=0)
    stage = kto(policy=lambda: causal(0, module.tokenizer.vocab_size), desirable_weight=5.0)
    quiet_fit(run, stage, datamodule=module)
    desirable, undesirable = module.balance
    lines = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and "labels:" in r.getMessage()]
    assert len(lines) == 1 and f"{desirable} desirable" in lines[0] and f"{undesirable} undesirable" in lines[0]


def mean_gold(policy: CausalLM, tokenizer: Tokenizer, world: World) -> float:
    """Of eight sampled answers to each training question."""
    questions = [question.text for question in world.questions("train")]
    prompts = [tokenizer.render_prompt([{"role": "user", "content": text}]) for text in questions]
    samples = generate(
        policy.eval(),
        prompts,
        Sampling(max_new_tokens=24),
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        generator=seeded("cpu", 0),
        samples_per_prompt=8,
    )
    answers = [tokenizer.decode(ids).strip() for ids in samples.responses()]
    asked = [text for text in questions for _ in range(8)]
    golds = [
        world.judge(text, answer, finished=bool(whole)).gold
        for text, answer, whole in zip(asked, answers, samples.finished.flatten(), strict=True)
    ]
    return sum(golds) / len(golds)


@pytest.mark.slow
def test_it_raises_the_gold_of_the_worlds_answers(data):
    """On the crowd's answers as labels, from a model that imitates the crowd."""
    torch.manual_seed(0)
    shown = data("sft", demonstrations=600, batch_size=16, val_fraction=0.0)
    size, world = shown.tokenizer.vocab_size, World(**shown.world)
    imitator = SFT(model=lambda: causal(0, size), optimizer=adam(3e-3), schedule=CONSTANT)
    quiet_fit(trainer(max_steps=150, limit_val_batches=0), imitator, datamodule=shown)
    start = copy.deepcopy(imitator.model)
    before = mean_gold(start, shown.tokenizer, world)
    labeled = data("kto", comparisons=600, completions=4, batch_size=32, val_fraction=0.0)
    stage = kto(policy=lambda: copy.deepcopy(start), optimizer=adam(1e-3))
    quiet_fit(trainer(max_steps=80, limit_val_batches=0), stage, datamodule=labeled)
    after = mean_gold(stage.policy, shown.tokenizer, world)
    assert after > before + 0.2
