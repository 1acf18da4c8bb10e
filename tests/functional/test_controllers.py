import pytest

from components.functional.controllers import adaptive_beta


def test_beta_follows_the_kl_and_the_error_is_clipped_at_a_fifth():
    beta, seen = 0.15, []
    for kl in (12.0, 3.0, 6.5):
        beta = adaptive_beta(beta, kl, 512, target=6.0, horizon=10000)
        seen.append(beta)
    assert seen == pytest.approx([0.151536, 0.1499842714, 0.1506242043], abs=1e-9)


def test_a_hundred_saturated_steps_compound():
    beta = 0.2
    for _ in range(100):
        beta = adaptive_beta(beta, 1000.0, 64, target=6.0, horizon=10000)
    assert beta == pytest.approx(0.2272919959, abs=1e-9)


def test_beta_rests_on_target():
    assert adaptive_beta(0.1, 6.0, 512, target=6.0, horizon=10000) == 0.1


def test_a_horizon_shorter_than_a_batch_changes_beta_by_a_fifth_at_most():
    """Without a bound, 512 responses at a horizon of 50 would multiply by 1 − 0.2·512/50 = −1.048."""
    assert adaptive_beta(0.1, 0.0, 512, target=6.0, horizon=50) == pytest.approx(0.08)
    assert adaptive_beta(0.1, 60.0, 512, target=6.0, horizon=50) == pytest.approx(0.12)


def test_targets_and_horizons_of_zero_are_refused():
    with pytest.raises(ValueError, match="target and horizon above 0"):
        adaptive_beta(0.1, 1.0, 8, target=0.0, horizon=10)
    with pytest.raises(ValueError, match="target and horizon above 0"):
        adaptive_beta(0.1, 1.0, 8, target=1.0, horizon=0)
