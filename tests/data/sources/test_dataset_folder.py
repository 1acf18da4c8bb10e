"""Folders as tools leave them: data is read in a defined order, other files are ignored, silently or with a warning."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from components.data.records import formats
from components.data.records.errors import SourceError
from components.data.sources.dataset_folder import Selection
from components.data.sources.source import open_source, records


@pytest.fixture
def folder(tmp_path):
    """folder(name, …) -> a folder of files, each with one document: its own name."""

    def make(*names: str) -> Path:
        for name in names:
            file = tmp_path / "d" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"text": name}) if ".json" in name else name)
        return tmp_path / "d"

    return make


def read(path: Path, **selection) -> list[str]:
    rows = open_source(str(path), selection=Selection(**selection)).rows()
    return [row.value.get("text", "?") for row in rows]


BESIDE = [
    ".DS_Store",
    "._a.jsonl",
    "__MACOSX/._a.jsonl",
    ".git/config.json",
    ".cache/huggingface/download/a.jsonl.metadata",
    ".cache/huggingface/a.json",
    ".ipynb_checkpoints/a-checkpoint.jsonl",
    ".gitattributes",
    "_SUCCESS",
    "README.md",
    "README.txt",
    "LICENSE.txt",
    "requirements.txt",
    "dataset_info.json",
    "dataset_infos.json",
    "a.jsonl.lock",
    "a.jsonl.tmp",
    ".a.jsonl.crc",
    "a.jsonl~",
    "#a.jsonl#",
    ".a.jsonl.swp",
]


def test_what_tools_write_next_to_data_is_ignored_silently(folder, caplog):
    assert read(folder("a.jsonl", "sub/b.txt", *BESIDE)) == ["a.jsonl", "sub/b.txt"]
    assert not caplog.messages


@pytest.mark.parametrize("other", ["b.xlsx", "b.jsonl.part", "b.zip", "sub/b.xyz", "_b.jsonl", "_delta_log/0.json"])
def test_what_could_be_data_and_is_not_read_is_reported(other, folder, caplog):
    assert read(folder("a.jsonl", other)) == ["a.jsonl"]
    assert [message for message in caplog.messages if f"ignored, because of unsupported types: {other}" in message]


@pytest.mark.parametrize("other", ["b.xlsx", "sub/b.zip"])
def test_a_folder_of_nothing_that_is_read_names_what_is_there(other, folder):
    with pytest.raises(SourceError, match=f"no data in this folder, .*; got {other}"):
        read(folder(other))


def test_files_come_in_the_order_of_their_paths_part_by_part(folder):
    names = ["a/z.txt", "a-b.txt", "a/b/c.txt", "part-10.txt", "part-2.txt", "B.txt", "é.txt"]
    assert read(folder(*names)) == ["B.txt", "a/b/c.txt", "a/z.txt", "a-b.txt", "part-10.txt", "part-2.txt", "é.txt"]


def test_links_are_followed_and_one_that_leads_back_is_left_out(folder, tmp_path, caplog):
    path = folder("a.txt", "sub/b.txt")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/c.txt").write_text("c")
    (path / "linked").symlink_to(tmp_path / "elsewhere")
    (path / "d.txt").symlink_to(tmp_path / "elsewhere/c.txt")
    (path / "sub/back").symlink_to(path)
    assert read(path) == ["a.txt", "c", "c", "sub/b.txt"]
    assert [
        message
        for message in caplog.messages
        if "sub/back: ignored, because it is a link to a folder above it" in message
    ]


@pytest.mark.parametrize("make", [lambda file: file.symlink_to("gone"), os.mkfifo], ids=["broken link", "pipe"])
def test_what_is_named_like_data_and_cannot_be_read_is_an_error(make, folder):
    path = folder("a.txt")
    make(path / "b.txt")
    with pytest.raises(SourceError, match=r"b\.txt: (a broken link|not a regular file)"):
        read(path)


@pytest.mark.parametrize(
    ("names", "trained_on", "said"),
    [
        (["train.txt", "test.txt", "validation.txt"], ["train.txt"], False),
        (["Train-0.txt", "TEST.txt"], ["Train-0.txt"], False),
        (["train/a.txt", "test/a.txt"], ["train/a.txt"], False),
        (["my_train.txt", "my_test.txt"], ["my_train.txt"], False),
        (["a.txt", "test.txt"], ["a.txt"], True),
        (["a.txt", "my-dev.txt", "val/b.txt"], ["a.txt"], True),
        (["training.txt", "notes.txt"], ["training.txt"], True),
        (["trains.txt", "ships.txt"], ["ships.txt", "trains.txt"], False),
        (["contest.txt", "develop.txt"], ["contest.txt", "develop.txt"], False),
        (["split=train/a.txt", "split=test/a.txt"], ["split=train/a.txt"], False),
        (["lang=fr/split=train/a.txt", "lang=fr/split=Validation/a.txt"], ["lang=fr/split=train/a.txt"], False),
        (["a.txt", "part=test/b.txt"], ["a.txt"], True),
    ],
)
def test_held_out_files_are_never_trained_on_and_ignored_files_are_reported(names, trained_on, said, folder, caplog):
    assert read(folder(*names)) == trained_on
    assert bool([message for message in caplog.messages if "ignored," in message]) == said


def test_a_folder_of_only_held_out_files_is_an_error_that_says_how_to_read_them(folder):
    path = folder("test.txt")
    with pytest.raises(SourceError, match=r"no files of the split train.*got test\.txt.*data\.split="):
        read(path)
    assert read(path, split="test") == ["test.txt"]


def test_files_can_be_selected_by_a_pattern_or_by_name(folder):
    path = folder("s1.txt", "s*.txt", "sub/s2.txt")
    assert read(path, files="s?.txt") == ["s*.txt", "s1.txt", "sub/s2.txt"]
    assert read(path, files="s*.txt") == ["s*.txt"]


@pytest.mark.parametrize("name", ["config.json", "metadata.json", "sub/dataset.json"])
def test_a_file_without_records_next_to_data_is_named_with_how_to_read_the_others(name, folder):
    path = folder("a.jsonl", "b.jsonl")
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text('{"model_type": "gpt2", "sizes": {"width": 8}}')
    source = open_source(str(path))
    with pytest.raises(SourceError, match=rf"d/{name}:1: .*data\.files=… selects which files of the folder are read"):
        list(records(source, formats.text, on_malformed="error", counts=Counter()))
    with pytest.raises(SourceError) as alone:
        list(records(open_source(str(path / name)), formats.text, on_malformed="error", counts=Counter()))
    assert "data.files" not in str(alone.value)


@pytest.mark.parametrize(
    "names", [("a.jsonl", "a.jsonl.gz"), ("sub/a.TXT.xz", "sub/a.TXT.zst"), ("a.json.GZ", "a.json.bz2")]
)
def test_a_file_next_to_its_compressed_copy_is_not_read_twice(names, folder):
    path = folder("b.txt", *names)
    with pytest.raises(SourceError, match=rf"d: {names[0]} and {names[1]}: .*data\.files="):
        open_source(str(path))
    with pytest.raises(SourceError, match=f"{names[0]} and {names[1]}"):
        open_source(str(path), selection=Selection(files="*"))
    assert open_source(str(path), selection=Selection(files=names[0])).name == "d"


def test_a_file_packed_among_held_out_ones_is_not_trained_on_too(folder):
    path = folder("b.txt", "a.txt", "a.txt.gz")
    (path / "README.md").write_text(
        "---\nconfigs:\n- data_files:\n  - split: train\n    path: [a.txt, b.txt]\n"
        "  - split: test\n    path: a.txt.gz\n---\n"
    )
    with pytest.raises(SourceError, match=r"d: a\.txt and a\.txt\.gz: "):
        open_source(str(path), selection=Selection(held_out_split="test"))
    assert read(path) == ["a.txt", "b.txt"]


def test_files_of_different_types_or_folders_can_share_a_name(folder):
    names = ["a.jsonl", "a.txt", "a.txt.d/a.txt", "b.txt"]
    assert read(folder(*names)) == names


def test_a_card_that_assigns_files_of_another_type_is_refused(folder):
    path = folder("a.xlsx")
    (path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: a.xlsx\n---\n")
    with pytest.raises(SourceError, match=r"a\.xlsx: unknown file type"):
        read(path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("data_dir: ../..", r"assigns \.\./\.\. to data_dir, expected files in the same folder"),
        ("data_dir: /", "assigns / to data_dir"),
        ("data_files: ../a.txt", r"assigns \.\./a\.txt to train"),
        ('data_files: "**a/**.txt/***x"', r"d/README\.md: train: .*\*\*"),
        ("data_dir: sub\n  data_files: ../a.txt", r"d/README\.md: assigns"),
    ],
)
def test_a_card_names_files_of_its_own_folder_or_is_refused(config, said, folder):
    path = folder("a.txt", "sub/b.txt")
    (path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  {config}\n---\n")
    with pytest.raises(SourceError, match=said):
        read(path)


def test_brackets_in_a_card_can_be_part_of_a_name(folder):
    path = folder("a[1].txt", "a1.txt", "b2.txt", "b3.txt")
    (path / "README.md").write_text("---\nconfigs:\n- data_files: ['a[1].txt', 'b[2-9].txt']\n---\n")
    assert read(path) == ["a[1].txt", "b2.txt", "b3.txt"]


@pytest.mark.parametrize("head", ["configs: 5", "configs: [5]", "- x", "a: [", "configs:\n- data_files: ../a.txt", "x"])
def test_a_card_of_any_head_is_read_or_refused_in_a_line(head, folder):
    path = folder("a.txt")
    (path / "README.md").write_text(f"---\n{head}\n---\n")
    try:
        assert read(path) == ["a.txt"]
    except SourceError as error:
        assert "README.md" in str(error)
