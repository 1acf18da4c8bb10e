"""stage=compare from the outside: what it writes, how a person resumes, what it rejects, and that the loop closes."""

import io
import json
from pathlib import Path

import pytest
import torch

from components.artifacts import lineage, store
from components.artifacts.store import ArtifactError
from components.comparing.completions import Samples
from components.comparing.judges import dense
from components.data.preference import PreferenceData
from components.launch import spawning
from components.launch.schema import check
from components.tasks import common, dispatch
from components.tasks.compare import matching_card, rank_at_once
from components.tokenizer.train import train
from components.world.world import World
from tests.kit import tiny_models
from tests.kit.composed_configs import compose_config

JUDGES = sorted(file.stem for file in (spawning.ROOT / "conf/judge").glob("*.yaml"))
WORDS = ("red", "blue", "lake", "fish", "gladly")


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def known(world, tmp_path_factory) -> list[str]:
    """Overrides that name a model which says one word of WORDS to anything, each as likely, and a reward model."""
    folder = tmp_path_factory.mktemp("artifacts")
    tokenizer = train((record["text"] for record in world.corpus(300)), vocab_size=600)
    model = tiny_models.parrot(tokenizer)
    header = tokenizer.render_prompt([{"role": "user", "content": "?"}])[-1]
    with torch.no_grad():
        model.lm_head.weight[:, header] = 0.0
        for word in WORDS:
            (piece,) = tokenizer.encode(f" {word}")
            model.lm_head.weight[piece, header] = 2.0
    store.write_artifact(folder / "sft", card={"stage": "sft"}, tokenizer=tokenizer, model=model)
    reward = tiny_models.random_scalar(tokenizer.vocab_size, seed=1, max_position_embeddings=128)
    store.write_artifact(folder / "rm", card={"stage": "rm"}, tokenizer=tokenizer, model=reward)
    return [f"artifacts.sft={folder / 'sft'}", f"artifacts.rm={folder / 'rm'}"]


@pytest.fixture
def compare(known, tmp_path, monkeypatch, capsys):
    """A function that runs stage=compare, with lines typed by a person, and returns what was printed."""

    def run(*overrides: str, typed: str = "") -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        sizes = ["stage.records=30", "stage.completions=6", f"paths.logs={tmp_path}"]
        cfg = compose_config(["stage=compare", *known, *sizes, *overrides])
        check(cfg)
        dispatch.run(cfg)
        return capsys.readouterr().out

    run.folder = tmp_path / "tiny/compare"
    return run


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def read_by_training(file: Path, known: list[str], tmp_path: Path) -> PreferenceData:
    tokenizer = store.load_tokenizer(known[0].partition("=")[2])
    data = PreferenceData(tokenizer=tokenizer, context=128, cache_dir=str(tmp_path / "cache"), path=str(file))
    data.prepare_data()
    data.setup()
    return data


def test_every_judge_composes_and_fits_its_constructor():
    assert JUDGES == ["function", "human", "reward", "world"]
    for judge in JUDGES:  # a function without a place is refused by `reward_functions.check`
        check(compose_config(["stage=compare", f"judge={judge}"]))


def test_the_world_ranks_training_questions_into_records_that_training_reads(compare, known, world, tmp_path):
    told = compare()
    found = rows(compare.folder / "preferences.jsonl")
    assert {row["prompt"][0]["content"] for row in found} <= {q.text for q in world.questions("train")}
    for row in found:
        worth = [world.judge(row["prompt"][0]["content"], one, True).gold for one in row["completions"]]
        order = sorted(set(worth), reverse=True)
        assert row["ranks"] == [order.index(one) for one in worth]
        assert len(set(row["completions"])) == len(row["completions"]) >= 2
    assert f"{len(found)} comparisons" in told and "100.0% of pairs ranked as gold ranks them" in told
    data = read_by_training(compare.folder / "preferences.jsonl", known, tmp_path)
    assert data.counts["records"] == len(found) and data.counts["truncated"] == 0


def test_the_seed_decides_what_is_compared(compare, tmp_path):
    found = []
    for run, seed in (("a", 1), ("b", 1), ("c", 2)):
        compare(f"run={run}", f"seed={seed}")
        found.append((tmp_path / run / "compare/preferences.jsonl").read_text())
    assert found[0] == found[1] != found[2]


def test_the_same_command_does_nothing_and_another_setting_replaces_only_with_force(compare):
    compare()
    before = (compare.folder / "preferences.jsonl").read_text()
    assert "up to date" in compare()
    with pytest.raises(ArtifactError, match=r"paths.folder=compare/<name>.*force=true.*judge.noise: 0.0 → 1.0"):
        compare("judge.noise=1.0")
    assert (compare.folder / "preferences.jsonl").read_text() == before
    compare("judge.noise=1.0", "force=true")
    turned = rows(compare.folder / "preferences.jsonl")
    assert [row["ranks"] for row in turned] == [
        [max(row["ranks"]) - rank for rank in row["ranks"]] for row in map(json.loads, before.splitlines())
    ]
    assert (compare.folder / "preferences.jsonl.previous").read_text() == before


def test_a_reward_model_ranks_by_its_scores_or_samples_from_them(compare, known):
    told = compare("judge=reward", "trainer.precision=32-true")
    model = store.load_scalar(known[1].partition("=")[2])
    tokenizer = store.load_tokenizer(known[1].partition("=")[2])
    for row in rows(compare.folder / "preferences.jsonl"):
        prompt = tokenizer.render_prompt(row["prompt"])
        read = [torch.tensor([[*prompt, *tokenizer.encode(one), tokenizer.end_id]]) for one in row["completions"]]
        order = sorted((float(model(ids)[0, -1].detach()) for ids in read), reverse=True)
        assert row["ranks"] == [order.index(float(model(ids)[0, -1].detach())) for ids in read]
    assert "gold of the best" in told
    exact = (compare.folder / "preferences.jsonl").read_text()
    compare("judge=reward", "judge.temperature=50.0", "force=true")
    assert (compare.folder / "preferences.jsonl").read_text() != exact


def test_a_judge_of_ones_own_reads_the_columns_of_the_record(tmp_path):
    class ByTheRecord:
        def rank(self, prompt, completions, rng, columns):
            return dense([completion != columns["word"] for completion in completions])

    records = [
        Samples([{"role": "user", "content": "say"}], ["red", "blue"], {"word": word}) for word in ("blue", "red")
    ]
    assert rank_at_once(ByTheRecord(), records, tmp_path, seed=0)
    assert [row["ranks"] for row in rows(tmp_path / "preferences.jsonl")] == [[1, 0], [0, 1]]


def test_a_function_ranks_by_its_sum_and_reads_the_columns_of_the_record(compare, tmp_path):
    """Two for the record's word, minus a tenth for each letter."""
    (tmp_path / "r.py").write_text(
        "def right(completions, word):\n"
        "    return [float(c[0]['content'].strip() == w) for c, w in zip(completions, word)]\n"
        "def length(texts):\n    return [len(text.strip()) for text in texts]\n"
    )
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"say {word}", "word": word}) + "\n" for word in WORDS))
    both = (
        f"{{right: {{path: {tmp_path}/r.py:right, weight: 2}}, length: {{path: {tmp_path}/r.py:length, weight: -0.1}}}}"
    )
    told = compare(
        "judge=function", f"judge.functions={both}", "data=prompts", f"data.path={file}", "data.val_fraction=0"
    )
    found = rows(compare.folder / "preferences.jsonl")
    assert len(found) == 30 and "gold" not in told
    for row in found:
        word = row["prompt"][0]["content"].removeprefix("say ")
        worth = [2.0 * (one.strip() == word) - 0.1 * len(one.strip()) for one in row["completions"]]
        order = sorted(set(worth), reverse=True)
        assert row["ranks"] == [order.index(one) for one in worth]
    (tmp_path / "r.py").write_text((tmp_path / "r.py").read_text() + "\n")
    with pytest.raises(ArtifactError, match="judge.functions.right"):
        compare("judge=function", f"judge.functions={both}", "data=prompts", f"data.path={file}", "data.val_fraction=0")


def answers(folder: Path) -> str:
    """A line per sampled record: the letters in their order."""
    letters = [" ".join("abcdef"[: len(row["completions"])]) for row in rows(folder / "completions.jsonl")]
    return "\n".join(letters) + "\n"


def test_a_person_resumes_where_they_stopped_and_ends_with_what_one_session_gives(compare):
    told = compare("judge=human")  # the input ends at once
    assert "1 of " in told and "; the same command resumes from here" in told and "no comparison" in told
    written = (compare.folder / "completions.jsonl").read_text()
    lines = answers(compare.folder).splitlines(keepends=True)
    told = compare("judge=human", typed="".join(lines[:3]) + "s\n" + lines[4] + "q\n")
    assert f"stopped: 4 judged, 1 skipped, {len(lines) - 5} to go" in told
    assert [row["record"] for row in rows(compare.folder / "preferences.jsonl")] == [0, 1, 2, 4]
    assert not store.read_card(compare.folder)["finished"]
    told = compare("judge=human", typed="".join(lines[5:]))
    assert "stopped" not in told and f"{len(lines) - 1} comparisons" in told
    assert store.read_card(compare.folder)["finished"]
    pieces = [(compare.folder / name).read_text() for name in ("preferences.jsonl", "completions.jsonl")]
    assert pieces[1] == written
    assert "up to date" in compare("judge=human", typed="a")
    whole = "".join([*lines[:3], "s\n", *lines[4:]])
    compare("judge=human", "force=true", typed=whole)
    assert [(compare.folder / name).read_text() for name in ("preferences.jsonl", "completions.jsonl")] == pieces


def test_a_person_undoes_decisions_even_those_of_an_earlier_session(compare):
    compare("judge=human")
    first = answers(compare.folder).splitlines()[0]
    compare("judge=human", typed=f"{first}\n")
    before = rows(compare.folder / "preferences.jsonl")
    told = compare("judge=human", typed=f"u\nu\n{first[::-1]}\n")
    assert "nothing to undo" in told
    after = rows(compare.folder / "preferences.jsonl")
    assert before[0]["completions"] == after[0]["completions"]
    assert after[0]["ranks"] == [max(before[0]["ranks"]) - rank for rank in before[0]["ranks"]]


def test_a_persons_rankings_are_replaced_only_with_force_and_never_lost(compare):
    compare("judge=human")
    compare("judge=human", typed=answers(compare.folder).splitlines(keepends=True)[0])
    judged = (compare.folder / "preferences.jsonl").read_text()
    with pytest.raises(ArtifactError, match="force=true to replace them"):
        compare("judge=human", "stage.temperature=0.5", typed="q\n")
    assert (compare.folder / "preferences.jsonl").read_text() == judged
    compare("judge=human", "stage.temperature=0.5", "force=true", typed="q\n")
    assert (compare.folder / "preferences.jsonl.previous").read_text() == judged
    assert not (compare.folder / "preferences.jsonl").exists()


def test_rankings_that_are_replaced_again_and_again_are_all_kept(compare):
    """A command with force=true starts over each time, which is why it is not said to resume."""
    told = compare("judge=human", "force=true")
    assert "; the same command with force=changed resumes from here" in told
    lines = answers(compare.folder).splitlines(keepends=True)
    kept = []
    for number in range(3):
        compare("judge=human", "force=changed", typed=f"{lines[number]}s\n")
        kept.append([(compare.folder / name).read_text() for name in ("preferences.jsonl", "skipped.jsonl")])
        compare("judge=human", "force=true", typed="q\n")
    for number, texts in zip(("", "-2", "-3"), kept, strict=True):
        names = (f"preferences.jsonl.previous{number}", f"skipped.jsonl.previous{number}")
        assert [(compare.folder / name).read_text() for name in names] == texts


def test_rankings_and_skipped_records_of_a_session_have_the_same_number(tmp_path):
    (tmp_path / "skipped.jsonl.previous").touch()  # of a session without rankings
    for name in ("preferences.jsonl", "skipped.jsonl"):
        (tmp_path / name).touch()
    assert matching_card(tmp_path, {}, force=True) is None
    names = ["preferences.jsonl.previous-2", "skipped.jsonl.previous", "skipped.jsonl.previous-2"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names


def test_prompts_of_several_turns_keep_their_messages_and_need_a_judge_other_than_the_world(compare, tmp_path):
    turns = [
        {"role": "user", "content": "what color is the fev ?"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "sure ?"},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": turns}) + "\n")
    mine = ["data=prompts", f"data.path={file}"]
    with pytest.raises(ValueError, match=r"(?s)judge=world knows.*judge=reward.*judge=human"):
        compare(*mine)
    told = compare(*mine, "judge=reward", "stage.records=null")
    assert [row["prompt"] for row in rows(compare.folder / "preferences.jsonl")] == [turns]
    assert "gold" not in told


def test_the_command_that_is_suggested_trains_on_the_comparisons_and_finds_all_that_it_reads(compare):
    command = compare().strip().rpartition("python train.py ")[2].split()
    cfg = compose_config(command)
    check(cfg)
    assert cfg.paths.stage.endswith("/tiny/rm") and cfg.data.path == str(compare.folder / "preferences.jsonl")
    assert set(lineage.require(dict(cfg.reads), dict(cfg.artifacts), "")) == {"tokenizer", "model"}
    assert common.common_tokenizer(cfg).fingerprint == store.read_card(compare.folder)["tokenizer"]


def test_a_missing_artifact_is_named_with_the_command_that_makes_it(compare, tmp_path):
    with pytest.raises(ArtifactError, match=r"no rm artifact at .*nowhere.*stage=rm"):
        compare("judge=reward", f"artifacts.rm={tmp_path / 'nowhere'}")
    with pytest.raises(ArtifactError, match=r"no sft artifact at .*nowhere.*stage=sft"):
        compare(f"artifacts.sft={tmp_path / 'nowhere'}")


def test_one_completion_cannot_be_compared(compare):
    with pytest.raises(Exception, match="stage.completions: got 1, expected at least 2"):
        compare("stage.completions=1")
