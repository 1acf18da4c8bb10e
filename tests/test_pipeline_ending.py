"""A pipeline without a report, or one that failed before it, ends with what its stages came to."""

import json

import pytest

from components.tasks import command_line, pipeline, plan
from tests.kit.composed_configs import compose_config


@pytest.fixture
def ended(tmp_path, monkeypatch, capsys):
    """A function: what a pipeline prints whose stages have run, and the last of them ended with this exit status."""
    export = tmp_path / "mine" / "sft" / "export"
    export.mkdir(parents=True)
    told = {"verdict": "still falling", "metric": "val/loss", "before": 9.1, "after": 5.06, "found": "it fell"}
    (export / "card.json").write_text(json.dumps({"learning": told, "metrics": {"steps": 18}}))

    def printed(code: int, *overrides: str) -> str:
        def run_all(steps, entries):
            if code:
                raise SystemExit(code)

        for module, name in ((plan, "check"), (command_line, "warn_of_unused_by_all")):
            monkeypatch.setattr(module, name, lambda *_: None)
        monkeypatch.setattr(pipeline, "run_all", run_all)
        cfg = compose_config(["stage=all", "run=mine", f"paths.logs={tmp_path}", *overrides])
        if code:
            with pytest.raises(SystemExit):
                pipeline.pipeline(cfg)
        else:
            pipeline.pipeline(cfg)
        return capsys.readouterr().out

    return printed


@pytest.mark.parametrize(("code", "stages"), [(0, "[tokenizer,sft]"), (1, "[tokenizer,sft,eval]")])
def test_stages_without_a_report_end_with_what_they_came_to(ended, code, stages):
    out = ended(code, f"stages={stages}")
    assert "Did each step work?" in out and "still falling" in out and "tokenizer" not in out


@pytest.mark.parametrize(("code", "stages"), [(0, "[sft,eval]"), (143, "[sft]")])
def test_a_report_says_it_itself_and_what_was_stopped_is_not_over(ended, code, stages):
    assert "Did each step work?" not in ended(code, f"stages={stages}")
