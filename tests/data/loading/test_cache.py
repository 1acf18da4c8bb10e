import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from components.data.loading import cache
from components.data.loading.cache import PREFIX, Ragged, stored
from components.data.records.errors import SourceError
from components.data.text import TextData

COLUMNS = {"ids": pa.list_(pa.int32())}


def test_a_second_start_tokenizes_nothing(common, write, tok, monkeypatch):
    path = write("a.jsonl", [{"text": f"text {i}"} for i in range(30)])
    first = TextData(path=path, **common)
    first.prepare_data()
    first.setup()

    def never(text):
        raise AssertionError(f"tokenized again: {text}")

    monkeypatch.setattr(type(tok), "document", lambda self, text: never(text))
    second = TextData(path=path, **common)
    second.prepare_data()
    second.setup()
    assert second.counts == first.counts == {"records": 30, "tokens": first.counts["tokens"]}
    with pytest.raises(AssertionError, match="tokenized again"):
        TextData(path=path, longest_document=3, **common).prepare_data()
    write("a.jsonl", [{"text": "another"}])
    with pytest.raises(AssertionError, match="tokenized again: another"):
        TextData(path=path, **common).prepare_data()


def test_the_validation_share_can_change_without_tokenizing_again(common, write, tmp_path):
    path = write("a.jsonl", [{"text": f"text {i}"} for i in range(300)])
    rows = []
    for fraction in (0.0, 0.1, 0.5):
        data = TextData(path=path, val_fraction=fraction, **common)
        data.setup()
        rows.append(data.val_examples.num_tokens)
        assert data.train_examples.num_tokens + data.val_examples.num_tokens == data.counts["tokens"]
    assert rows == sorted(rows) and rows[0] == 0
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_records_left_out_once_do_not_pass_when_they_are_errors_again(common, write):
    path = write("a.jsonl", [{"text": "fine"}, {"text": 5}])
    TextData(path=path, on_malformed="skip", **common).setup()
    with pytest.raises(SourceError, match=r"a\.jsonl:2"):
        TextData(path=path, on_malformed="error", **common).setup()


def test_an_error_in_the_middle_leaves_nothing_behind(tmp_path):
    def make(counts: Counter):
        yield {"ids": [1]}
        raise SourceError("a.jsonl:2: bad")

    with pytest.raises(SourceError, match="^a.jsonl:2: bad$"):
        stored(tmp_path, "key", make, COLUMNS)
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_make_the_same_one_wins(tmp_path):
    def make(counts: Counter):
        if not (tmp_path / "key").exists():  # while the first process makes it, a second one makes it too
            stored(tmp_path, "key", lambda counts: iter([{"ids": [7]}]), COLUMNS)
        yield {"ids": [8]}

    table, _ = stored(tmp_path, "key", make, COLUMNS)
    assert [table[i] for i in range(len(table))] == [{"ids": [7]}]
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_what_is_left_of_a_process_that_was_killed_when_all_was_made_is_removed_too(tmp_path):
    stored(tmp_path, "key", lambda counts: iter([{"ids": [7]}]), COLUMNS)
    (tmp_path / f"{PREFIX}x").mkdir()
    stored(tmp_path, "key", lambda counts: iter([{"ids": [8]}]), COLUMNS)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_what_a_killed_process_was_making_is_removed_and_what_a_living_one_makes_is_not(tmp_path):
    script = """
import os, signal, sys, time
from components.data.loading.cache import _scratch
from pathlib import Path
with _scratch(Path(sys.argv[1])) as scratch:
    print(scratch, flush=True)
    time.sleep(60)
"""
    living, killed = (
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    with living, killed:
        names = [Path(process.stdout.readline().strip()) for process in (living, killed)]
        killed.kill()
        killed.wait()
        assert all(name.is_dir() for name in names)
        stored(tmp_path, "key", lambda counts: iter([{"ids": [7]}]), COLUMNS)
        assert sorted(tmp_path.iterdir()) == sorted([names[0], tmp_path / "key"])
        living.kill()


def test_a_source_without_a_usable_record_is_an_error(common, write):
    with pytest.raises(SourceError, match=r"a\.jsonl: no usable records.*'malformed': 1"):
        TextData(path=write("a.jsonl", "nope\n"), on_malformed="skip", **common).setup()


def test_a_stored_list_is_read_in_place_across_the_chunks_of_the_file(tmp_path):
    lists = [list(range(i % 7)) for i in range(2500)]  # 3 chunks, empty lists among them
    table, _ = stored(tmp_path, "key", lambda counts: iter([{"ids": one} for one in lists]), COLUMNS)
    column = Ragged(table, "ids")
    assert [column[i].tolist() for i in range(len(column))] == lists
    assert column.lengths.tolist() == [len(one) for one in lists]
    assert len(table.column("ids").chunks) == 3
    assert not column[6].flags.owndata
    with pytest.raises(IndexError):
        column[2500]


def test_another_process_reads_the_table_from_its_file(tmp_path):
    table, _ = stored(tmp_path, "key", lambda counts: iter([{"ids": list(range(10_000))}]), COLUMNS)
    sent = pickle.dumps(table)
    assert len(sent) < 1000
    assert pickle.loads(sent)[0] == table[0]


def test_the_version_is_part_of_the_name(common, write, monkeypatch, tmp_path):
    from components.data import base

    path = write("a.txt", "x")
    TextData(path=path, **common).prepare_data()
    monkeypatch.setattr(base, "VERSION", cache.VERSION + 1)
    TextData(path=path, **common).prepare_data()
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert np.all([(one / "counts.json").exists() for one in (tmp_path / "cache").iterdir()])
