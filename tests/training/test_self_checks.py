"""Startup self-checks: the line that each returns on success, and that each can fail."""

import logging
import math
import re
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from components.models.lora import LoRA
from components.stages.pretrain import Pretrain
from components.stages.sft import SFT
from components.training import self_checks
from components.training.contract import RunContext
from components.training.self_checks import SelfCheckError
from tests.kit.tiny_stages import (
    CONSTANT,
    END,
    PAD,
    PROMPTS,
    STOPS,
    adam,
    attached,
    causal,
    dpo,
    fit,
    fit_prompts,
    lm_batch,
    ppo,
    preference_batch,
    rejection,
    scalar,
)

IDS = torch.tensor([[7, END, PAD], [3, 4, 5], [END, PAD, PAD]])
MASK = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
FINISHED = torch.tensor([True, False, True])


def lines(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "self-check" in record.getMessage()]


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def responses(ids: Tensor = IDS, mask: Tensor = MASK, finished: Tensor = FINISHED) -> str:
    return self_checks.check_responses(ids, mask, finished, vocab_size=8, stop_ids=[END])


def test_an_on_policy_run_logs_each_check_on_one_line_before_its_first_update(caplog):
    caplog.set_level(logging.INFO)
    fit_prompts(ppo(epochs=1, minibatches=1), 2)  # two rollouts: the second reports nothing
    told = lines(caplog)
    assert told[:4] == [
        "self-check: reference and reward frozen",
        "self-check: policy, reference, reward, value share no weights",
        "self-check: no dropout",
        "self-check: max |ratio − 1| 0.0e+00, max |log π/π_ref| 0.0e+00 before the first update",
    ]
    assert told[4].startswith("self-check: 8 responses with ids below 16, ")
    assert told[5] == "self-check: scores read at each response's last token"
    assert told[6:] == ["self-check: the first step changed 43 of 43 trained parameters"]


def test_a_resumed_run_does_not_compare_with_the_reference(caplog):
    caplog.set_level(logging.INFO)
    attached(ppo()).collect(PROMPTS, 3)
    assert "self-check: max |ratio − 1| 0.0e+00 before the first update" in lines(caplog)


def test_rejection_checks_all_samples_and_the_rows_of_those_it_kept(caplog):
    caplog.set_level(logging.INFO)
    attached(rejection(samples_per_prompt=3)).collect(PROMPTS, 0)
    assert any("24 responses with ids below 16" in line for line in lines(caplog))


def test_dpo_reports_that_its_reference_is_frozen_and_separate(caplog):
    caplog.set_level(logging.INFO)
    fit(dpo(), [preference_batch([([1, 3], [[4, END], [5, END]], [0.0, 1.0])])], max_steps=1)
    assert lines(caplog)[:3] == [
        "self-check: reference frozen",
        "self-check: policy, reference share no weights",
        "self-check: no dropout",
    ]


def test_a_frozen_network_that_learns_or_is_in_training_mode_is_refused():
    network = scalar().requires_grad_(False).eval()
    assert self_checks.check_frozen({"reward": network}) == "reward frozen"
    network.score.weight.requires_grad_(True)
    with pytest.raises(SelfCheckError, match=r"reward must not change, but its score\.weight requires a gradient"):
        self_checks.check_frozen({"reward": network})
    with pytest.raises(SelfCheckError, match="a part of it is in training mode"):
        self_checks.check_frozen({"reward": network.requires_grad_(False).train()})


def test_networks_that_share_one_weight_are_refused_and_tied_embeddings_are_not_meant():
    policy, value = causal(tie_word_embeddings=True), scalar()
    assert self_checks.check_separate({"policy": policy, "value": value}) == "policy, value share no weights"
    value.model.norm.weight = policy.model.norm.weight
    with pytest.raises(SelfCheckError, match="value and policy share weights"):
        self_checks.check_separate({"policy": policy, "value": value})


def test_dropout_is_refused_wherever_it_is():
    assert self_checks.check_no_dropout({"policy": causal()}) == "no dropout"
    with pytest.raises(SelfCheckError, match=r"value has dropout 0\.2, expected 0"):
        self_checks.check_no_dropout({"policy": causal(), "value": scalar(dropout=0.2)})


def test_responses_in_order_are_counted():
    assert responses() == "3 responses with ids below 8, 2 ended, with one stop token each"


def test_padding_is_not_part_of_a_response():
    behind = torch.where(MASK, IDS, 99)
    assert responses(behind) == responses()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": torch.where(IDS == 7, 8, IDS)}, "sampled ids are from 2 to 8, expected 0 to 7"),
        ({"ids": torch.where(IDS == 7, -1, IDS)}, "sampled ids are from -1 to 5"),
        ({"ids": torch.tensor([[END, END, PAD], [3, 4, 5], [END, PAD, PAD]])}, "response 0 has 2 stop tokens"),
        ({"ids": torch.tensor([[END, 7, PAD], [3, 4, 5], [END, PAD, PAD]])}, "response 0 has 1 .* one, at its end"),
        ({"finished": torch.tensor([True, True, True])}, "response 1 has 0 stop tokens, expected one, at its end"),
        ({"finished": torch.tensor([True, False, False])}, "response 2 has 1 stop tokens, expected none"),
    ],
)
def test_responses_out_of_order_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(SelfCheckError, match=message):
        responses(**changes)


def test_a_score_read_one_token_early_is_refused():
    # two packed rows: prompt 9, response 7 END; prompt 9 9, response 3 4 5
    rows = torch.tensor([[9, 7, END, PAD, PAD], [9, 9, 3, 4, 5]])
    last = torch.tensor([2, 9])
    told = self_checks.check_score_positions(rows, last, IDS[:2], MASK[:2])
    assert told == "scores read at each response's last token"
    with pytest.raises(SelfCheckError, match="response 0 is read at token 7, expected its last, 2"):
        self_checks.check_score_positions(rows, last - 1, IDS[:2], MASK[:2])


TEXT = [([1], [3, 4, 5, 6, 7, 8, 9, END])]


def first_loss(kind: type[Pretrain], caplog, **model: Any) -> list[str]:
    caplog.set_level(logging.INFO)
    stage = kind(model=lambda: causal(**model), optimizer=adam(1e-3), schedule=CONSTANT)
    fit(stage, [lm_batch(TEXT)] * 2, max_steps=2)
    return [line for line in lines(caplog) if "first loss" in line]


def test_pretraining_compares_its_first_loss_with_a_uniform_guess_once(caplog):
    [line] = first_loss(Pretrain, caplog, initializer_range=0.02)
    assert line.startswith("self-check: first loss 2.8") and line.endswith("ln V = 2.773")  # ln 16
    assert not warnings(caplog)


def test_pretraining_warns_of_large_initial_weights_and_continues(caplog):
    first_loss(Pretrain, caplog, initializer_range=0.5)
    [warning] = warnings(caplog)
    assert "above ln V = 2.773" in warning and "initializer_range" in warning


def test_only_pretraining_checks_its_first_loss(caplog):
    assert first_loss(SFT, caplog) == [] == warnings(caplog)


@pytest.mark.parametrize(("share", "told"), [(1.049, []), (1.051, ["above"]), (0.951, []), (0.949, ["below"])])
def test_the_band_around_a_uniform_guess_is_a_twentieth(share, told, caplog):
    self_checks.check_initial_loss(share * math.log(500), 500)
    assert [re.search("above|below", warning).group() for warning in warnings(caplog)] == told


def test_the_ids_that_stop_are_those_of_the_stage():
    """With a different stop token than in sampling, responses do not contain one each."""
    stage = attached(ppo())
    known = stage.sample([prompt["ids"] for prompt in PROMPTS], torch.Generator().manual_seed(0))
    arguments = known.ids, known.mask, known.finished
    self_checks.check_responses(*arguments, vocab_size=16, stop_ids=STOPS)
    with pytest.raises(SelfCheckError, match="stop tokens"):
        self_checks.check_responses(*arguments, vocab_size=16, stop_ids=[3])


def test_a_sampled_id_that_the_tokenizer_has_no_token_for_is_refused():
    with pytest.raises(SelfCheckError, match="id 7 was sampled"):
        self_checks.check_responses(IDS, MASK, FINISHED, vocab_size=8, stop_ids=[END], unused_ids=[3, 7])
    self_checks.check_responses(IDS, MASK, FINISHED, vocab_size=8, stop_ids=[END], unused_ids=[6])


class Forgets(torch.optim.SGD):
    """Updates its first group only."""

    def step(self, closure=None):
        loss = closure()
        for parameter in self.param_groups[0]["params"]:
            parameter.data.sub_(parameter.grad, alpha=self.param_groups[0]["lr"])
        return loss


def halves(optimizer: Any) -> Any:
    """A builder that gives it the first half of the parameters, then adds the others."""

    def build(named: list[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        parameters = [parameter for _, parameter in named]
        built = optimizer(parameters[: len(parameters) // 2])
        built.add_param_group({"params": parameters[len(parameters) // 2 :]})
        return built

    return build


def tuned(optimizer: Any, caplog, *, steps: int = 1, lora: LoRA | None = None, rate: Any = CONSTANT, **settings: Any):
    """The lines that self-checks log in a short SFT run."""
    caplog.set_level(logging.INFO)
    stage = SFT(model=causal, optimizer=optimizer, schedule=rate, run=RunContext(lora=lora))
    fit(stage, [lm_batch(TEXT)] * steps, max_steps=steps, **settings)
    return [line.removeprefix("self-check: ") for line in lines(caplog)]


def test_the_first_step_reports_once_how_many_parameters_it_changed(caplog):
    assert tuned(adam(1e-3), caplog, steps=3) == ["the first step changed 21 of 21 trained parameters"]


def test_an_adapter_behind_one_that_is_zero_has_no_gradient_at_first(caplog):
    lora = LoRA(rank=2, alpha=4.0, dropout=0.0, targets=("q_proj", "v_proj"))
    [line] = tuned(adam(1e-3), caplog, lora=lora)
    assert line == "the first step changed 4 of 8 trained parameters, 4 have no gradient yet"


def test_an_optimizer_that_does_not_step_all_its_groups_is_refused_and_the_parameter_named(caplog):
    assert tuned(halves(partial(torch.optim.SGD, lr=0.1)), caplog)
    with pytest.raises(SelfCheckError, match=r"did not change model\.model\.layers\.1\.\S+,.*Forgets does not train"):
        tuned(halves(partial(Forgets, lr=0.1)), caplog)


@pytest.mark.parametrize(("count", "given"), [(0, slice(1, None)), (2, slice(None))])
def test_a_parameter_in_no_group_or_two_is_refused_before_any_step(count, given, caplog):
    def build(named: list[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        parameters = [parameter for _, parameter in named]
        optimizer = torch.optim.SGD(parameters[given], lr=0.1)
        if count == 2:
            optimizer.param_groups.append({**optimizer.param_groups[0], "params": parameters[:1]})
        return optimizer

    told = (
        rf"model\.model\.embed_tokens\.weight should be trained, but is in {count} groups of the optimizer, expected 1"
    )
    with pytest.raises(SelfCheckError, match=told):
        tuned(build, caplog)


def test_a_step_at_a_learning_rate_of_0_is_not_checked(caplog):
    waits = lambda step, total_steps: float(step > 0)
    assert tuned(adam(1e-3), caplog, rate=waits) == []
    assert len(tuned(adam(1e-3), caplog, steps=2, rate=waits)) == 1


class Drops(L.Callback):
    """Drops the gradients of the first step, as a guard does."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == 0:
            pl_module.zero_grad()


def test_a_step_that_a_guard_skipped_is_not_checked(caplog):
    assert tuned(adam(1e-3), caplog, callbacks=[Drops()]) == []
    assert len(tuned(adam(1e-3), caplog, steps=2, callbacks=[Drops()])) == 1


@pytest.mark.parametrize("optimizer", [adam(1e-12), lambda named: torch.optim.SGD(named, lr=1e-12)])
def test_a_step_lost_to_rounding_is_not_an_error_of_the_optimizer(optimizer, caplog):
    [line] = tuned(optimizer, caplog)
    assert re.fullmatch(r"the first step changed \d of 21 trained parameters", line)
