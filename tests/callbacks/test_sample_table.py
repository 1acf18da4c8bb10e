import html
import re

import pytest
import torch
from lightning import Callback
from lightning.pytorch.utilities.exceptions import _TunerExitException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from components.callbacks.checkpoints import Checkpoints
from components.callbacks.sample_table import SampleTable
from components.loggers.tensorboard_log import TensorBoard, markdown_table
from tests.kit.tiny_run import Stream, Tiny, trainer


class Talking(Tiny):
    def __init__(self):
        super().__init__()
        self.frozen = torch.nn.Dropout()
        self.modes = []
        self.collected = {}

    def on_train_start(self):
        self.frozen.eval()

    def training_step(self, batch, batch_idx):
        self.collected["scores"] = torch.tensor([batch_idx, 1.0, float("nan")])
        return super().training_step(batch, batch_idx)

    def sample_texts(self):
        self.modes.append((self.training, self.frozen.training, torch.is_grad_enabled()))
        return [{"prompt": "Who?", "response": f"step {self.global_step}", "score": 0.5}]

    def histograms(self):
        return self.collected


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    module = Talking()
    logger = TensorBoard(str(folder), "Talking")
    run = trainer([SampleTable(every_n_steps=3)], logger=logger, max_steps=7)
    run.fit(module, Stream())
    return module, EventAccumulator(str(folder), size_guidance={"histograms": 0}).Reload()


def test_a_table_is_written_every_n_steps_and_at_the_end(run):
    written = run[1].Tensors("Talking samples/text_summary")
    assert [event.step for event in written] == [3, 6, 7]
    text = written[1].tensor_proto.string_val[0].decode()
    assert text == "| prompt | response | score |\n| --- | --- | --- |\n| Who? | step 6 | 0.500 |"


def test_histograms_are_written_without_nan_and_left_as_they_are(run):
    written = run[1].Histograms("Talking scores")
    assert [(event.step, event.histogram_value.num) for event in written] == [(3, 2), (6, 2), (7, 2)]
    assert [event.histogram_value.sum for event in written] == [2 + 1, 5 + 1, 6 + 1]
    assert run[0].collected["scores"].isnan().sum() == 1


def test_sampling_runs_in_eval_mode_without_gradients_and_every_module_gets_its_mode_back(run):
    module = run[0]
    assert module.modes == [(False, False, False)] * 3
    assert module.training and not module.frozen.training


def test_modules_and_loggers_without_these_are_left_alone(tmp_path):
    trainer([SampleTable(2)], max_steps=4).fit(Talking(), Stream())
    logger = TensorBoard(str(tmp_path), "Talking")
    trainer([SampleTable(2)], logger=logger, max_steps=4).fit(Tiny(), Stream())
    assert "Talking samples/text_summary" not in EventAccumulator(str(tmp_path)).Reload().Tags()["tensors"]


class Leave(Callback):
    """Stops as a signal does: the step is saved, and nothing follows but teardown."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, *_):
        trainer.should_stop |= trainer.global_step == self.step

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.global_step == self.step:
            raise _TunerExitException


def tables_of(folder, *, at_hand: bool, leave: int) -> list[int]:
    """The steps of the tables of a run of seven steps that is stopped after step `leave` and resumed."""
    steps = []
    for step, checkpoint in ((leave, None), (99, folder / f"step={leave:08d}.ckpt")):
        logger = TensorBoard(str(folder / str(step)), "Talking")
        callbacks = [Leave(step), SampleTable(every_n_steps=3), Checkpoints(folder, 100)]
        run = trainer(callbacks, logger=logger, max_steps=7, enable_checkpointing=True, folder=folder)
        module = Talking()
        module.samples_at_hand = at_hand
        run.fit(module, Stream(), ckpt_path=checkpoint, weights_only=True)
        logger.finalize("success")
        events = EventAccumulator(str(folder / str(step))).Reload()
        if "Talking samples/text_summary" in events.Tags()["tensors"]:
            steps += [event.step for event in events.Tensors("Talking samples/text_summary")]
    return steps


@pytest.mark.parametrize("at_hand", [False, True])
@pytest.mark.parametrize("leave", [2, 3, 6])
def test_no_table_is_lost_if_a_signal_comes_at_its_step(leave, at_hand, tmp_path):
    """One that has to be computed is left to the resumed run."""
    assert tables_of(tmp_path, at_hand=at_hand, leave=leave) == [3, 6, 7]


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")
def test_a_cell_shows_the_exact_text():
    from tensorboard.plugin_util import markdown_to_safe_html  # warns when imported

    nasty = "a|b\n<end> **bold** `code` [x](y) _z_ &amp; c\\"
    table = markdown_table([{"prompt": nasty, "score": 1.0}])
    assert len(table.splitlines()) == 3
    page = markdown_to_safe_html(table)
    cells = [part.split("</td>")[0] for part in page.split("<td>")[1:]]
    assert len(cells) == 2
    assert set(re.findall("<[^>]*>", cells[0])) == {"<br>"}
    assert html.unescape(cells[0].replace("<br>", "\n")) == nasty


def test_columns_follow_the_first_row_and_a_missing_value_is_blank():
    assert markdown_table([{"a": 1, "b": "x"}, {"a": 2}]).splitlines()[-1] == "| 2 |  |"
