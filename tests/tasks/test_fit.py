"""What a training says when it is stopped."""

import signal
from types import SimpleNamespace

import pytest

from components.callbacks.signals import GracefulStop
from components.tasks import fit
from tests.kit.composed_configs import compose_config


@pytest.mark.parametrize(
    ("overrides", "command"), [([], "the same command"), (["force=true"], "the same command with force=changed")]
)
def test_the_command_that_resumes_a_stopped_training_does_not_delete_its_checkpoint(overrides, command, caplog):
    stop = GracefulStop()
    stop.stopped_by = signal.SIGTERM
    with pytest.raises(SystemExit) as stopped:
        fit._stop_if_unfinished(
            SimpleNamespace(callbacks=[stop], global_step=3), compose_config(["stage=rm", *overrides])
        )
    assert stopped.value.code == 143
    where = "a checkpoint is in logs/tiny/rm/checkpoints"
    assert f"stopped by SIGTERM after step 3; {where}; {command} resumes from there" in caplog.text
