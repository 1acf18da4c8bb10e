"""Every named data set of conf/data: read from a folder with the Hub's layout, and its error without a network."""

import socket
import urllib.request
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
import yaml
from hydra.utils import instantiate

from components.data.records.errors import SourceError
from components.data.sources import hub_datasets
from components.launch.schema import check
from tests.kit.composed_configs import compose_config

CONF = Path(__file__).resolve().parents[2] / "conf/data"
CONFIGS = {file.stem: yaml.safe_load(file.read_text()) for file in sorted(CONF.glob("*.yaml"))}
NAMED = [name for name, config in CONFIGS.items() if config.get("path") or config.get("mixture")]
STAGES = {"text": "pretrain", "chat": "sft", "preference": "rm"}


def said(*contents: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def ranked(prompt: list[dict], better: str, worse: str) -> dict:
    return {"prompt": prompt, "completions": [better, worse], "ranks": [0.0, 1.0]}


def built(name: str, common: dict, *overrides: str):
    """The data module of `data=<name>`."""
    stage = STAGES[CONFIGS[name]["defaults"][0]]
    cfg = compose_config([f"stage={stage}", f"data={name}", *overrides])
    check(cfg)
    return instantiate(cfg.data, **common)


def read(data) -> list[tuple[dict, bool | None]]:
    """(record, held out) of all sources, in order."""
    found = (pair for source, _ in data.sources() for pair in data.records_of(source, data.counts))
    return [({k: v for k, v in record.items() if k not in ("begins", "ends")}, row.held_out) for row, record in found]


HH = "\n\nHuman: Hi\n\nAssistant:"
FLAT = [
    {"message_id": "1", "parent_id": None, "message_tree_id": "1", "role": "prompter", "text": "Hola", "rank": None},
    {"message_id": "2", "parent_id": "1", "message_tree_id": "1", "role": "assistant", "text": "Mal", "rank": 1},
    {"message_id": "3", "parent_id": "1", "message_tree_id": "1", "role": "assistant", "text": "Bien", "rank": 0},
    {"message_id": "4", "parent_id": None, "message_tree_id": "4", "role": "prompter", "text": "Alone", "rank": None},
]
LINES = ["", " = Fev = \n", "", " A fox . \n", " = = Life = = \n", " = Toz = \n", " A toad . \n"]
TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]
SUMMARY = {
    "info": {"post": "Long", "title": "T", "subreddit": "s", "article": None},
    "summaries": [{"text": "bad"}, {"text": "good"}],
    "choice": 1,
}
SHP = {"history": "Why?", "human_ref_A": "So", "human_ref_B": "Er", "labels": 1}


def ultra(prompt: str) -> dict:
    answers = {"messages": said(prompt, "Yes"), "chosen": said(prompt, "Yes"), "rejected": said(prompt, "No")}
    return {"prompt": prompt, **answers}


ASKED = said("SUBREDDIT: r/s\n\nTITLE: T\n\nPOST: Long\n\nTL;DR:")
DIALOGUE = {"messages": said("Hi", "Yes")}

# name: ({file: records} as on the Hub, [(record, held out)] that are read)
HUB = {
    "fineweb_edu": (
        {
            "data/CC-MAIN-2013-20/train-00000-of-00014.parquet": [{"text": "not the sample"}],
            "sample/10BT/000_00000.parquet": [{"text": "page"}],
            "sample/100BT/000_00000.parquet": [{"text": "more"}],
        },
        [({"text": "page"}, None)],
    ),
    "tinystories": (
        {
            "data/train-00000-of-00004-2d5a.parquet": [{"text": "once"}, {"text": ""}],
            "data/validation-00000-of-00001-869c.parquet": [{"text": "upon"}],
            "TinyStoriesV2-GPT4-train.txt": "another version",
        },
        [({"text": "once"}, False), ({"text": "upon"}, True)],
    ),
    "wikitext": (
        {
            "wikitext-103-raw-v1/train-00000-of-00002.parquet": [{"text": line} for line in LINES],
            "wikitext-103-raw-v1/validation-00000-of-00001.parquet": [{"text": " = Naf = \n"}],
            "wikitext-103-raw-v1/test-00000-of-00001.parquet": [{"text": "secret"}],
            "wikitext-2-raw-v1/train-00000-of-00001.parquet": [{"text": "small"}],
        },
        [
            ({"text": "\n"}, False),
            ({"text": " = Fev = \n\n A fox . \n = = Life = = \n"}, False),
            ({"text": " = Toz = \n A toad . \n"}, False),
            ({"text": " = Naf = \n"}, True),
        ],
    ),
    "openwebtext": ({"plain_text/train-00000-of-00080.parquet": [{"text": "page"}]}, [({"text": "page"}, None)]),
    "alpaca": (
        {
            "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet": [
                {"instruction": "Add", "input": "1 2", "output": "3", "text": "Below is …"}
            ]
        },
        [({"messages": said("Add\n\n1 2", "3")}, None)],
    ),
    "dolly": (
        {
            "databricks-dolly-15k.jsonl": [
                {"instruction": "Add", "context": "1 2", "response": "3", "category": "maths"}
            ]
        },
        [({"messages": said("Add\n\n1 2", "3")}, None)],
    ),
    "oasst1": (
        {
            "data/train-00000-of-00001-b42a.parquet": FLAT,
            "data/validation-00000-of-00001-1342.parquet": FLAT[:2],
            "2023-04-12_oasst_spam.messages.jsonl.gz": FLAT[:1],
        },
        [({"messages": said("Hola", "Bien")}, False), ({"messages": said("Hola", "Mal")}, True)],
    ),
    "sharegpt": (
        {
            "ShareGPT_V3_unfiltered_cleaned_split.json": [{"id": "x_0", "conversations": TURNS}, {"conversations": []}],
            "HTML_cleaned_raw_dataset/sg_90k_part1.json": [{"id": "y", "conversations": "html"}],
        },
        [(DIALOGUE, None)],
    ),
    "ultrachat": (
        {
            "data/train_sft-00000-of-00003.parquet": [ultra("Hi")],
            "data/test_sft-00000-of-00001.parquet": [ultra("Bye")],
            "data/train_gen-00000-of-00003.parquet": [{"messages": said("not", "this")}],
        },
        [(DIALOGUE, False), ({"messages": said("Bye", "Yes")}, True)],
    ),
    "hh_rlhf": (
        {
            "harmless-base/train.jsonl.gz": [{"chosen": f"{HH} Yes", "rejected": f"{HH} No"}],
            "helpful-base/test.jsonl.gz": [{"chosen": f"{HH} A", "rejected": f"{HH} B"}],
            "helpful-base/train.jsonl.gz": [
                {"chosen": f"{HH} C", "rejected": f"{HH} D"},
                {"chosen": HH, "rejected": "?"},
            ],
            "red-team-attempts/red_team_attempts.jsonl.gz": [{"transcript": "no pair"}],
        },
        [
            (ranked(said("Hi"), "Yes", "No"), False),
            (ranked(said("Hi"), "C", "D"), False),
            (ranked(said("Hi"), "A", "B"), True),
        ],
    ),
    "ultrafeedback_binarized": (
        {
            "data/train_prefs-00000-of-00001.parquet": [ultra("Hi")],
            "data/test_prefs-00000-of-00001.parquet": [ultra("Bye")],
            "data/train_sft-00000-of-00001.parquet": [ultra("Hi")],
        },
        [(ranked(said("Hi"), "Yes", "No"), False), (ranked(said("Bye"), "Yes", "No"), True)],
    ),
    "summarize_from_feedback": (
        {
            "comparisons/train/0000.parquet": [SUMMARY],
            "comparisons/validation/0000.parquet": [SUMMARY | {"choice": 0}],
            "axis/validation/0000.parquet": [{"info": None}],
        },
        [
            ({"prompt": ASKED, "completions": ["bad", "good"], "ranks": [1.0, 0.0]}, False),
            ({"prompt": ASKED, "completions": ["bad", "good"], "ranks": [0.0, 1.0]}, True),
        ],
    ),
    "shp": (
        {
            "askbaking/train.json": [SHP],
            "askbaking/validation.json": [SHP | {"labels": 0}],
            "askbaking/test.json": [{"history": "secret"}],
            "askscience/train.json": [SHP],
        },
        [
            (ranked(said("Why?"), "So", "Er"), False),
            (ranked(said("Why?"), "So", "Er"), False),
            ({**ranked(said("Why?"), "So", "Er"), "ranks": [1.0, 0.0]}, True),
        ],
    ),
}
README = """---
license: other
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
---
# FineWeb-Edu
"""


@pytest.fixture
def copy(write, tmp_path):
    """copy(name) -> a folder as `git clone` or `hf download` leaves it."""

    def make(name: str, folder: str = "copy") -> str:
        write(f"{folder}/README.md", README if name == "fineweb_edu" else "---\nlicense: mit\n---\n# A data set\n")
        for file, content in HUB[name][0].items():
            place = tmp_path / folder / file
            if file.endswith(".parquet"):
                place.parent.mkdir(parents=True, exist_ok=True)
                datasets.Dataset.from_list(content).to_parquet(str(place))
            else:
                write(f"{folder}/{file}", content)
        return str(tmp_path / folder)

    return make


@pytest.fixture
def online(monkeypatch):
    """Clears environment variables that forbid or redirect network access."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "getproxies", dict)


def test_every_named_set_is_tested_here():
    assert set(NAMED) == {*HUB, "llama_mixture"}


@pytest.mark.parametrize("name", HUB)
def test_a_copy_of_the_hub_is_read_into_the_records_that_the_hub_has(name, copy, common):
    assert read(built(name, common, f"data.path={copy(name)}")) == HUB[name][1]


@pytest.mark.parametrize("name", ["tinystories", "ultrachat", "ultrafeedback_binarized"])
def test_a_sets_own_held_out_split_is_what_is_validated_on(name, copy, common):
    data = built(name, common, f"data.path={copy(name)}")
    data.prepare_data()
    data.setup()
    assert (len(data.train_examples), len(data.val_examples)) == (1, 1)


@pytest.mark.parametrize("name", NAMED)
def test_without_a_network_a_named_set_tries_once_and_says_how_to_use_a_copy(name, common, online, monkeypatch):
    tries = []

    def refuse(address, **_):
        tries.append(address)
        raise OSError("unreachable")

    def never(*_, **__):
        raise AssertionError("the library would try again and again")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(datasets, "load_dataset", never)
    setting = "data.root=<folder>" if name == "llama_mixture" else "data.path=<file or folder>"
    with pytest.raises(SourceError, match=f"cannot be reached.*Set {setting} to (a local copy|local copies)"):
        built(name, common).prepare_data()
    assert tries == [("huggingface.co", 443)]


@pytest.mark.parametrize("name", HUB)
def test_with_a_network_exactly_this_part_is_requested_from_the_library(name, common, online, monkeypatch):
    asked = []

    def load(*names, split, **options):
        asked.append((names, split, options))
        return datasets.Dataset.from_list([{"text": "x"}])

    monkeypatch.setattr(hub_datasets, "reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load)
    ((source, _),) = built(name, common).sources()
    held_out = [row.held_out for row in source.rows()]
    config = {"split": "train", "subset": None, "held_out_split": None, **CONFIGS[name]}
    path, _, revision = config["path"].partition("@")
    options = {"revision": revision or None}
    if "files" in config:
        options["data_files"] = {"train": config["files"]}
    splits = [config["split"], *filter(None, [config["held_out_split"]])]
    assert asked == [((path, config["subset"]), split, options) for split in splits]
    assert held_out == ([False, True] if config["held_out_split"] else [None])


def test_a_file_of_trees_is_oasst1_too(write, common):
    answer = {"message_id": "2", "role": "assistant", "text": "Bien", "rank": 0, "replies": []}
    tree = {"message_id": "1", "role": "prompter", "text": "Hola", "replies": [answer]}
    path = write("ready.trees.jsonl.gz", [{"message_tree_id": "1", "prompt": tree}])
    assert read(built("oasst1", common, f"data.path={path}")) == [({"messages": said("Hola", "Bien")}, None)]


def test_an_article_of_wikitext_is_one_document_with_its_sections(copy, common):
    data = built("wikitext", common, f"data.path={copy('wikitext')}/wikitext-103-raw-v1")
    assert [record["text"].count("= \n") for record, _ in read(data)] == [0, 2, 1, 1]


def test_llamas_mixture_has_the_published_shares(common):
    mixture = built("llama_mixture", common).mixture
    shares = {part["name"]: part["weight"] for part in mixture}
    assert shares == {
        "commoncrawl": 67,
        "c4": 15,
        "github": 4.5,
        "wikipedia": 4.5,
        "books": 4.5,
        "arxiv": 2.5,
        "stackexchange": 2,
    }
    assert sum(shares.values()) == 100


def test_a_mixtures_parts_are_read_from_sub_folders_of_its_root(write, tmp_path, common):
    write("root/commoncrawl/a.jsonl", [{"text": "web"}])
    write("root/c4/en/c4-train.00000-of-01024.json.gz", [{"text": "clean web"}])
    write("root/c4/en/c4-validation.00000-of-00008.json.gz", [{"text": "secret"}])
    write("root/github/file-000000000001.json.gz", [{"content": "x = 1"}, {"content": ""}])
    write("root/wikipedia/20231101.en/train-0.jsonl", [{"text": "article"}])
    write("root/wikipedia/20231101.de/train-0.jsonl", [{"text": "Artikel"}])
    for name in ("books", "arxiv", "stackexchange"):
        write(f"root/{name}/a.txt", name)
    data = built("llama_mixture", common, f"data.root={tmp_path}/root")
    texts = [record["text"] for record, _ in read(data)]
    assert texts == ["web", "clean web", "x = 1", "article", "books", "arxiv", "stackexchange"]
    assert [source.name for source, _ in data.sources()] == [part["name"] for part in data.mixture]


def test_a_part_that_the_root_lacks_is_named(write, tmp_path, common):
    write("root/commoncrawl/a.jsonl", [{"text": "web"}])
    with pytest.raises(SourceError, match=r"mixture\[1\]: data.root=.*root needs a sub-folder .*, c4"):
        built("llama_mixture", common, f"data.root={tmp_path}/root").sources()


@pytest.mark.parametrize(
    ("name", "files", "complaint"),
    [
        ("ultrachat", ["data/train_sft-0.jsonl"], r"no files of the split test_sft.*data\.held_out_split=null"),
        ("ultrachat", ["data/test_sft-0.jsonl"], r"no files of the split train_sft.*data\.split="),
        ("wikitext", ["wikitext-2-raw-v1/train-0.jsonl"], r"a sub-folder wikitext-103-raw-v1, got wikitext-2-raw-v1"),
        ("sharegpt", ["other.json"], r"no file matches data\.files=ShareGPT_V3"),
    ],
)
def test_a_copy_without_the_requested_part_is_an_error_that_says_so(name, files, complaint, write, tmp_path, common):
    for file in files:
        write(f"part/{file}", [{"text": "x"}])
    with pytest.raises(SourceError, match=complaint):
        built(name, common, f"data.path={tmp_path}/part").sources()


def test_a_subset_that_readme_does_not_declare_is_named_with_those_it_does(copy, common):
    with pytest.raises(SourceError, match=r"README\.md: .*sample-1BT.*sample-10BT.*data\.subset"):
        built("fineweb_edu", common, f"data.path={copy('fineweb_edu')}", "data.subset=sample-1BT").sources()


def test_other_held_out_records_are_other_data(copy, write, common):
    path = copy("ultrachat")
    before = built("ultrachat", common, f"data.path={path}").fingerprint()
    write("copy/data/test_sft-1.jsonl", [ultra("Bye")])
    assert built("ultrachat", common, f"data.path={path}").fingerprint() != before
