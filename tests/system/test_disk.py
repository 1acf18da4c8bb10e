"""JSON objects in files: what is wrong with one is said with its name, and a write leaves a whole file."""

import json
from pathlib import Path

import pytest

from components.system.disk import read_json, read_json_if_any, write_json, write_text


class OurError(ValueError):
    pass


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is not JSON: Expecting value"),
        (b'{"a": ', "is not JSON"),
        (b'{"a": "\xff"}', "is not JSON: 'utf-8' codec"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON: Exceeds the limit"),
        (b"[" * 100_000, "is not JSON: maximum recursion depth"),
        (b"[]", ": expected a JSON object, got list"),
        (b"null", ": expected a JSON object, got NoneType"),
    ],
)
def test_what_is_no_json_object_is_named_in_the_readers_own_error(tmp_path, content, complaint):
    file = tmp_path / "card.json"
    file.write_bytes(content)
    for read in (read_json, read_json_if_any):
        with pytest.raises(OurError) as caught:
            read(file, OurError)
        assert str(caught.value).startswith(f"{file}{'' if complaint[0] == ':' else ' '}{complaint}")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"^cannot read .*/none.json: No such file or directory$"):
        read_json(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"^cannot read .*: Is a directory$"):
        read_json_if_any(tmp_path)
    assert read_json_if_any(tmp_path / "none.json") is None


def test_a_byte_order_mark_is_not_part_of_the_json(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_what_is_written_is_read_again(tmp_path):
    value = {"name": "é", "loss": 0.1, "parts": [1, None, {"a": True}]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_text() == json.dumps(value, indent=2, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Path("a")])
def test_what_json_has_no_form_for_is_written_if_asked_for_and_else_changes_nothing(tmp_path, value):
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(file, {"a": value})
    assert read_json(file) == {"a": 1}
    write_json(file, {"a": value}, lenient=True)
    assert str(read_json(file)["a"]) == str(value)
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_that_fails_leaves_the_earlier_file_alone(tmp_path):
    write_text(tmp_path / "a.txt", "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "\ud800")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "before"
