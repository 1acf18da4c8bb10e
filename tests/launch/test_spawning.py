"""What messages say about continuing a run."""

import pytest

from components.launch import spawning
from tests.kit.composed_configs import compose_config


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "the same command"),
        (["force=changed"], "the same command"),
        (["force=true"], "the same command with force=changed"),
        (["resume=never"], "the same command with resume=auto"),
        (["resume=a.ckpt"], "the same command with resume=auto"),
        (["debug=smoke"], "the same command with force=changed resume=auto"),  # which sets both
    ],
)
def test_a_command_that_starts_from_scratch_is_not_said_to_resume(overrides, said):
    assert spawning.same_command(compose_config(["stage=rm", *overrides]), "nowhere") == said


def test_an_artifact_that_force_was_to_replace_would_be_kept_by_another_force(tmp_path):
    cfg = compose_config(["stage=rm", "force=true"])
    said = f"the same command with force=changed, once {tmp_path} is moved away,"
    assert spawning.same_command(cfg, str(tmp_path), "nowhere") == said
    assert spawning.same_command(compose_config(["stage=rm", "resume=never"]), str(tmp_path)).endswith("resume=auto")
