"""JSON in the wild: every unambiguous shape is read, the rest is refused with file, line and cause."""

import json
from collections import Counter
from pathlib import Path

import pytest

from components.data.records import formats
from components.data.records.errors import SourceError
from components.data.sources.source import open_source, records

XY = [{"text": "x"}, {"text": "y"}]
PRETTY = "".join(json.dumps(record, indent=1) + "\n" for record in XY)


def texts(folder: Path, content: str | bytes, name: str = "a.json", on_malformed="error", counts=None) -> list[str]:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    counts = Counter() if counts is None else counts
    found = records(open_source(str(folder / name)), formats.text, on_malformed=on_malformed, counts=counts)
    return [record["text"] for _, record in found]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson", "A.JSONL"])
@pytest.mark.parametrize(
    "content",
    [
        '{"text": "x"}\n{"text": "y"}\n',
        '\ufeff{"text": "x"}\r\n\r\n{"text": "y"}\r\n',
        '\ufeff{"text": "x"}\n\ufeff{"text": "y"}\n',
        '{"text": "x"}\r{"text": "y"}\r',
        '{"text": "x"},\n{"text": "y"},\n',
        '{"text": "x"}{"text": "y"}',
        '\n \n{"text": "x"} {"text": "y"}\n',
        PRETTY,
        PRETTY.replace("\n", "\r\n"),
        "\ufeff" + PRETTY.replace("}\n{", "},\n{"),
        json.dumps(XY),
        "\ufeff \n" + json.dumps(XY, indent=2) + "\n",
        '[{"text": "x"},\n{"text": "y"},\n]',
        json.dumps({"version": 1, "data": XY}),
        json.dumps({"columns": ["text"], "rows": XY}, indent=1),
        '{"data": [\n{"text": "x"},\n{"text": "y"}\n]}',
        '{"version": 1, "data": [\n  {"text": "x"},\n  {"text": "y"}\n]}\n',
        '{"text": "x"} {\n"text": "y"}\n',
        json.dumps({"text": ["x", "y"]}),
        json.dumps({"text": ["x", "y"], "id": [1, 2]}, indent=1),
        json.dumps({"text": {"0": "x", "1": "y"}, "id": {"0": 1, "1": 2}}),
    ],
)
def test_records_are_read_from_every_unambiguous_shape(name, content, tmp_path):
    assert texts(tmp_path, content, name) == ["x", "y"]


def test_one_object_is_one_record_on_one_line_or_several(tmp_path):
    for content in ('{"text": "x", "tags": [{"a": 1}]}', '{\n"text": "x"\n}', '[{"text": "x"}]', '{"text":\n"x"}'):
        assert texts(tmp_path, content) == ["x"]
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    for content in (json.dumps({"messages": messages}), json.dumps({"messages": messages}, indent=1)):
        (tmp_path / "b.json").write_text(content)
        [row] = open_source(str(tmp_path / "b.json")).rows()
        assert row.value == {"messages": messages}
    pair = {"chosen": messages, "rejected": messages}
    (tmp_path / "b.json").write_text(json.dumps(pair))
    assert [row.value for row in open_source(str(tmp_path / "b.json")).rows()] == [pair]


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\\u0000", "\\n", "\\r"])
def test_only_ends_of_lines_end_lines(end, tmp_path):
    escaped = end if end not in "\x0b\x0c" else json.dumps(end)[1:-1]  # JSON does not allow control characters
    content = f'{{"text": "a{escaped}b"}}\n{{"text": "c"}}\n'
    expected = json.loads(f'"a{escaped}b"')
    assert texts(tmp_path, content, "a.jsonl") == [expected, "c"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "x"}\n{"text": "y" "z"}\n', r"a\.json:2: expected one JSON object, got .*delimiter at column 14"),
        ('{"text": "x"}\r{"text": 5}\r', r"a\.json:2: .*got int 5"),
        ('{"text": "x"}\n{"text": "a", "text": "b"}', r"a\.json:2: .*got an object with two fields 'text'"),
        ('{\n "text": "x"\n}\n{\n "text": oops\n}', r"a\.json:5: expected JSON, got .*Expecting value at column 10"),
        ('[{"text": "x"},\n {"text": "y"}', r"a\.json:2: expected JSON"),
        ('[{"text": "x"},\n', r"a\.json:2: expected JSON, got an error: Expecting value"),
        ('[{"text": "x"}\n {"text": "y"}]', r"a\.json:2: expected JSON, got .*Expecting ',' delimiter at column 2"),
        ('[{"text": "x"}]\n[{"text": "y"}]', r"a\.json:2: expected JSON, got .*Extra data after the list"),
        ('[{"text": "x"},,{"text": "y"}]', r"a\.json:1: expected JSON, got .*Expecting value at column 16"),
        ('[{"text": "x"}, {"txt": "y"}]', r"a\.json: record 2: .*got fields 'txt'"),
        ('{"data": [{"text": "x"}, {"txt": "y"}]}', r"a\.json: record 2: .*got fields 'txt'"),
        ('{"train": [{"text": "x"}]}', r"a\.json:1: .*got fields 'train'"),
        ('{"text": ["x", "y"], "id": [1]}', r"a\.json:1: .*got list"),
        ('{"text": {"0": "x"}, "id": {"1": 1}}', r"a\.json:1: .*got dict"),
        ("[]", r"a\.json: contains no records"),
        ("\n\n", r"a\.json: contains no records"),
        ("", r"a\.json: contains no records"),
        (b'[{"text": "\xe9"}]', r"a\.json:1: expected UTF-8, got byte 0xe9\. Convert it"),
        ("[" * 100_000, r"a\.json: expected JSON, got brackets within brackets without end"),
    ],
)
def test_ambiguous_json_is_refused_with_its_line(content, said, tmp_path):
    with pytest.raises(SourceError, match=said):
        texts(tmp_path, content)


@pytest.mark.parametrize("bad", ['{"text": ', "oops", '{"text": "z" "z"}', '{"text": 1}', "[1]", "\ufeff5"])
def test_a_bad_line_is_skipped_wherever_it_stands(bad, tmp_path):
    good = ['{"text": "x"}', '{"text": "y"}']
    for place in range(3):
        if place == 0 and bad == "[1]":
            continue  # a file that starts like this is a list
        content = "\n".join([*good[:place], bad, *good[place:]])
        counts = Counter()
        assert texts(tmp_path, content, on_malformed="skip", counts=counts) == ["x", "y"]
        assert counts == {"records": 2, "malformed": 1}


@pytest.mark.parametrize(
    "first", ['{"text": ', "oops", '{"text": "z', "<!DOCTYPE html>", '{"text": "\\x"}', b'{"text": "\xe9"}']
)
@pytest.mark.parametrize("second", ["words", '{"text": "z', '{"text":', "<html>", b"\xe9"])
def test_bad_lines_are_skipped_however_many_a_file_begins_with(first, second, tmp_path):
    lines = [line if isinstance(line, bytes) else line.encode() for line in (first, second, first, second)]
    content = b"\n".join([*lines, *(json.dumps(record).encode() for record in XY)])
    counts = Counter()
    assert texts(tmp_path, content, "a.jsonl", on_malformed="skip", counts=counts) == ["x", "y"]
    assert counts == {"records": 2, "malformed": 4}
    with pytest.raises(SourceError, match=r"a\.jsonl:1: .*data\.on_malformed=skip"):
        texts(tmp_path, content, "a.jsonl")


def test_an_empty_file_of_a_folder_is_empty_like_any_other_shard(tmp_path):
    for name in ("a.jsonl", "b.json", "c.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "d.txt").write_text("x")
    assert [row.value for row in open_source(str(tmp_path)).rows()] == [{"text": "x"}]
