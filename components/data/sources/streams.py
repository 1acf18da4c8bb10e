"""File types by name, and the bytes, lines and text of files: decompressed by extension, decoded by the first bytes."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from components.data.records.errors import SourceError

KINDS = (".txt", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
READ = f"{', '.join(KINDS)}, all but the last two also with .gz, .bz2, .xz or .zst"
_ENDING = re.compile(
    r"(\.(?:txt|json|jsonl|ndjson|csv|tsv))(\.(?:gz|bz2|xz|zst))?$|(\.parquet|\.arrow)$", re.IGNORECASE
)
_HEADS = {  # the first bytes of files that are not text
    b"version https://git-lfs": ("a Git LFS pointer", "Download the data itself with: git lfs pull"),
    b"\x1f\x8b": ("gzip data", "Add .gz to its name"),
    b"BZh": ("bzip2 data", "Add .bz2 to its name"),
    b"\xfd7zXZ\0": ("xz data", "Add .xz to its name"),
    b"\x28\xb5\x2f\xfd": ("zstd data", "Add .zst to its name"),
    b"PK\x03\x04": ("a zip archive", "Unpack it"),
    b"PAR1": ("parquet data", "Rename it to .parquet"),
    b"ARROW1": ("arrow data", "Rename it to .arrow"),
    b"\x04\x22\x4d\x18": ("lz4 data", "Unpack it"),
    b"%PDF-": ("a PDF document", "Convert it to text"),
}


def ending(path: Path) -> tuple[str, str] | None:
    """A file's type and compression, such as (".jsonl", ".gz") or (".txt", ""), ignoring case; None if unknown."""
    match = _ENDING.search(path.name)
    return ((match[1] or match[3]).lower(), (match[2] or "").lower()) if match else None


def refusal(path: Path) -> SourceError:
    """An error that says what to do with a file of another type."""
    if re.search(r"\.(zip|tar|tgz|tbz2?|txz|7z|rar)$|\.tar\.\w+$", path.name, re.IGNORECASE):
        return SourceError(f"{path}: an archive. Unpack it and set data.path to the folder")
    if inner := ending(path.with_suffix("")):
        if inner[1]:
            return SourceError(f"{path}: compressed twice. Decompress it once")
        return SourceError(f"{path}: unsupported compression ({path.suffix}). Decompress it")
    return SourceError(f"{path}: unknown file type, expected one of {READ}")


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """The decompressed bytes of a file, as a stream with peek(); raises SourceError if it is damaged."""
    _, packing = ending(file) or ("", "")
    name, opener = _PACKINGS[packing]
    try:
        if packing and not file.stat().st_size:
            raise EOFError("it is empty")
        with opener(file) as stream:
            refuse_head(file, stream.peek(32)[:32], advice="Decompress it once" if packing else None)
            yield stream
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        if not packing:
            raise SourceError(f"{file}: cannot be read ({error})") from None
        advice = f"Download it again or, if it is not compressed, remove {packing} from its name"
        raise SourceError(f"{file}: not a complete {name} file ({error}). {advice}") from None


def refuse_head(file: Path, head: bytes, *own: bytes, advice: str | None = None) -> None:
    """Raises SourceError if a file starts like one of another type. own: starts that are allowed; advice: replaces the
    usual one for the type."""
    for start, (what, usual) in _HEADS.items():
        if head.startswith(start) and start not in own:
            raise SourceError(f"{file}: contains {what}. {advice or usual}")


def lines(file: Path) -> Iterator[bytes]:
    """Lines of JSON in UTF-8 without their ends (\\n, \\r\\n or \\r); the encoding is detected as in RFC 4627."""
    with opened(file) as stream:
        encoding = json.detect_encoding(stream.peek(4)[:4])  # type: ignore[attr-defined]
        try:
            for line in stream if encoding.startswith("utf-8") else _recoded(stream, encoding):
                yield from line.rstrip(b"\r\n").split(b"\r")
        except UnicodeDecodeError as error:
            raise SourceError(f"{file}: expected {encoding}, as it starts, got {error.reason}") from None


def text_of(file: Path, *, is_json: bool) -> str:
    """A whole file as text: UTF-8, or the encoding shown by a byte-order mark or the first characters of JSON.

    Raises SourceError with the line if it cannot be decoded, and, except in JSON, for a zero byte.
    """
    with opened(file) as stream:
        content = stream.read()
    encoding = json.detect_encoding(content[:4]) if is_json else encoding_of(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        wide = "utf-16be" if content.startswith(b"\0") else "utf-16le"
        guess = wide if b"\0" in content else "latin1"
        advice = f"Convert it, for example with: iconv -f {guess} -t utf-8 {file.name}"
        got = f"byte 0x{content[error.start]:02x}" if error.start < len(content) else error.reason
        expected = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
        raise SourceError(f"{file}:{line}: expected {expected}, got {got}. {advice}") from None
    if "\0" in text and not is_json:
        line = text.count("\n", 0, text.index("\0")) + 1
        advice = f"Convert it, if it is UTF-16 without a byte-order mark: iconv -f utf-16le -t utf-8 {file.name}"
        raise SourceError(f"{file}:{line}: expected text, got a zero byte. {advice}")
    return text


def encoding_of(content: bytes) -> str:
    """The encoding of a text that starts with these bytes, by its byte-order mark; without one, UTF-8."""
    marks = {
        codecs.BOM_UTF32_LE: "utf-32",
        codecs.BOM_UTF32_BE: "utf-32",
    }  # before UTF-16's, their prefixes
    marks |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    return next((encoding for mark, encoding in marks.items() if content.startswith(mark)), "utf-8-sig")


def _recoded(stream: BinaryIO, encoding: str) -> Iterator[bytes]:
    decoder, rest = codecs.getincrementaldecoder(encoding)(), ""
    while block := stream.read(1 << 20):
        *whole, rest = (rest + decoder.decode(block)).split("\n")
        yield from (line.encode("utf-8", "surrogatepass") for line in whole)
    yield (rest + decoder.decode(b"", final=True)).encode("utf-8", "surrogatepass")


class _Members(io.RawIOBase):
    """Decompresses a file of one or more members. The standard library takes damage in a later one for the end."""

    def __init__(self, file: Path, decompressor: Callable[[], Any]) -> None:
        self._file, self._new = file.open("rb"), decompressor
        self._member: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            packed = b""
            if self._member is None or self._member.eof:
                packed = (self._member.unused_data if self._member else b"").lstrip(b"\0")  # zeros can pad a block
                while not packed:
                    if not (block := self._file.read(io.DEFAULT_BUFFER_SIZE)):
                        return 0
                    packed = block.lstrip(b"\0")
                self._member = self._new()
            elif self._member.needs_input and not (packed := self._file.read(io.DEFAULT_BUFFER_SIZE)):
                raise EOFError("it ends before its end marker")
            if unpacked := self._member.decompress(packed, len(buffer)):
                buffer[: len(unpacked)] = unpacked
                return len(unpacked)

    def close(self) -> None:
        self._file.close()
        super().close()


def _zstd(file: Path) -> io.BufferedReader:
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(file)), "zstd"))


_PACKINGS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "": ("plain", lambda file: file.open("rb")),
    ".gz": ("gzip", gzip.open),
    ".bz2": ("bzip2", lambda file: io.BufferedReader(_Members(file, bz2.BZ2Decompressor))),
    ".xz": ("xz", lambda file: io.BufferedReader(_Members(file, lzma.LZMADecompressor))),
    ".zst": ("zstd", _zstd),
}
