"""The compute-optimal model, against what Hoffmann et al. 2022 trained, and against a search."""

import pytest

from components.models.config import GPTConfig
from components.planning.compute_optimal import CHINCHILLA, Law, shape_for
from components.tasks.workload import model_named


def test_chinchilla_has_70_billion_parameters_and_1_4_trillion_tokens():
    """Hoffmann et al. 2022, table 4: 70B parameters, 1.4 trillion tokens, 5.88e23 FLOPs at 6 for each of both."""
    parameters, tokens = CHINCHILLA.optimal(6 * 70e9 * 1.4e12)
    assert parameters == pytest.approx(70e9, rel=0.05) and tokens == pytest.approx(1.4e12, rel=0.05)


def test_the_optimum_spends_the_budget_and_no_other_split_has_a_lower_loss():
    law = Law(E=1.0, A=3.0, B=5.0, alpha=0.5, beta=0.25)
    best = law.optimal(6e6)
    assert best[0] * best[1] == pytest.approx(1e6)
    others = [law.loss(best[0] * factor, best[1] / factor) for factor in (0.5, 0.9, 1.1, 2.0)]
    assert min(others) > law.loss(*best)
    with pytest.raises(ValueError, match="budget"):
        law.optimal(0)


def test_a_loss_is_the_sum_of_its_three_terms():
    assert Law(E=1.0, A=8.0, B=9.0, alpha=0.5, beta=0.5).loss(16, 9) == 1 + 8 / 4 + 9 / 3


def test_a_shape_for_as_many_parameters_as_llama_7b_is_llama_7b():
    llama = model_named("llama_7b")
    assert shape_for(llama.num_parameters(), llama) == GPTConfig(**{**vars(llama), "head_dim": 128})
