"""What a pipeline says when one of its stages ends early."""

import pytest

from components.launch import composing
from components.tasks import pipeline
from components.tasks.plan import Step
from tests.kit.composed_configs import compose_config


@pytest.mark.parametrize(
    ("code", "overrides", "said"),
    [
        (143, [], "was stopped (exit status 143); the same command resumes from there"),
        (143, ["force=true"], "was stopped (exit status 143); the same command with force=changed resumes from there"),
        (7, [], "are kept. Once it is fixed, the same command resumes from there"),
        (7, ["resume=never"], "are kept. Once it is fixed, the same command with resume=auto resumes from there"),
    ],
)
def test_the_command_that_resumes_does_not_start_from_scratch(code, overrides, said, monkeypatch, caplog):
    monkeypatch.setattr(composing, "compose_config", compose_config)
    monkeypatch.setattr(pipeline, "run", lambda arguments: code)
    with pytest.raises(SystemExit):
        pipeline.run_all([Step("rm", ["stage=rm", *overrides])], ["rm"])
    assert said in caplog.text
