"""The scripts of examples/: each runs as it is, as a library and without Hydra, and does what it says."""

import inspect
import json
import pydoc
import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from components.artifacts import store
from components.data.chat import ChatData
from components.data.records.errors import SourceError
from components.rewards.function_file import RewardError
from components.rewards.functions import FunctionReward
from tests.kit.tiny_models import random_model, random_scalar

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(file for file in (ROOT / "examples").glob("*.py") if file.name != "rewards.py")
CHAT = [{"role": "user", "content": "where does anna live?"}, {"role": "assistant", "content": "in paris."}]
TRAINED = [
    file
    for file in sorted((ROOT / "conf/stage").glob("*.yaml"))
    if "\n  _target_: components.stages." in file.read_text()
]
OF_THE_RECIPE = {"epochs", "minibatches", "samples_per_prompt"}  # YAML's are those of its own number of prompts


@pytest.fixture
def run(tmp_path, small_tokenizer, monkeypatch, capsys):
    """Runs a script in a folder with a language model, a reward model and dialogues; returns what it printed."""
    size = small_tokenizer.vocab_size
    models = {"lm": random_model(size, max_position_embeddings=256), "rm": random_scalar(size)}
    for name, model in models.items():
        store.write_artifact(tmp_path / name, tokenizer=small_tokenizer, model=model)
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    monkeypatch.chdir(tmp_path)

    def ran(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's, on a trainer that neither validates nor logs
            runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
        return capsys.readouterr().out

    return ran


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_an_example_is_short_uses_no_hydra_and_begins_with_its_command(script):
    source = script.read_text()
    assert len(source.splitlines()) <= 40
    assert "hydra" not in source.lower() and "omegaconf" not in source.lower()
    assert f"python examples/{script.name} " in source


def test_sampling_prints_four_answers(run):
    assert len(run("sample.py", "lm", "where does anna live?").splitlines()) == 4


def test_scores_are_printed_the_best_first_and_belong_to_the_answers_last_token(run, small_tokenizer):
    out = run("score.py", "rm", CHAT[0]["content"], "in paris.", "no", "maybe")
    scores = [float(line.split()[0]) for line in out.splitlines()]
    assert scores == sorted(scores, reverse=True) and len(scores) == 3
    ids, mask = small_tokenizer.render(CHAT)
    last = max(place for place, said in enumerate(mask) if said)
    with torch.no_grad():
        expected = store.load_scalar("rm")(torch.tensor([ids[: last + 1]]))[0, -1].item()
    [printed] = [float(line.split()[0]) for line in out.splitlines() if line.endswith("in paris.")]
    assert printed == pytest.approx(expected, abs=0.005)


def test_comparing_prints_a_share_and_an_interval_for_every_model(run):
    lines = run("compare.py", "lm", "lm").splitlines()
    assert len(lines) == 2 and lines[0] == lines[1]
    assert lines[0].startswith("0% polite [0%, ") and lines[0].endswith("]  lm")


@pytest.mark.parametrize("script", ["sft.py", "grpo.py", "stage.py"])
def test_a_training_example_writes_the_model_that_it_trained(run, script, monkeypatch):
    import lightning

    class Short(lightning.Trainer):
        def __init__(self, **settings):
            super().__init__(**settings | {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False})

    monkeypatch.setattr(lightning, "Trainer", Short)
    run(script, "lm", *(["chats.jsonl"] if script == "stage.py" else []), "made")
    before, after = (dict(store.load_causal_lm(folder).named_parameters()) for folder in ("lm", "made"))
    changed = any(not torch.equal(before[name], after[name]) for name in before)
    assert changed == (script != "grpo.py")  # no answer of random weights is brief, so all are as good
    assert "A model of Gradus" in Path("made/README.md").read_text()


@pytest.mark.parametrize("stage", TRAINED, ids=lambda file: file.stem)
def test_a_constructor_has_the_defaults_of_its_recipe(stage):
    settings = yaml.safe_load(stage.read_text())["stage"]
    constructors = [cls.__init__ for cls in reversed(pydoc.locate(settings["_target_"]).__mro__)]
    defaults = {
        name: parameter.default
        for constructor in constructors
        for name, parameter in inspect.signature(constructor).parameters.items()
    }
    refer = {name for name, value in settings.items() if str(value).startswith("${")}  # to settings of the world
    plain = {name: value for name, value in settings.items() if not isinstance(value, dict | list)}
    for name in plain.keys() & defaults.keys() - OF_THE_RECIPE - refer:
        assert plain[name] == defaults[name], name


def test_records_at_hand_are_read_like_a_file_of_them(tmp_path, small_tokenizer):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    shared = {"tokenizer": small_tokenizer, "context": 64, "val_fraction": 0, "cache_dir": str(tmp_path / "cache")}
    given = ChatData(records=[{"messages": CHAT}], world={}, **shared)
    read = ChatData(path=str(tmp_path / "a.jsonl"), **shared)
    for data in (given, read):
        data.prepare_data()
        data.setup()
    assert given.train_examples[0][0].tolist() == read.train_examples[0][0].tolist()
    assert not given.is_builtin
    other = ChatData(records=[{"messages": CHAT[:1]}], **shared)
    assert other.fingerprint() != given.fingerprint()


def test_a_wrong_record_at_hand_is_named(tmp_path, small_tokenizer):
    shared = {"tokenizer": small_tokenizer, "context": 64, "cache_dir": str(tmp_path)}
    with pytest.raises(SourceError, match=r"records\[1\]: expected a demonstration as a JSON object, got list"):
        ChatData(records=[{"messages": CHAT}, CHAT], **shared).prepare_data()
    with pytest.raises(SourceError, match="records: expected what JSON can hold"):
        ChatData(records=[{"messages": object()}], **shared).prepare_data()


def test_functions_at_hand_are_a_weighted_sum_under_their_own_names():
    def short(texts):
        return [float(len(text) < 5) for text in texts]

    def loud(texts):
        return [float(text.isupper()) for text in texts]

    reward = FunctionReward.of_functions(short, loud, weights=[1, 0.5])
    assert reward.weights == {"short": 1, "loud": 0.5}
    with pytest.raises(RewardError, match="different names and a weight for each, got short, short"):
        FunctionReward.of_functions(short, short)
    with pytest.raises(RewardError, match="got short"):
        FunctionReward.of_functions(short, weights=[1, 2])
    with pytest.raises(RewardError, match="got none"):
        FunctionReward.of_functions()


@pytest.mark.slow(minutes=1)
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path, monkeypatch, capsys):
    """With a few steps for each stage, and otherwise as it is."""
    notebook = json.loads((ROOT / "examples/pipeline.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {"__name__": "__main__"}
    with warnings.catch_warnings():
        for cell in cells:
            few = re.sub(
                r'"documents": 30_000.*?}', '"documents": 400, "pretrain": 3, "sft": 2, "rm": 2, "ppo": 2}', cell
            )
            assert (few != cell) == ("SIZES =" in cell)
            exec(compile(few, "cell", "exec"), space)
    assert re.search(r"sft: gold -?\d.*\nppo: gold ", capsys.readouterr().out)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["base", "ppo", "rm", "sft"]
