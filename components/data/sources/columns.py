"""Parquet and arrow files, and data sets from the Hub, as rows of plain values, with one batch in memory at a time.

A file name is never taken as a pattern or a URL. Reads the columns that JSON could represent: text, numbers, booleans,
and lists, structs and maps of them. Bytes, images, audio, times and the like are not read; a row has an `Unread` in
place of such a column. A struct's null fields are left out: tables write every field of any row in all rows, so that
a call with one argument would appear to have all arguments of the other calls.
"""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from components.data.records.errors import Unread
from components.data.records.strict_json import DECODER, what_is_wrong

BATCH = 128  # rows; few enough for memory if each is a book
_OPENED = (
    types.is_string,
    types.is_large_string,
    types.is_string_view,
    types.is_boolean,
    types.is_integer,
    types.is_floating,
    types.is_null,
)


def parquet_rows(file: Path, columns: Collection[str] | None) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file; columns: the only ones to read, None for all that can be read."""
    with pa.OSFile(str(file)) as stream:
        table = pq.ParquetFile(stream)
        schema = table.schema_arrow
        leaves = ((field.name, leaf) for field in schema for leaf in _leaves(field.type))  # in parquet's order
        opened = [
            table.schema.column(i).path
            for i, (name, leaf) in enumerate(leaves)
            if _is_opened(leaf) and (columns is None or name in columns)
        ]
        yield from rows_of(table.iter_batches(BATCH, columns=opened), schema)


def arrow_rows(file: Path, columns: Collection[str] | None) -> Iterator[dict[str, Any]]:
    """The rows of an arrow file, in the file format (Feather) or the streaming format (as `datasets` saves it)."""
    with pa.OSFile(str(file)) as stream:
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        reader = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
        opened = [name for name in openable(reader.schema) if columns is None or name in columns]
        yield from rows_of(map(functools.partial(_checked, opened), batches), reader.schema)


def _checked(opened: list[str], batch: pa.RecordBatch) -> pa.RecordBatch:
    """Some columns of a batch, validated in full: reading damaged ones would crash the process."""
    chosen = batch.select(opened)
    chosen.validate(full=True)
    return chosen


def openable(schema: pa.Schema) -> list[str]:
    """The columns that can be read at least in part."""
    return [field.name for field in schema if any(map(_is_opened, _leaves(field.type)))]


def rows_of(batches: Iterable[pa.RecordBatch | pa.Table], schema: pa.Schema) -> Iterator[dict[str, Any]]:
    """The rows of batches with some columns of a schema; an `Unread` for each column or value that is not read."""
    twice = {name for name in schema.names if schema.names.count(name) > 1}
    if twice:
        raise ValueError(f"two columns are named {', '.join(sorted(twice))}")
    unread = {field.name: Unread(f"a column of {field.type}") for field in schema}
    for batch in batches:
        columns = {name: _values(batch.column(name)) for name in batch.schema.names}
        for i in range(batch.num_rows):
            yield {**unread, **{name: values[i] for name, values in columns.items()}}


def _leaves(kind: pa.DataType) -> list[pa.DataType]:
    """The leaf types of a nested type, in order."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if not kind.num_fields:
        return [kind]
    return [leaf for i in range(kind.num_fields) for leaf in _leaves(kind.field(i).type)]


def _is_opened(leaf: pa.DataType) -> bool:
    kind = leaf.value_type if types.is_dictionary(leaf) else leaf
    return any(is_kind(kind) for is_kind in _OPENED)


def _values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    try:
        return _decoded(column)
    except (ValueError, KeyError, OverflowError, RecursionError):  # in some value; read the others
        return [_value(column.slice(i, 1)) for i in range(len(column))]


def _value(column: pa.Array | pa.ChunkedArray) -> Any:
    try:
        return _decoded(column)[0]
    except UnicodeDecodeError:
        return Unread("a value that is not UTF-8")
    except RecursionError as error:
        return Unread(f"a value that cannot be read ({what_is_wrong(error)})")
    except (ValueError, KeyError, OverflowError) as error:
        return Unread(f"a value that cannot be read ({error})")


def _decoded(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    values = column.to_pylist(maps_as_pydicts="strict")
    decode = _decoder(column.type)
    return [decode(value) for value in values] if decode else values


def _decoder(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """A function that decodes the JSON strings within a value of this type, and leaves out the null fields of structs;
    None if the type has neither."""
    if isinstance(kind, pa.JsonType):
        return lambda value: value if value is None else DECODER.decode(value)
    if types.is_struct(kind):
        fields = {field.name: _decoder(field.type) or _unchanged for field in kind}
        return lambda value: value and {name: fields[name](v) for name, v in value.items() if v is not None}
    if types.is_list(kind) or types.is_large_list(kind):
        decode = _decoder(kind.value_type)
        return (lambda value: value and [decode(item) for item in value]) if decode else None
    return None


def _unchanged(value: Any) -> Any:
    return value
