"""A law of the runs in a folder: the forecast comes first, is kept, and is compared with the run that it is of."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from components.artifacts.metadata import ArtifactError
from components.planning.compute_optimal import Law
from components.tasks import law_card
from components.tasks.scaling_law import runs_of, scaling_law
from tests.kit.composed_configs import compose_config
from tests.kit.tiny_models import small_config

LAW = Law(E=0.6, A=60.0, B=900.0, alpha=0.4, beta=0.5)
WIDTHS = (8, 16, 32)
LARGER = (64, 16e6)  # width, tokens


def parameters_of(width: int) -> int:
    return small_config(64, hidden_size=width, intermediate_size=2 * width).num_parameters()


def write_run(folder: Path, width: int, tokens: float, loss: float, **changes) -> None:
    """A pretraining run's card and shape, without weights."""
    export = folder / "export"
    export.mkdir(parents=True)
    config = small_config(64, hidden_size=width, intermediate_size=2 * width)
    (export / "config.json").write_text(json.dumps(config.to_hf("LlamaForCausalLM")))
    card = {
        "stage": "pretrain",
        "metrics": {"budget/train_tokens": tokens, "val/loss": loss, "data/tokens": 2e7},
        "exported": {"step": 10, "of": 10},
        "inputs": {"data.val_fraction": 0.01, "data.batch_size": 8, "context": 128, "reads.tokenizer": "a"},
        "content": folder.name,
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            card[section] = {k: v for k, v in card[section].items() if k != name} | (
                {} if value is None else {name: value}
            )
        else:
            card[section] = value
    (export / "card.json").write_text(json.dumps(card))


@pytest.fixture
def runs(tmp_path):
    """Twelve runs of a law with errors of 0.3%; without the larger one."""
    random = np.random.default_rng(0)
    for width in WIDTHS:
        for tokens in (1e6, 2e6, 4e6, 8e6):
            loss = LAW.loss(parameters_of(width), tokens) * math.exp(0.003 * random.standard_normal())
            write_run(tmp_path / f"run/pretrain/w{width}_{tokens:g}", width, tokens, loss)
    return tmp_path / "run/pretrain"


def run(runs: Path, *overrides: str) -> Path:
    """Runs the task; returns the file that it writes."""
    size = [f"stage.parameters={parameters_of(LARGER[0])}", f"stage.tokens={LARGER[1]}", "stage.resamples=20"]
    logs = f"paths.logs={runs.parents[1]}"
    cfg = compose_config(["stage=scaling_law", "run=run", logs, *size, *overrides])
    scaling_law(cfg)
    return Path(cfg.paths.stage, law_card.DATA)


def compare(runs: Path, forecast: Path, *overrides: str) -> Path:
    return run(runs, f"stage.forecast={forecast}", f"paths.stage={runs.parent / 'compared'}", *overrides)


def test_a_forecast_is_of_the_law_is_kept_and_is_compared_with_the_larger_run(runs):
    forecast = run(runs)
    made = json.loads(forecast.read_text())
    truth = LAW.loss(parameters_of(LARGER[0]), LARGER[1])
    low, high = made["predicted"]["interval"]
    assert made["predicted"]["loss"] == pytest.approx(truth, rel=0.02) and low < made["predicted"]["loss"] < high
    assert made.keys() >= {"law", "intervals", "commit", "hardware", "versions"} and "measured" not in made
    before = forecast.read_bytes()
    write_run(runs / "larger", *LARGER, loss=1.1 * truth)
    assert run(runs).read_bytes() == before
    compared = json.loads(compare(runs, forecast).read_text())
    assert compared["measured"] == {
        "loss": pytest.approx(1.1 * truth),
        "error": pytest.approx(made["predicted"]["loss"] / (1.1 * truth) - 1),
    }
    assert compared["law"] == made["law"]


def test_a_forecast_is_not_compared_with_other_runs_or_another_size(runs):
    forecast = run(runs)
    with pytest.raises(ArtifactError, match="larger is not there: expected the pretrained model"):
        compare(runs, forecast)
    with pytest.raises(ArtifactError, match="none.json does not exist. Make it with: python train.py experiment="):
        compare(runs, runs / "none.json")
    write_run(runs / "larger", LARGER[0], 0.9 * LARGER[1], 1.0)
    with pytest.raises(ArtifactError, match=r"has 14,400,000 tokens, but the forecast is of 16,000,000"):
        compare(runs, forecast)
    write_run(runs / "another", 32, 3e6, 1.5)
    with pytest.raises(ArtifactError, match="made of other runs"):
        compare(runs, forecast)


def test_the_run_that_is_predicted_is_not_among_those_that_predict(runs):
    write_run(runs / "lrager", *LARGER, loss=1.0)
    with pytest.raises(ArtifactError, match="lrager has .* if it is that run, set stage.larger=lrager"):
        run(runs)
    run(runs, "stage.larger=lrager")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics__val/loss": None}, "expected its held-out loss, val/loss, above 0 in card.json, got None"),
        ({"metrics__budget/train_tokens": None}, "expected its tokens, budget/train_tokens"),
        ({"metrics__val/loss": math.nan}, "val/loss, above 0 in card.json, got nan"),
        ({"exported": {"step": 5, "of": 10}}, "end of training, got those of step 5 of 10. .*export=last"),
        ({"stopped early": "patience"}, "expected the weights of the end of training"),
        ({"metrics__data/tokens": 1e5}, "every text to be read once, but 1,000,000 tokens were read of 100,000"),
        ({"inputs__stage.model.path": "gpt"}, "from random weights, but it has stage.model.path"),
        ({"inputs__lora.rank": 8}, "from random weights, but it has lora.rank"),
        ({"inputs__data.val_fraction": 0.1}, r"different text \(data.val_fraction\)"),
        ({"inputs__reads.tokenizer": "b"}, r"different text \(reads.tokenizer\)"),
    ],
)
def test_a_run_that_cannot_be_compared_is_named(runs, changes, message):
    write_run(runs / "odd", 8, 1e6, 2.0, **changes)
    with pytest.raises(ArtifactError, match=f"odd.*{message}"):
        runs_of(runs)


def test_other_stages_and_another_batch_are_no_obstacle(runs):
    write_run(runs / "sft", 8, 1e6, 2.0, stage="sft")
    write_run(runs / "batch", 8, 1e6, 2.0, **{"inputs__data.batch_size": 64})
    assert "sft" not in runs_of(runs) and "batch" in runs_of(runs)


def test_what_is_missing_is_said_with_the_command(runs, tmp_path):
    with pytest.raises(
        ArtifactError, match=r"got 0. Make runs with: python train.py experiment=scaling_law files.text="
    ):
        run(tmp_path / "empty/run/pretrain")
    with pytest.raises(ValueError, match="stage.tokens=many: expected how many tokens"):
        run(runs, "stage.tokens=many")
    with pytest.raises(ArtifactError, match="at least 20, got 3$"):
        run(runs, "stage.resamples=3")
