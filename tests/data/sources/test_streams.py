"""Files in every supported encoding and compression, and a correct message for all others."""

import bz2
import gzip
import json
import lzma
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from components.data.records import formats
from components.data.records.errors import SourceError
from components.data.sources.source import open_source, records

PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}
SAID = ["é☃ x", "y\u2028z"]
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in SAID)


def texts(path: Path, counts=None, on_malformed="error") -> list[str]:
    counts = Counter() if counts is None else counts
    found = records(open_source(str(path)), formats.text, on_malformed=on_malformed, counts=counts)
    return [record["text"] for _, record in found]


def file_of(folder: Path, name: str, content: bytes | str) -> Path:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / name


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_compression_works_with_every_encoding_that_can_be_detected(packing, encoding, tmp_path):
    listed = json.dumps([{"text": text} for text in SAID], ensure_ascii=False)
    for kind, content in ((".jsonl", LINES), (".ndjson", LINES), (".json", LINES), (".json", listed)):
        assert texts(file_of(tmp_path, f"a{kind}{packing}", PACK[packing](content.encode(encoding)))) == SAID
    said = SAID[0] + "\r\n"
    assert texts(file_of(tmp_path, f"a.txt{packing}", PACK[packing](said.encode(encoding)))) == [said]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_json_shows_its_encoding_without_a_mark(encoding, tmp_path):
    assert texts(file_of(tmp_path, "a.jsonl", LINES.encode(encoding))) == SAID
    assert texts(file_of(tmp_path, "a.json", json.dumps([{"text": "x"}]).encode(encoding))) == ["x"]


@pytest.mark.parametrize("name", ["A.JSONL", "a.Json", "a.NDJSON", "a.jsonl.GZ", "a.TXT"])
def test_an_ending_is_the_same_in_capitals(name, tmp_path):
    content = "x" if name == "a.TXT" else '{"text": "x"}'
    packed = gzip.compress(content.encode(), mtime=0) if name.endswith("GZ") else content
    assert texts(file_of(tmp_path, name, packed)) == ["x"]


@pytest.mark.parametrize("packing", [packing for packing in PACK if packing])
def test_files_of_several_members_are_read_in_full_and_truncated_ones_refused(packing, tmp_path):
    packed = PACK[packing](LINES.encode())
    assert texts(file_of(tmp_path, f"a.jsonl{packing}", packed + packed)) == SAID * 2
    for broken in (packed[:-5], packed[:3], LINES.encode(), b""):
        with pytest.raises(
            SourceError, match=rf"a\.jsonl\{packing}: not a complete \w+ file .*Download it again.*{packing}"
        ):
            texts(file_of(tmp_path, f"a.jsonl{packing}", broken))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", gzip.compress(b"{}", mtime=0), r"a\.jsonl: contains gzip data\. Add \.gz to its name"),
        ("a.txt", b"PK\x03\x04", r"a\.txt: contains a zip archive\. Unpack it"),
        ("a.json", b"PAR1", r"a\.json: contains parquet data\. Rename it to \.parquet"),
        ("a.jsonl.gz", gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), r"a\.jsonl\.gz: contains gzip data"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\n", r"a\.txt: contains a Git LFS pointer.*git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", r"a\.parquet: contains a Git LFS pointer"),
        ("a.parquet", gzip.compress(b"PAR1", mtime=0), r"a\.parquet: contains gzip data"),
        ("a.zip", b"PK\x03\x04", r"a\.zip: an archive\. Unpack it and set data\.path to the folder"),
        ("a.tar.gz", b"", r"a\.tar\.gz: an archive\. Unpack it"),
        ("a.jsonl.lz4", b"", r"a\.jsonl\.lz4: unsupported compression \(\.lz4\)\. Decompress it"),
        ("a.parquet.gz", b"", r"a\.parquet\.gz: unsupported compression \(\.gz\)\. Decompress it"),
        ("a.jsonl.gz.gz", b"", r"a\.jsonl\.gz\.gz: compressed twice\. Decompress it once"),
        (
            "a.jsonl.xz",
            lzma.compress(gzip.compress(b"{}", mtime=0)),
            r"a\.jsonl\.xz: contains gzip data\. Decompress it once",
        ),
        ("a.json.gz", gzip.compress(b"PAR1", mtime=0), r"a\.json\.gz: contains parquet data\. Decompress it once"),
        ("a.jsonl", b"\x04\x22\x4d\x18", r"a\.jsonl: contains lz4 data\. Unpack it"),
        ("a.txt", b"%PDF-1.4\n%\xe2", r"a\.txt: contains a PDF document\. Convert it to text"),
        ("a.txt", "é\ncd".encode("utf-16-le"), r"a\.txt:1: expected UTF-8, got byte 0xe9\. .*iconv -f utf-16le"),
        ("a.txt", "é\ncd".encode("utf-16-be"), r"a\.txt:1: expected UTF-8, got byte 0xe9\. .*iconv -f utf-16be"),
        ("a.csv", b"PK\x03\x04", r"a\.csv: contains a zip archive\. Unpack it"),
        (
            "a.xyz",
            b"",
            r"a\.xyz: unknown file type, expected one of \.txt, .*\.arrow, all but the last two",
        ),
        ("a.txt", "ab\ncd".encode("utf-16-le"), r"a\.txt:1: expected text, got a zero byte\. .*iconv -f utf-16le"),
        ("a.txt", "abc".encode("utf-16")[:-1], r"a\.txt:1: expected UTF-16, got byte"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16")[:-1], r"a\.jsonl: expected utf-16, as it starts, got truncated data"),
    ],
)
def test_the_real_type_of_a_file_is_reported_with_what_to_do(name, content, said, tmp_path):
    with pytest.raises(SourceError, match=said):
        texts(file_of(tmp_path, name, content))


def test_the_fingerprint_tells_kinds_apart_that_share_a_packing(tmp_path):
    content = gzip.compress(b'{"text": "x"}', mtime=0)
    one, other = (open_source(str(file_of(tmp_path, f"a{kind}.gz", content))) for kind in (".txt", ".jsonl"))
    assert one.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("packing", [packing for packing in PACK if packing])
def test_damage_and_bytes_of_something_else_after_the_first_member_are_no_end_of_a_file(packing, tmp_path):
    packed = PACK[packing](LINES.encode())
    for rest in (b"rest", b"\xff" + packed[1:], packed[:2] + b"\xff" + packed[3:], packed[:-5]):
        with pytest.raises(SourceError, match=rf"a\.jsonl\{packing}: not a complete \w+ file"):
            texts(file_of(tmp_path, f"a.jsonl{packing}", packed + rest))


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz"])
def test_zeros_that_fill_up_the_blocks_of_a_device_are_nothing(packing, tmp_path):
    packed = PACK[packing](LINES.encode()) + bytes(512)
    assert texts(file_of(tmp_path, f"a.jsonl{packing}", packed + packed)) == SAID * 2
