"""Parquet and arrow: exactly the named file, with any name, and those of its columns that can be part of a record."""

import datetime
import json
import struct
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.data.records import formats
from components.data.records.errors import SourceError
from components.data.sources import hub_datasets
from components.data.sources.dataset_folder import Selection
from components.data.sources.source import open_source, records
from components.data.text import TextData

ODD = ["a[b]", "s*", "q?", "c::d", "h#1", "p%20", "sp ace", "a,b=c", "é☃", "{x}", "memory:x", "~x", "-x", "a\\b"]
NEIGHBORS = ["ab", "a", "b", "s1", "qx", "c", "d", "h", "p ", "sp", "x"]
DIALOGUE = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def read(path: object, normalize=formats.text, on_malformed="error", counts=None) -> list:
    counts = Counter() if counts is None else counts
    return [
        record for _, record in records(open_source(str(path)), normalize, on_malformed=on_malformed, counts=counts)
    ]


def texts(path: object) -> list[str]:
    return [record["text"] for record in read(path)]


def parquet(file: Path, columns: dict, **options) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file, **options)
    return file


@pytest.mark.parametrize("name", ODD)
def test_a_file_name_is_taken_literally_and_never_as_a_pattern(name, tmp_path):
    for neighbor in NEIGHBORS:
        parquet(tmp_path / f"{neighbor}.parquet", {"text": ["of a neighbor"]})
    assert texts(parquet(tmp_path / f"{name}.parquet", {"text": ["own"]})) == ["own"]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("declared", [False, True])
def test_a_folder_is_taken_as_it_is_named_with_the_fingerprint_of_what_is_read(name, declared, tmp_path):
    readme = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*.parquet\n---\n"
    for folder in [*NEIGHBORS, name, "same"]:
        own = folder in (name, "same")
        parquet(tmp_path / folder / "data/a.parquet", {"text": ["own" if own else "of a neighbor"]})
        if declared:
            (tmp_path / folder / "README.md").write_text(readme)
    assert texts(tmp_path / name) == ["own"]
    fingerprints = [open_source(str(tmp_path / folder)).fingerprint() for folder in (name, "same", "ab")]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_a_readme_assigns_files_to_splits_by_patterns_within_its_folder(tmp_path):
    for file in ("data/a.parquet", "data/deep/b.parquet", "other/c.parquet", "held.parquet", "d.parquet"):
        parquet(tmp_path / "set" / file, {"text": [file]})
    (tmp_path / "set/README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  default: true\n  data_files:\n"
        "  - split: train\n    path: [data/**, d.parquet]\n  - split: test\n    path: held.parquet\n"
        "- config_name: two\n  data_files: other/*\n- config_name: three\n  data_dir: data/deep\n---\n"
    )

    def of(**selection) -> list[str]:
        rows = open_source(str(tmp_path / "set"), selection=Selection(**selection)).rows()
        return [row.value["text"] for row in rows]

    assert of() == of(subset="one") == ["d.parquet", "data/a.parquet", "data/deep/b.parquet"]
    assert of(held_out_split="test") == ["d.parquet", "data/a.parquet", "data/deep/b.parquet", "held.parquet"]
    assert of(subset="two") == ["other/c.parquet"]
    assert of(subset="three") == ["data/deep/b.parquet"]
    with pytest.raises(SourceError, match=r"README\.md: .*'four' among one, two, three.*data\.subset"):
        of(subset="four")


def test_a_local_path_comes_before_a_name_on_the_hub_and_that_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub_datasets, "load", lambda *_, **__: pytest.fail("the Hub was asked"))
    parquet(tmp_path / "owner/name/a.parquet", {"text": ["local"]})
    with caplog.at_level("INFO"):
        assert texts("owner/name") == ["local"]
    assert "owner/name: reading the local folder, not a data set with that name on the Hub" in caplog.text


UNASKED = {
    "binary": pa.array([b"\xff\xfe", None]),
    "image": pa.array([{"bytes": b"no image", "path": None}] * 2),
    "nanoseconds": pa.array([1, 2], pa.timestamp("ns", tz="Europe/Berlin")),
    "far": pa.array([2**62, -(2**62)], pa.timestamp("us")),
    "dates": pa.array([datetime.date(2020, 1, 1), None]),
    "durations": pa.array([1, 2], pa.duration("s")),
    "decimals": pa.array([1, 2], pa.decimal128(9, 2)),
    "map": pa.array([[("a", 1), ("a", 2)], None], pa.map_(pa.string(), pa.int64())),
    "nothing": pa.nulls(2),
    "latin": pa.array([b"caf\xe9", b"x"]).view(pa.string()),
    "halves": pa.array([1.0, 2.0], pa.float16()),
}


@pytest.mark.parametrize("name", UNASKED)
@pytest.mark.parametrize("normalize", [formats.text, formats.prompts])
def test_a_column_that_is_not_needed_never_stops_a_run(name, normalize, tmp_path):
    columns = {"text": ["x", "y"], "prompt": ["x", "y"], name: UNASKED[name]}
    assert len(read(parquet(tmp_path / "a.parquet", columns), normalize)) == 2


@pytest.mark.parametrize("feature", [{"_type": "Image"}, {"_type": "Audio"}, {"_type": "Hologram"}])
def test_features_of_the_hub_are_not_decoded(feature, tmp_path):
    about = {"info": {"features": {"text": {"dtype": "string", "_type": "Value"}, "x": feature}}}
    table = pa.table({"text": ["a"], "x": [{"bytes": b"nothing", "path": None}]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == ["a"]


def test_a_set_from_the_hub_is_not_decoded_either(monkeypatch):
    features = datasets.Features({"text": datasets.Value("string"), "x": datasets.Image()})
    table = datasets.Dataset(pa.table({"text": ["a"], "x": [{"bytes": b"nothing", "path": None}]}))
    monkeypatch.setattr(hub_datasets, "load", lambda *_, **__: table.cast(features))
    assert texts("owner/name") == ["a"]


def test_only_the_text_column_of_text_is_read(tmp_path, common):
    file = parquet(tmp_path / "a.parquet", {"text": ["x" * 20], "junk": ["a" * 20]}, compression="none")
    content = file.read_bytes()
    place = pq.ParquetFile(file).metadata.row_group(0).column(1).data_page_offset
    file.write_bytes(content[:place] + b"\xff" * 20 + content[place + 20 :])
    with pytest.raises(SourceError, match=r"a\.parquet: not a readable parquet file"):
        texts(file)
    data = TextData(path=str(file), **common)
    assert [record["text"] for _, record in data.records_of(data.sources()[0][0], Counter())] == ["x" * 20]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["x", "y"], pa.large_string()),
        pa.array(["x", "y"], pa.string_view()),
        pa.array(["x", "y"]).dictionary_encode(),
    ],
)
def test_strings_of_every_type_are_strings(column, tmp_path):
    assert texts(parquet(tmp_path / "a.parquet", {"text": column, "__index_level_0__": [0, 1]})) == ["x", "y"]


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
def test_every_codec_of_parquet_is_read(codec, tmp_path):
    assert texts(parquet(tmp_path / "a.parquet", {"text": ["x"]}, compression=codec)) == ["x"]


def test_messages_are_read_without_their_images_and_as_maps(tmp_path):
    with_images = [[{**message, "image": {"bytes": b"\xff", "path": None}, "name": None} for message in DIALOGUE]]
    maps = pa.array([[list(message.items()) for message in DIALOGUE]], pa.list_(pa.map_(pa.string(), pa.string())))
    for column in (with_images, maps):
        assert read(parquet(tmp_path / "a.parquet", {"messages": column}), formats.chat) == [{"messages": DIALOGUE}]


def test_the_arguments_and_parameters_that_only_other_rows_have_are_not_read(tmp_path):
    """A table has one type per column, so each call has the arguments of all calls, null where they are not its own."""

    def row(function: str, parameter: str, given: object) -> dict:
        about = {"type": "object", "properties": {parameter: {"type": "string"}}}
        call = {"type": "function", "function": {"name": function, "arguments": {parameter: given}}}
        asked, called = {"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}
        tool = {"type": "function", "function": {"name": function, "parameters": about}}
        return {"messages": [asked, called], "tools": [tool]}

    rows = [row("weather", "city", "Oslo"), row("time", "zone", {"hours": 1})]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    stored = pq.read_table(tmp_path / "a.parquet").to_pylist()[0]["messages"][1]["tool_calls"][0]["function"]
    assert stored["arguments"] == {"city": "Oslo", "zone": None}
    assert read(tmp_path / "a.parquet", formats.chat) == rows


def test_columns_of_json_are_decoded_wherever_they_lie(tmp_path):
    features = datasets.Features({"messages": datasets.List(datasets.Json())})
    datasets.Dataset.from_dict({"messages": [DIALOGUE]}, features=features).to_parquet(str(tmp_path / "a.parquet"))
    assert read(tmp_path / "a.parquet", formats.chat) == [{"messages": DIALOGUE}]


@pytest.mark.parametrize(
    ("text", "said"), [('{"text": "a", "text": "b"}', "an object with two fields 'text'"), ("[" * 10**5, "brackets")]
)
def test_an_invalid_value_in_a_json_column_is_one_malformed_row(text, said, tmp_path):
    column = pa.array(['"x"', text], pa.json_())
    with pytest.raises(SourceError, match=rf"row 2: .*got a value that cannot be read \({said}"):
        texts(parquet(tmp_path / "a.parquet", {"text": column}))


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([b"x"]), r"row 1: expected a string \"text\", got a column of binary"),
        (pa.array([1], pa.timestamp("s")), r"row 1: expected a string \"text\", got a column of timestamp"),
        (pa.array([None], pa.string()), r'row 1: expected a field "text" or "content", got .*"text" is null'),
        (pa.array([1]), r"row 1: expected a string \"text\", got int 1"),
    ],
)
def test_a_needed_column_that_is_not_text_is_named_with_its_type(column, said, tmp_path):
    with pytest.raises(SourceError, match=said):
        texts(parquet(tmp_path / "a.parquet", {"text": column}))


def test_a_value_that_is_not_utf8_is_one_malformed_row(tmp_path):
    file = parquet(tmp_path / "a.parquet", {"text": pa.array([b"x", b"caf\xe9", b"y"]).view(pa.string())})
    with pytest.raises(SourceError, match=r"row 2: expected a string \"text\", got a value that is not UTF-8"):
        texts(file)
    counts = Counter()
    assert read(file, on_malformed="skip", counts=counts) == [{"text": "x"}, {"text": "y"}]
    assert counts == {"records": 2, "malformed": 1}


def test_two_columns_with_the_same_name_are_refused(tmp_path):
    pq.write_table(pa.table([["x"], ["y"]], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet: .*two columns are named text"):
        texts(tmp_path / "a.parquet")


def test_an_empty_shard_is_empty_and_a_data_set_without_records_is_an_error(tmp_path):
    none = pa.array([], pa.string())
    parquet(tmp_path / "d/0.parquet", {"text": none})
    parquet(tmp_path / "d/1.parquet", {"text": ["x"]})
    assert texts(tmp_path / "d") == ["x"]
    parquet(tmp_path / "d/1.parquet", {"text": none})
    for path in (tmp_path / "d", tmp_path / "d/0.parquet"):
        with pytest.raises(SourceError, match=f"{path.name}: contains no records.*data.path"):
            texts(path)


@pytest.mark.parametrize("form", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_files_are_read(form, tmp_path):
    table = pa.table({"text": ["x", "y"], "binary": [b"\xff", None]})
    with form(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert texts(tmp_path / "a.arrow") == ["x", "y"]


def test_a_damaged_arrow_file_is_refused_before_it_is_read(tmp_path):
    table = pa.table({"text": ["xx", "yy"]})
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    content, places = (tmp_path / "a.arrow").read_bytes(), struct.pack("<3i", 0, 2, 4)
    assert content.count(places) == 1
    (tmp_path / "a.arrow").write_bytes(content.replace(places, struct.pack("<3i", 0, -2, 4)))
    with pytest.raises(SourceError, match=r"a\.arrow: not a readable arrow file"):
        texts(tmp_path / "a.arrow")


def test_a_saved_data_set_is_read_by_its_list_of_files(tmp_path):
    splits = {
        split: datasets.Dataset.from_dict({"text": [f"{split} {i}" for i in range(3)]}) for split in ("train", "test")
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"), num_shards={"train": 2, "test": 1})
    (tmp_path / "saved/train/cache-1f.arrow").write_bytes(b"left by a map")
    assert texts(tmp_path / "saved") == ["train 0", "train 1", "train 2"]
    assert texts(tmp_path / "saved/test") == ["test 0", "test 1", "test 2"]
    (tmp_path / "saved/train/data-00001-of-00002.arrow").unlink()
    with pytest.raises(SourceError, match=r"train/state\.json: .*data-00001-of-00002\.arrow, which is missing"):
        texts(tmp_path / "saved")
