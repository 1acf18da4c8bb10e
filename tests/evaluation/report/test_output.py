import io
import json
import re

import pytest
from matplotlib.image import imread
from rich.console import Console
from torch.utils.tensorboard import SummaryWriter

from components.evaluation.report import card, output, plots
from components.evaluation.report.curves import read_curves


@pytest.fixture
def events(tmp_path):
    """Event files of a pretraining and a PPO run, by stage."""
    folders = {stage: tmp_path / "events" / stage for stage in ("pretrain", "ppo", "tokenizer")}
    tags_of = {"pretrain": ["train/loss", "val/loss"], "ppo": ["train/loss", "rollout/score", "rollout/kl"]}
    for stage, tags in tags_of.items():
        with SummaryWriter(str(folders[stage])) as writer:
            for step in range(20):
                for tag in tags:
                    writer.add_scalar(tag, step / 2, step)
    return folders


@pytest.fixture
def undrawn(monkeypatch):
    """No pictures, for tests of the text."""
    monkeypatch.setattr(plots, "PICTURES", {})


def write(results, folder, **options):
    """Writes the report; returns what was printed."""
    screen = io.StringIO()
    output.write(results, folder, console=Console(file=screen, width=100), **options)
    return screen.getvalue()


def test_the_report_is_results_a_page_and_pictures(results, events, tmp_path):
    folder = tmp_path / "tiny" / "report"
    write(results, folder, curves=events)
    pictures = ["curves.png", "curves-2.png", "curves-3.png", "minutes.png", "quality.png", "quality-2.png"]
    pictures += ["reward_model.png"]
    texts = ["report.html", "report.json", "report.md"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*pictures, *texts])
    assert json.loads((folder / "report.json").read_text()) == results
    page = (folder / "report.md").read_text()
    for name in pictures:
        assert f"]({name})" in page
        pixels = imread(folder / name)
        assert pixels.shape[1] >= 600 and pixels.shape[0] >= 200
        assert pixels.std() > 0.05, "nothing is drawn"


def test_the_page_states_metrics_intervals_and_sample_sizes(results, tmp_path, undrawn):
    write(results, tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert "| gold score | −1.45 [−1.65, −1.15] | 0.12 [−0.08, 0.42] | 1.02 [0.82, 1.32] |" in page
    assert "| KL to sft per response, nats | – | 0.00 | 2.50 |" in page
    assert "12 held-out prompts × 32 samples" in page and "Training: 60 × 8." in page
    assert "| accuracy on pairs | 91% [86, 95] | 77% [72, 81] |" in page
    assert "| pairs | 1,234 | 1,234 |" in page
    assert "asks another 100% of the time and answers 0%; after 4 solved examples it is correct 62% (12 × 32" in page
    assert "sft → ppo: gold score 0.12 → 1.02 on held-out prompts, at 2.50 nats of KL from sft." in page
    for known in ("# Report card: tiny", "abc1234", "seed: 0", "2 cores", "torch 2.13", "total 1.1"):
        assert known in page


def test_what_a_model_says_cannot_break_the_page(results, tmp_path, undrawn):
    write(results, tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert "<script>" not in page
    rows = [line for line in page.splitlines() if "script" in line]
    assert len(rows) == 1 and rows[0].count("|") == 5  # prompt and three models
    assert rows[0].count("… (") == 3, "an answer that did not end is marked"


def test_without_a_judge_the_score_takes_the_place_of_gold(without_judge, tmp_path):
    printed = write(without_judge, tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert "gold" not in (page + printed).lower()
    assert "correct answer" not in page
    assert "sft → ppo: reward model's score 0.24 → 2.04" in page
    assert "| reward model's score | −2.90 [−3.90, −1.90] |" in page
    assert (tmp_path / "quality.png").exists()


def test_models_are_shown_head_to_head_as_they_are_and_at_equal_length(without_judge, tmp_path, undrawn):
    row = {"win_rate": 0.75, "win_rate_ci": [0.7, 0.8], "length_controlled": 0.55, "length_controlled_ci": [0.45, 0.64]}
    row |= {"length_matched": None, "length_matched_ci": None, "pairs": 96, "pairs_length_matched": 0}
    row |= {"length": 80.25, "other_length": 40.0, "finished": 0.9}
    shorter = row | {"length_controlled": 0.4, "length_controlled_ci": [0.35, 0.45]}
    without_judge["against"] = {"sft": {"sampled": {"ppo": row}}, "demonstrations": {"greedy": {"sft": shorter}}}
    without_judge["demonstrations"] = {"score": 1.5, "score_ci": [1.0, 2.0], "length": 120.5, "prompts": 12}
    without_judge["proxy"] = without_judge["reward_model"]
    told = write(without_judge, tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert "| ppo against sft, sampled | 75% [70, 80] | 55% [45, 64] | – | 80.2 | 40.0 | 90% |" in page
    assert "| sft against demonstrations, greedy | 75% [70, 80] | 40% [35, 45] | – |" in page
    assert "Demonstrations: 12 prompts, 120.5 tokens, score 1.50 [1.00, 2.00]." in page
    said = (
        "At equal length ppo is not distinguishable from sft: 55% [45, 64] of its answers would be better (80 tokens "
    )
    assert said in page and said in " ".join(told.split())
    assert "Head to head" in told and "Reward model trained against" in told


def test_neither_judge_nor_reward_model_leaves_the_rest(without_judge, tmp_path):
    del without_judge["reward_model"]
    for found in without_judge["models"].values():
        for key in ("score", "score_ci", "score_train"):
            del found[key]
    write(without_judge, tmp_path)
    assert "entropy per token" in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "quality.png").exists() and not (tmp_path / "reward_model.png").exists()


def test_the_terminal_shows_the_card_in_a_hundred_columns_and_ends_with_what_to_do_next(results, tmp_path, undrawn):
    printed = write(results, tmp_path / "tiny" / "report")
    lines = [line.rstrip() for line in printed.splitlines()]
    card_lines, where = lines[:-3], lines[-3:]
    report_page = str(tmp_path / "tiny" / "report" / "report.html")
    assert max(map(len, card_lines)) <= 100
    assert any(re.fullmatch(r" gold score +−1.45 \[−1.65, −1.15\] +0.12 .*", line) for line in lines)
    assert where[-1].split() == ["report", report_page]
    assert where[-2].endswith(f"gradus chat {tmp_path / 'tiny' / 'ppo'}")
    assert "sft → ppo: gold score 0.12 → 1.02 on held-out prompts" in " ".join(card_lines)


def test_the_page_has_a_table_for_each_way_to_use_many_answers(full, tmp_path, undrawn):
    write(full, tmp_path)
    page = (tmp_path / "report.md").read_text()
    for row in (
        "| wins against sft | 90% [85, 93] | 50% |",
        "| correct likeliest answer | 75% |",
        "| bits per byte of pretraining text | 0.31 |",
        "| n | KL to sft, nats | reward model's score | gold score | correct answer | gold on training prompts |",
        "| 4 | 0.64 | 2.00 | 0.60 [0.40, 0.80] | 60% | – |",
        "| 2 | 0.19 | 0.70 | 0.40 [0.20, 0.60] | 50% | 0.40 |",
        "| 3 | 60% [50, 70] |",
        "| reward model chooses | 62% [40, 80] | 62% [40, 80] |",
        "| ppo: likeliest answer | 75% | 100% |",
        "| ppo: sampled answer | 50% | 55% |",
        "| ppo | 1.2 | 51,234 | 3.21e+12 | abc1234 |",
        "| sft | 0.4 | – | – | – |",
    ):
        assert row in page
    assert "chance is 1 in 8" in page and "from 4 answers to each of 12 held-out prompts" in page
    assert "sft 0.12, ppo 1.02 (KL 2.50), dpo 0.90 (KL 1.00)" in page
    answers = [line for line in page.splitlines() if line.startswith("| prompt |")]
    assert answers == ["| prompt | base | sft | ppo | dpo | grpo | rloo | rejection |"]


def test_every_picture_of_many_answers_is_drawn_and_shown(full, tmp_path):
    write(full, tmp_path)
    page = (tmp_path / "report.md").read_text()
    for name in ("best_of_n.png", "majority.png", "choice.png"):
        assert f"]({name})" in page
        pixels = imread(tmp_path / name)
        assert pixels.std() > 0.05, "nothing is drawn"
        assert pixels[:, -2:, :3].min() == 1, "something is cut off at the right"


def test_models_that_do_not_fit_side_by_side_get_a_row_each(full, tmp_path, undrawn):
    lines = [line.rstrip() for line in write(full, tmp_path / "tiny" / "report").splitlines()]
    assert max(map(len, lines[:-3])) <= 100
    heads = [line for line in lines if line.startswith(" Models")]
    assert heads[0].split() == ["Models", "gold", "score", "correct", "beats", "sft", "KL", "entropy", "polite", "rude"]
    for name in full["models"]:
        assert sum(line.startswith(f" {name} ") for line in lines) == 1
    assert any(re.match(r" ppo +1.02 \[0.82, 1.32\] +50% +90% \[85, 93\] +2.50", line) for line in lines)
    text = " ".join(lines)
    assert "n=1 0.10, n=4 0.60; on training prompts n=1 0.10, n=2 0.40." in text and "k=1 46%, k=3 60%." in text
    assert lines[-2].endswith("ppo"), "the best that can be talked to"


def test_best_of_n_on_a_users_own_prompts_has_only_scores(full, without_judge, tmp_path):
    without_judge["sampling"]["best_of"] = 4
    without_judge["best_of_n"] = {key: full["best_of_n"][key] for key in ("n", "kl", "score")}
    printed = write(without_judge, tmp_path)
    assert "reward model's score, score: n=1 −0.50, n=4 2.00." in printed
    assert "| 4 | 0.64 | 2.00 |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "best_of_n.png").exists() and not (tmp_path / "majority.png").exists()


def test_a_new_report_replaces_the_old_one_and_leaves_other_files(results, events, tmp_path):
    folder = tmp_path / "report"
    write(results, folder, curves=events)
    (folder / "config.yaml").write_text("seed: 0")
    del results["minutes"]
    write(results, folder)
    names = {path.name for path in folder.iterdir()}
    pictures = {"quality.png", "quality-2.png", "reward_model.png"}
    assert names == {"config.yaml", "report.json", "report.html", "report.md", *pictures}


def test_a_metric_that_is_not_a_number_is_refused_and_the_old_report_stays(results, tmp_path):
    write(results, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    results["models"]["ppo"]["gold"] = float("nan")
    with pytest.raises(ValueError):
        write(results, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_one_model_is_enough_without_information_about_the_run(results, tmp_path, undrawn):
    base = results["models"]["base"] | {"gold_ci": None}
    printed = write({"sampling": results["sampling"], "models": {"base": base}}, tmp_path / "tiny" / "report")
    assert printed.splitlines()[-2].endswith("pretrain") and "gradus chat" in printed


def test_curves_are_the_wanted_tags_of_every_stage_that_has_event_files(events):
    found = read_curves(events)
    assert set(found) == {"pretrain", "ppo"}
    assert set(found["ppo"]) == {"train/loss", "rollout/score", "rollout/kl"}
    assert found["pretrain"]["val/loss"].steps == list(range(20))
    assert found["pretrain"]["val/loss"].values == [step / 2 for step in range(20)]


def test_a_resumed_run_replaces_what_was_logged_beyond_its_checkpoint(events):
    with SummaryWriter(str(events["ppo"]), filename_suffix=".later") as writer:
        for step in range(10, 15):
            writer.add_scalar("rollout/kl", 100.0 + step, step)
    curve = read_curves(events)["ppo"]["rollout/kl"]
    assert curve.values[:10] == [step / 2 for step in range(10)]
    assert curve.values[10:15] == [110.0, 111.0, 112.0, 113.0, 114.0]
    assert curve.steps == sorted(set(curve.steps))


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0, "0%"), (0.002, "0.2%"), (0.5, "50%"), (0.998, "99.8%"), (1, "100%")]
)
def test_a_share_near_0_or_1_does_not_look_like_0_or_100_percent(value, text):
    assert card.percent(value) == text


def test_a_number_that_rounds_to_zero_has_no_sign():
    assert [card.number(value) for value in (-0.004, 0.004, -0.006, None)] == ["0.00", "0.00", "−0.01", "–"]
