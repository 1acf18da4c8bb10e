import socket
import time
import urllib.request
from collections import Counter
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest

from components.data.records import formats
from components.data.records.errors import SourceError
from components.data.sources.dataset_folder import Selection
from components.data.sources.source import open_source, records
from components.system import hub as models_hub


def read(path: str, normalize=formats.text, on_malformed="error", counts=None) -> list:
    counts = Counter() if counts is None else counts
    found = records(open_source(path), normalize, on_malformed=on_malformed, counts=counts)
    return [record for _, record in found]


def test_a_text_file_is_one_document_with_its_line_breaks(write):
    assert read(write("a.txt", "one\r\ntwo\n\nthree\n")) == [{"text": "one\r\ntwo\n\nthree\n"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "x"}\n\n{"text": "y", "more": 1}'),
        ("b.jsonl.gz", '\ufeff{"text": "x"}\n{"text": "y"}\n'),
        ("c.json", '[{"text": "x"},\n {"text": "y"}]'),
        ("d.json", '{"text": "x"}\n{"text": "y"}\n'),
        ("e.json.gz", '{"text": "x"}\n{"text": "y"}\n'),
    ],
)
def test_every_kind_of_file_gives_the_same_records(write, name, content):
    assert read(write(name, content)) == [{"text": "x"}, {"text": "y"}]


def test_parquet_is_read_too(tmp_path):
    datasets.Dataset.from_list([{"text": "x"}, {"text": "y"}]).to_parquet(str(tmp_path / "a.parquet"))
    assert read(str(tmp_path / "a.parquet")) == [{"text": "x"}, {"text": "y"}]


def test_a_folder_is_read_in_the_order_of_names_and_other_files_are_left_alone(write, tmp_path):
    write("d/b.txt", "second")
    write("d/a/x.jsonl", [{"text": "first"}])
    write("d/README.md", "no data")
    write("d/.hidden/c.txt", "no data")
    assert [record["text"] for record in read(str(tmp_path / "d"))] == ["first", "second"]


def test_if_a_folder_has_a_train_file_nothing_else_is_trained_on(write, tmp_path):
    write("d/test.jsonl", [{"text": "secret"}])
    write("d/train-0.jsonl", [{"text": "open"}])
    assert read(str(tmp_path / "d")) == [{"text": "open"}]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "x"}\nnot json\n', r"a\.jsonl:2: expected one JSON object, got 'not json'"),
        ("a.jsonl", '{"text": "x"}\n\n{"txt": "x"}\n', r"a\.jsonl:3: .*got fields 'txt'"),
        ("a.jsonl", '"x"\n', r"a\.jsonl:1: expected .* JSON object, got str 'x'"),
        ("a.jsonl.gz", '{"text": "x"}\n{"text": 5}\n', r"a\.jsonl\.gz:2: .*got int 5"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', r"a\.jsonl:2: expected UTF-8, .*0xff at column 11"),
        ("a.jsonl", "{}\n", r"a\.jsonl:1: .*data\.on_malformed=skip"),
        ("a.txt", b"one\ntwo \xe9", r"a\.txt:2: expected UTF-8, got byte 0xe9.*iconv"),
        ("a.json", '[{"text": "x"}, {"text": 5}]', r"a\.json: record 2: .*got int 5"),
        ("a.json", '[{"text": "x"},\n oops]', r"a\.json:2: expected JSON, got an error: "),
        ("a.json", '{"text": "x"}\nnot json\n', r"a\.json:2: expected one JSON object, got 'not json'"),
        ("a.json", '"x"', r"a\.json:1: expected .* JSON object, got str"),
        ("a.txt", "", r"a\.txt: contains no records.*data\.path"),
        ("a.py", "x,y", r"a\.py: unknown file type, expected one of .*\.parquet"),
        ("a.parquet", "no parquet", r"a\.parquet: not a readable parquet file"),
    ],
)
def test_errors_say_what_is_wrong_with_a_file_with_its_name_and_line(write, name, content, said):
    with pytest.raises(SourceError, match=said):
        read(write(name, content))


def test_half_a_gzip_file_is_named(write):
    path = Path(write("a.jsonl.gz", [{"text": f"{i} x"} for i in range(1000)]))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(SourceError, match=r"a\.jsonl\.gz: not a complete gzip file"):
        read(str(path))


@pytest.mark.parametrize("path", ["nothing.jsonl", "/no/where/at/all", "./x.txt"])
def test_a_missing_path_is_named(path):
    with pytest.raises(SourceError, match="no such file or folder. Set data.path"):
        open_source(path)


def test_an_empty_folder_says_what_it_expected(tmp_path):
    with pytest.raises(SourceError, match=r"no data in this folder.*\.jsonl.*\.gz"):
        open_source(str(tmp_path))


def test_skipping_leaves_bad_records_out_and_counts_them(write, caplog):
    path = write("a.jsonl", b'{"text": "x"}\nnope\n{"text": 1}\n\xff\n{"text": "y"}\n')
    counts = Counter()
    assert read(path, on_malformed="skip", counts=counts) == [{"text": "x"}, {"text": "y"}]
    assert counts == {"records": 2, "malformed": 3}
    assert [message for message in caplog.messages if "a.jsonl:2" in message and "Skipping" in message]


def test_the_fingerprint_is_of_the_contents_and_not_of_the_place(write):
    one, same = write("a.jsonl", [{"text": "x"}]), write("b/c.jsonl", [{"text": "x"}])
    before = open_source(one).fingerprint()
    assert before == open_source(same).fingerprint()
    assert before != open_source(write("a.jsonl", [{"text": "y"}, {"text": "z"}])).fingerprint()


@pytest.fixture
def online(monkeypatch):
    """The library's online mode, independent of this machine's environment, without a proxy."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "getproxies", dict)


def test_without_a_network_a_hub_name_fails_at_once_with_the_setting_to_use(online, monkeypatch):
    def refuse(*_, **__):
        raise OSError("unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    said = r"^owner/name: huggingface.co cannot be reached.*data\.path.*local copy"
    with pytest.raises(SourceError, match=said):
        read("owner/name")


def test_a_name_look_up_that_hangs_is_not_waited_for(online, monkeypatch):
    monkeypatch.setattr(models_hub, "PATIENCE", 0.1)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: time.sleep(1))
    start = time.monotonic()
    with pytest.raises(SourceError, match="cannot be reached"):
        read("owner/name")
    assert time.monotonic() - start < 0.8


def test_offline_mode_looks_only_in_the_cache_for_name_config_and_revision(monkeypatch):
    asked = []

    def load(*names, **options):
        asked.append((names, options["revision"], str(options["split"])))
        return datasets.Dataset.from_list([{"text": "x"}])

    def never(*_, **__):
        raise AssertionError("the network was tried")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "create_connection", never)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read("owner/name:small@v1.0") == [{"text": "x"}]
    assert asked == [(("owner/name", "small"), "v1.0", "train")]
    assert open_source("owner/name@v1.0").fingerprint() != open_source("owner/name").fingerprint()


def test_a_url_is_distinguished_from_a_missing_file():
    with pytest.raises(SourceError, match="data.path=s3://b/x.jsonl: URLs are not supported"):
        open_source("s3://b/x.jsonl")


def renamed_of(path: str, columns: dict, normalize=formats.chat, **selection) -> list:
    source = open_source(path, selection=Selection(columns=columns, **selection))
    return [record for _, record in records(source, normalize, on_malformed="error", counts=Counter())]


def test_columns_with_other_names_are_read_as_the_fields_that_they_are_given(write, tmp_path):
    rows = [{"asked": "2 + 2?", "reply": "4", "prompt": "an identifier", "note": 1}]
    wanted = [[{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]]
    columns = {"prompt": "asked", "completion": "reply"}
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "a.parquet"))
    for path in (
        write("a.jsonl", rows),
        write("a.csv", "asked,reply,prompt,note\n2 + 2?,4,an identifier,1\n"),
        str(tmp_path / "a.parquet"),
    ):
        assert [
            [{name: message[name] for name in ("role", "content")} for message in record["messages"]]
            for record in renamed_of(path, columns)
        ] == wanted


def test_two_columns_can_swap_their_names(write):
    path = write("a.jsonl", [{"prompt": "q", "chosen": "worse", "rejected": "better"}])
    (record,) = renamed_of(path, {"chosen": "rejected", "rejected": "chosen"}, formats.preference)
    assert record == formats.preference({"prompt": "q", "chosen": "better", "rejected": "worse"})


def test_other_columns_of_a_table_are_opened_for_their_new_names(tmp_path):
    datasets.Dataset.from_list([{"body": "x", "text": "an index"}]).to_parquet(str(tmp_path / "a.parquet"))
    source = open_source(
        str(tmp_path / "a.parquet"), selection=Selection(columns={"text": "body"}), columns=("text", "content")
    )
    assert [row.value["text"] for row in source.rows()] == ["x"]


def test_a_column_that_a_row_does_not_have_is_named_with_those_that_it_has(write):
    path = write("a.jsonl", [{"asked": "q", "reply": "a"}, {"asked": "q", "replies": "a"}])
    said = r'a\.jsonl:2: expected a column "reply", which data\.columns reads as "completion", got columns'
    with pytest.raises(SourceError, match=rf"{said} 'asked', 'replies'"):
        renamed_of(path, {"prompt": "asked", "completion": "reply"})


def test_other_names_are_other_data(write):
    path = write("a.jsonl", [{"asked": "q", "reply": "a"}])
    as_read, asked, swapped = (
        open_source(path, selection=Selection(columns=columns)).fingerprint()
        for columns in (None, {"prompt": "asked", "completion": "reply"}, {"prompt": "reply", "completion": "asked"})
    )
    assert len({as_read, asked, swapped}) == 3 and as_read == open_source(path).fingerprint()


def test_a_text_file_has_no_columns_to_rename(write, tmp_path):
    with pytest.raises(SourceError, match=r'a\.txt: expected a column "body".*, got a \.txt file, which has none'):
        renamed_of(write("a.txt", "one\n\ntwo"), {"text": "body"}, formats.text)
