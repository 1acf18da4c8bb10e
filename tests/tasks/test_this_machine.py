"""This machine as hardware: what it reaches with the stage's own model."""

import pytest

from components.planning.work import Network, Rollouts, Work
from components.tasks import this_machine
from components.tasks.this_machine import measured
from tests.kit.tiny_models import countable_config

SHAPE = countable_config(max_position_embeddings=5)
ROLLOUTS = Rollouts(1, prompts=2, samples_per_prompt=1, prompt=2, response=2, epochs=1, minibatches=1)
WORK = Work("grpo", (Network("policy", SHAPE),), 100.0, 1, 10, 2, mixed=False, rollouts=ROLLOUTS)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(this_machine, "SECONDS", 0.0)
    monkeypatch.setattr(this_machine, "COPIED", 2**12)
    monkeypatch.setattr("components.callbacks.throughput.measured_peak", lambda device, dtype, seconds: 1e12)


@pytest.mark.parametrize("ranks", [{}, {"q_proj": 2}])
def test_shares_are_those_of_the_model_itself(ranks):
    machine = measured(WORK._replace(networks=(Network("policy", SHAPE, ranks=ranks),)), "cpu", {})
    assert machine.flops == machine.flops_32 == 1e12 and machine.bandwidth > 0 and machine.price == 0
    assert 0 < machine.mfu < 0.01 and 0 < machine.mbu <= 1


def test_given_values_are_kept_and_a_large_model_is_not_built(monkeypatch):
    monkeypatch.setattr(this_machine, "_shares_of", lambda *work: pytest.fail("a model was built"))
    assert measured(WORK, "cpu", {"mfu": 0.3, "mbu": 0.2, "price": 1.0}).mfu == 0.3
    monkeypatch.setattr(this_machine, "SHARE", 0.0)
    assert measured(WORK, "cpu", {}).mfu == this_machine.UNTIMED
    with pytest.raises(ValueError, match="prise"):
        measured(WORK, "cpu", {"prise": 1.0})
