import io
import re
import sys

import pytest

from components.callbacks.progress import StepProgress, duration, short
from components.training.optimizers import scaled
from tests.kit.tiny_run import Stream, Tiny, Validated, trainer

LINE = re.compile(r"step \d+/6 loss \d[\d.e+-]* [\d.]+k? tok/s lr 1\.0e-02( eta \d+s)?")


def lines(capsys, *loaders, module=Tiny, seconds=0.0, **settings):
    settings = {"enable_progress_bar": True, "max_steps": 6} | settings
    trainer([StepProgress(seconds)], **settings).fit(module(), Stream(), *loaders)
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]


def test_a_log_file_gets_one_plain_line_per_report(capsys):
    written = lines(capsys)
    assert [line.split()[1] for line in written] == ["1/6", "2/6", "3/6", "4/6", "5/6", "6/6"]
    assert all(LINE.fullmatch(line) for line in written), written
    assert ["eta" in line for line in written] == [False, *[True] * 5]  # one step says nothing about the others
    assert written[-1].endswith("eta 0s")


def test_the_learning_rate_is_that_of_weights_without_a_factor(capsys):
    class Faster(Tiny):
        def configure_optimizers(self):
            return scaled(super().configure_optimizers(), {next(self.parameters()): 6.0})

    assert all(" lr 1.0e-02" in line for line in lines(capsys, module=Faster))


def test_between_the_first_step_and_the_last_it_keeps_quiet_for_the_interval(capsys):
    assert [line.split()[1] for line in lines(capsys, seconds=60)] == ["1/6", "6/6"]


def test_micro_batches_are_not_steps(capsys):
    written = lines(capsys, accumulate_grad_batches=3)
    assert [line.split()[1] for line in written] == ["1/6", "2/6", "3/6", "4/6", "5/6", "6/6"]


def test_the_total_is_found_when_training_is_counted_in_epochs(capsys):
    trainer([StepProgress(60)], enable_progress_bar=True, max_epochs=2).fit(Tiny(), Stream(4))
    assert "step 8/8" in capsys.readouterr().out


@pytest.mark.parametrize("max_steps, total", [(60, 8), (5, 5)])
def test_of_two_limits_the_total_is_the_one_reached_first(capsys, max_steps, total):
    trainer([StepProgress(60)], enable_progress_bar=True, max_epochs=2, max_steps=max_steps).fit(Tiny(), Stream(4))
    assert f"step {total}/{total} " in capsys.readouterr().out


def test_validation_metrics_have_a_line_of_their_own(capsys):
    written = lines(capsys, Stream(), module=Validated, val_check_interval=3, limit_val_batches=1, seconds=60)
    assert [line for line in written if re.fullmatch(r"step [36] val/loss [\d.e-]+", line)] == written[1::2]


def test_a_module_can_add_its_own_metrics(capsys):
    class Scored(Tiny):
        headline = {"score": 1.2345, "kl": 2.0}

    assert all("score 1.23 kl 2 " in line for line in lines(capsys, module=Scored))


def test_a_terminal_gets_a_bar_with_the_same_numbers_and_no_epoch(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    trainer([StepProgress()], enable_progress_bar=True, max_steps=6).fit(Tiny(), Stream())
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert re.search("━+ step 6/6 loss", shown)
    assert "Epoch" not in shown


def test_a_disabled_bar_prints_nothing(capsys):
    progress = StepProgress(0)
    progress.disable()
    trainer([progress], enable_progress_bar=True, max_steps=3).fit(Tiny(), Stream())
    assert "step" not in capsys.readouterr().out


@pytest.mark.parametrize("number, text", [(950, "950"), (18_300, "18.3k"), (1_250_000, "1.25M"), (2e9, "2G")])
def test_numbers_are_shortened_to_three_digits(number, text):
    assert short(number) == text


@pytest.mark.parametrize("seconds, text", [(12, "12s"), (59.6, "1m00s"), (185, "3m05s"), (7620, "2h07m")])
def test_durations_read_like_speech(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("batches", "told"), [(-1, True), (1, False)])
def test_a_full_validation_before_the_first_step_is_announced_and_its_metrics_are_printed(capsys, batches, told):
    trainer([StepProgress()], max_steps=1, num_sanity_val_steps=batches, enable_progress_bar=True).fit(
        Validated(), Stream(), Stream(3)
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["validating before the first step", "step 0 val/loss 0.72"] if told else "step 1/1" in lines[0]
