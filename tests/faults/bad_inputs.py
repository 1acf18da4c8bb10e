"""Bad inputs by name, each made from a good one by one change.

A case is a function of a folder: it writes the bad thing there and reads it as the program would. Whatever is wrong
must come out as a ValueError of one clear message.
"""

import bz2
import gzip
import json
import lzma
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import save_file

from components.artifacts import store
from components.data.records import formats, labels
from components.data.sources.source import open_source, records
from components.tokenizer.tokenizer import Tokenizer
from components.training.checkpoint_io import AtomicCheckpointIO

Case = Callable[[Path], Any]
ASK, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
GOOD: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": "a"}],
    "chat": [{"messages": [ASK, ANSWER]}, {"prompt": "q", "completion": "a"}, {"instruction": "i", "output": "o"}],
    "preference": [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"prompt": "q", "completions": ["a", "b"], "ranks": [0, 1]},
    ],
    "unpaired": [{"prompt": "q", "completion": "a", "label": True}, {"messages": [ASK, ANSWER], "vote": "down"}],
    "prompts": [{"prompt": "q"}],
}
NORMALIZE = {"unpaired": labels.unpaired} | {name: getattr(formats, name) for name in GOOD if name != "unpaired"}
WRONG = {
    "a number": 1,
    "a fraction": 1.5,
    "true": True,
    "a list": [1],
    "a list of lists": [[]],
    "an object": {"x": 1},
    "half a surrogate": "\ud800",
}
MESSAGES = {
    "no messages": [],
    "a string among them": ["x"],
    "null among them": [None],
    "no role": [{"content": "q"}, ANSWER],
    "no content": [{"role": "user"}, ANSWER],
    "an unknown role": [{"role": "tool", "content": "q"}, ANSWER],
    "a role that is a number": [{"role": 1, "content": "q"}, ANSWER],
    "a role that is a list": [{"role": [], "content": "q"}, ANSWER],
    "content that is null": [{"role": "user", "content": None}, ANSWER],
    "content that is a list": [{"role": "user", "content": [{"type": "text"}]}, ANSWER],
    "half a surrogate": [{"role": "user", "content": "\udfff"}, ANSWER],
    "two questions": [ASK, ASK, ANSWER],
    "two answers": [ASK, ANSWER, ANSWER],
    "the answer first": [ANSWER, ASK],
    "only a system message": [{"role": "system", "content": "s"}],
    "two system messages": [{"role": "system", "content": "s"}] * 2 + [ASK, ANSWER],
    "a late system message": [ASK, {"role": "system", "content": "s"}, ANSWER],
}
TREES = {
    "a role that is a list": {"role": [], "text": "q"},
    "replies that are a text": {"role": "prompter", "text": "q", "replies": "x"},
    "a reply that is null": {"role": "prompter", "text": "q", "replies": [None]},
    "a rank that is a text": {"role": "prompter", "text": "q", "replies": [{"rank": "0"}, {"rank": 1}]},
}
RANKS = {
    "too few": [0],
    "too many": [0, 1, 2],
    "strings": ["0", "1"],
    "truths": [True, False],
    "nulls": [None, None],
    "infinite": [0, float("inf")],
    "no numbers": [0, float("nan")],
    "a number": 3,
    "an object": {"a": 1},
}


def read_records(format_: str, file: str, content: bytes, folder: Path) -> None:
    path = folder / file
    path.write_bytes(content)
    for _ in records(open_source(str(path)), NORMALIZE[format_], on_malformed="error", counts=Counter()):
        pass


def bad_records() -> Iterator[tuple[str, Case]]:
    def case(name: str, format_: str, row: Any) -> tuple[str, Case]:
        content = json.dumps(GOOD[format_][0]) + "\n" + json.dumps(row) + "\n"
        return f"{format_} record: {name}", partial(read_records, format_, "a.jsonl", content.encode())

    for format_, goods in GOOD.items():
        for row in (None, 1, "x", [], {}, [{}]):
            yield case(f"{row!r} in its place", format_, row)
        for good in goods:
            shape = "+".join(good)
            for field in good:
                yield case(f"{shape} without {field}", format_, {k: v for k, v in good.items() if k != field})
                yield case(f"{shape} with null {field}", format_, {**good, field: None})
                for what, value in WRONG.items():
                    if field in labels.LABELS and value is True:
                        continue
                    yield case(f"{shape} with {what} as {field}", format_, {**good, field: value})
    for what, messages in MESSAGES.items():
        yield case(f"messages with {what}", "chat", {"messages": messages})
        if what != "two answers":  # the second of them is what is to be sampled
            yield case(f"messages with {what}", "prompts", {"messages": messages[:-1] if messages else messages})
        yield case(f"chosen with {what}", "preference", {"chosen": messages, "rejected": [ASK, ANSWER]})
    for what, ranks in RANKS.items():
        yield case(f"ranks: {what}", "preference", {"prompt": "q", "completions": ["a", "b"], "ranks": ranks})
    for what, tree in TREES.items():
        for format_ in ("chat", "prompts"):
            yield case(f"a tree with {what}", format_, {"prompt": tree})
    yield case("a speaker that is a list", "chat", {"conversations": [{"from": [], "value": "q"}]})
    yield case("an empty text", "text", {"text": ""})
    yield case("an empty prompt", "prompts", {"prompt": ""})
    yield case(
        "different prompts",
        "preference",
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: r\n\nAssistant: b"},
    )
    yield case("a transcript without an answer", "preference", {"chosen": "\n\nHuman: q", "rejected": "\n\nHuman: q"})


FILES = {
    "deep.jsonl": b"[" * 100_000,
    "deep.json": b"[" * 100_000,
    "deep_objects.jsonl": b'{"a":' * 100_000,
    "long_number.jsonl": b'{"text": ' + b"9" * 5000 + b"}",
    "long_number.json": b"[" + b"9" * 5000 + b"]",
    "cut.jsonl": b'{"text": "a',
    "cut.json": b'[{"text": "a"',
    "commas.json": b'[{"text": "a"},,]',
    "no_comma.json": b'[{"text": "a"} {"text": "b"}]',
    "two_lists.json": b'[{"text": "a"}] [{"text": "b"}]',
    "cut_after.json": b'[{"text": "a"},',
    "cut_pretty.json": b'{\n "text":\n "a"',
    "one_field_twice.jsonl": b'{"text": "a", "text": "b"}',
    "records_elsewhere.json": b'{"train": [{"text": "a"}]}',
    "uneven_columns.json": b'{"text": ["a", "b"], "id": [1]}',
    "no_records.json": b"[]",
    "blank.jsonl": b"\n \n",
    "string.json": b'"a"',
    "null.json": b"null",
    "words.jsonl": b"hello\n",
    "two.jsonl": b'{"text": "a"} text\n',
    "single.jsonl": b"{'text': 'a'}",
    "latin.jsonl": b'{"text": "\xe9"}',
    "latin.json": b'["\xe9"]',
    "latin.txt": b"caf\xe9",
    "utf16.jsonl": '{"text": "a"}'.encode("utf-16")[:-1],
    "utf16.txt": "abc".encode("utf-16")[:-1],
    "utf16_without_mark.txt": "abc".encode("utf-16-le"),
    "pointer.txt": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "pointer.parquet": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "zipped.txt": b"PK\x03\x04 a",
    "packed.jsonl": gzip.compress(b'{"text": "a"}'),
    "packed_twice.jsonl.gz": gzip.compress(gzip.compress(b'{"text": "a"}')),
    "plain.txt.bz2": b"a",
    "plain.json.xz": b"[]",
    "plain.jsonl.zst": b'{"text": "a"}',
    "cut.jsonl.bz2": bz2.compress(b'{"text": "a"}\n' * 99)[:-9],
    "cut.jsonl.xz": lzma.compress(b'{"text": "a"}\n' * 99)[:-9],
    "cut.jsonl.zst": pa.compress(b'{"text": "a"}\n' * 99, "zstd", asbytes=True)[:-9],
    "packed.parquet.gz": gzip.compress(b"PAR1"),
    "words.arrow": b"hello",
    "archive.tar.gz": gzip.compress(b"a"),
    "odd.jsonl.lz4": b"a",
    "zeros.jsonl": b"\0" * 100,
    "control.jsonl": b'{"text": "a\x01"}',
    "empty.jsonl": b"",
    "empty.json": b"",
    "empty.txt": b"",
    "empty.parquet": b"",
    "empty.jsonl.gz": b"",
    "plain.jsonl.gz": b'{"text": "a"}',
    "cut.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 99)[:-9],
    "garbage.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 99)[:20] + b"\xff" * 40,
    "header.jsonl.gz": b"\x1f\x8b",
    "words.parquet": b"hello",
    "magic.parquet": b"PAR1",
    "both_magics.parquet": b"PAR1" + b"\0" * 60 + b"PAR1",
    "headless.csv": b"a\nb\n",
    "quote.csv": b'text\n"a\n',
    "twice.csv": b"text,text\na,b\n",
    "wide.tsv": b"text\na\tb\n",
    "latin.csv": b"text\ncaf\xe9\n",
    "code.py": b"print(1)",
    "noname": b"a",
    "archive.zip": b"PK\x03\x04",
    "pickle.pkl": b"\x80\x04.",
}


def bad_files() -> Iterator[tuple[str, Case]]:
    for name, content in FILES.items():
        yield f"file: {name}", partial(read_records, "text", name, content)

    def place(make: Callable[[Path], str], folder: Path) -> None:
        for _ in records(open_source(make(folder)), formats.text, on_malformed="error", counts=Counter()):
            pass

    def linked(folder: Path) -> str:
        (folder / "a.jsonl").symlink_to(folder / "a.jsonl")
        return str(folder / "a.jsonl")

    def named_like_a_file(folder: Path) -> str:
        (folder / "a.jsonl").mkdir()
        return str(folder / "a.jsonl")

    def pipe(folder: Path) -> str:
        os.mkfifo(folder / "a.jsonl")
        return str(folder / "a.jsonl")

    places = {
        "a file that is not there": lambda folder: str(folder / "nothing.jsonl"),
        "an empty path": lambda folder: "",
        "a folder without data": str,
        "a link to itself": linked,
        "a folder named like a file": named_like_a_file,
        "a zero byte in the path": lambda folder: "a\0b.jsonl",
        "a very long path": lambda folder: "a" * 5000 + ".jsonl",
        "a device": lambda folder: "/dev/null",
        "a pipe that nobody writes to": pipe,
    }
    for name, make in places.items():
        yield f"place: {name}", partial(place, make)


def read_artifact(change: Callable[[Path], None], made: Path, folder: Path) -> None:
    """Loads a copy of a whole artifact after a change."""
    export = folder / "export"
    shutil.copytree(made, export)
    change(export)
    store.read_card(export)
    Tokenizer.load(export)
    store.load_causal_lm(export)


def bad_artifacts(made: Path) -> Iterator[tuple[str, Case]]:
    """Of a language model's artifact at `made`."""

    def case(name: str, change: Callable[[Path], None]) -> tuple[str, Case]:
        return f"artifact: {name}", partial(read_artifact, change, made)

    def overwrite(file: str, content: bytes, export: Path) -> None:
        (export / file).write_bytes(content)

    def edit(file: str, field: str, value: Any, export: Path) -> None:
        fields = json.loads((export / file).read_text())
        fields[field] = value
        if value is ...:
            del fields[field]
        (export / file).write_text(json.dumps(fields))

    for file in ("config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"):
        yield case(f"no {file}", lambda export, file=file: (export / file).unlink())
        yield case(
            f"a folder named {file}", lambda export, file=file: ((export / file).unlink(), (export / file).mkdir())
        )
        whole = (made / file).read_bytes()
        contents = {
            "empty": b"",
            "half": whole[: len(whole) // 2],
            "noise": bytes(range(256)) * 4,
            "null": b"null",
            "a list": b"[1]",
            "a number": b"7",
            "a pickle": b"\x80\x04cos\nsystem\n.",
        }
        for what, content in contents.items():
            yield case(f"{file}: {what}", partial(overwrite, file, content))
    for what, content in {
        "empty": b"",
        "half": b'{"stage": ',
        "a list": b"[]",
        "deep": b"[" * 100_000,
        "latin": b'{"\xe9": 1}',
    }.items():
        yield case(f"card.json: {what}", partial(overwrite, "card.json", content))
    shape = json.loads((made / "config.json").read_text())
    numbers = [name for name, value in shape.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    for field in numbers:
        if field.endswith("token_id"):
            continue
        for what, value in {
            "a string": "x",
            "a list": [1],
            "negative": -4,
            "zero": 0,
            "huge": 10**12,
            "a half": 0.5,
        }.items():
            if (
                not (what in ("zero", "half", "huge", "a half") and isinstance(shape[field], float))
                and (field, what) not in FINE
            ):
                yield case(f"config.json: {field} is {what}", partial(edit, "config.json", field, value))
    for field, value in {
        "architectures": 3,
        "model_type": "gpt2",
        "hidden_act": "relu",
        "mlp_bias": True,
        "rope_scaling": {"rope_type": "yarn"},
        "rope_parameters": 5,
    }.items():
        yield case(f"config.json: {field} is {value!r}", partial(edit, "config.json", field, value))
    for field in (
        "architectures",
        "model_type",
        "hidden_size",
        "vocab_size",
        "num_hidden_layers",
        "num_attention_heads",
    ):
        yield case(f"config.json: no {field}", partial(edit, "config.json", field, ...))
    for value in (None, 3, [], {}, "", "x", "{{", "{% for %}", "{{ 1/0 }}", "{{ messages.x.y }}"):
        yield case(f"chat template {value!r}", partial(edit, "tokenizer_config.json", "chat_template", value))
    yield from (case(f"weights: {name}", change) for name, change in bad_weights().items())


FINE = {
    ("max_position_embeddings", "huge"),
    ("num_key_value_heads", "zero"),
    ("head_dim", "zero"),
}  # allowed, or defaults


def bad_weights() -> dict[str, Callable[[Path], None]]:
    def saved(change: Callable[[dict], Any], export: Path) -> None:
        from safetensors.torch import load_file

        weights = load_file(export / "model.safetensors")
        change(weights)
        save_file(weights, export / "model.safetensors")

    def index(table: Any, export: Path) -> None:
        (export / "model.safetensors").rename(export.parent / "model.safetensors")
        (export / "model.safetensors.index.json").write_text(json.dumps(table))

    def pickled(name: str, export: Path) -> None:
        (export / "model.safetensors").unlink()
        torch.save({"a": torch.zeros(1)}, export / name)

    first = "model.embed_tokens.weight"
    return {
        "one is missing": partial(saved, lambda w: w.pop(first)),
        "one too many": partial(saved, lambda w: w.update(other=torch.zeros(1))),
        "another shape": partial(saved, lambda w: w.update({first: torch.zeros(2, 2)})),
        "a scalar": partial(saved, lambda w: w.update({first: torch.zeros(())})),
        "not finite": partial(saved, lambda w: w[first].fill_(float("nan"))),
        "an index without a map": partial(index, {}),
        "an index that is a list": partial(index, []),
        "a map that is a list": partial(index, {"weight_map": []}),
        "a map to numbers": partial(index, {"weight_map": {first: 3}}),
        "a map to a file above": partial(index, {"weight_map": {first: "../model.safetensors"}}),
        "a map to a file elsewhere": partial(index, {"weight_map": {first: "/etc/passwd"}}),
        "a map to nothing": partial(index, {"weight_map": {first: "none.safetensors"}}),
        "a pickle called safetensors": partial(pickled, "model.safetensors"),
        "a pickle called bin": partial(pickled, "pytorch_model.bin"),
    }


def bad_checkpoints() -> Iterator[tuple[str, Case]]:
    def damaged(change: Callable[[bytes], bytes], folder: Path) -> None:
        path = folder / "step=00000001.ckpt"
        AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(9)}}, path)
        path.write_bytes(change(path.read_bytes()))
        AtomicCheckpointIO().load_checkpoint(path)

    changes = {
        "empty": lambda b: b"",
        "half": lambda b: b[: len(b) // 2],
        "without its seal": lambda b: b[:-71],
        "a bit flipped": lambda b: b[:99] + bytes([b[99] ^ 1]) + b[100:],
        "doubled": lambda b: b + b,
        "a pickle": lambda b: b"\x80\x04cos\nsystem\n.",
        "noise": lambda b: bytes(range(256)) * 9,
    }
    for name, change in changes.items():
        yield f"checkpoint: {name}", partial(damaged, change)
    yield "checkpoint: a folder", lambda folder: AtomicCheckpointIO().load_checkpoint(folder)
