from collections import Counter

import pytest

from components.data.records.errors import SourceError
from components.data.text import TextData, cut_at_lines


def documents(count: int) -> list[dict]:
    return [{"text": f"<{i}>" + "abcdefghij"[: i % 11]} for i in range(count)]


@pytest.mark.parametrize("context", [2, 5, 16, 1000])
def test_every_token_but_the_first_of_a_document_is_a_target_once(common, write, tok, context):
    path = write("a.jsonl", documents(40))
    data = TextData(path=path, val_fraction=0.0, batch_size=3, **common | {"context": context})
    data.setup()
    expected = Counter(id for one in documents(40) for id in tok.document(one["text"])[1:])
    seen: Counter[int] = Counter()
    for batch in data.train_dataloader():
        assert batch.mask.any(1).all(), "a row without a target"
        seen.update(batch.targets[batch.mask].tolist())
    assert seen == expected


def test_a_row_has_one_segment_per_document_and_nothing_crosses_over(common, write, tok):
    data = TextData(path=write("a.jsonl", [{"text": "abc"}] * 4), val_fraction=0.0, **common | {"context": 8})
    data.setup()
    # the stream, 5 tokens per document (| starts it, $ ends it): |abc$|abc$|abc$|abc$ in rows of 8
    [batch] = data.train_dataloader()
    order = batch.input_ids[:, 0].argsort(stable=True)  # only row 0 starts with bos
    rows = {int(batch.layout.real[i].sum()): i for i in range(3) if not batch.layout.real[i, 7]}
    assert list(rows) == [3]  # 19 targets: 8, 8 and 3
    first = next(i for i in order.tolist() if batch.input_ids[i, :5].tolist() == tok.document("abc"))
    assert batch.layout.segments[first].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert batch.layout.positions[first].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert batch.mask[first].tolist() == [True] * 4 + [False] + [True] * 3
    assert (batch.layout.parents == -1).all()
    last = rows[3]  # …bc$ without its last
    assert batch.input_ids[last].tolist() == [*tok.encode("abc"), *[tok.pad_id] * 5]
    assert batch.layout.positions[last].tolist()[:3] == [0, 1, 2]
    assert batch.mask[last].tolist() == [True] * 3 + [False] * 5


def test_targets_are_the_next_tokens_and_filler_where_none_counts(common, write, tok):
    data = TextData(path=write("a.jsonl", documents(60)), val_fraction=0.0, **common | {"context": 16})
    data.setup()
    for batch in data.train_dataloader():
        segments = batch.layout.segments
        assert (batch.targets[~batch.mask] == tok.pad_id).all()
        follows = segments[:, 1:] >= 0  # positions followed by a token of the row
        same = segments[:, :-1] == segments[:, 1:]
        assert (batch.mask[:, :-1][follows] == same[follows]).all()
        assert (batch.targets[:, :-1] == batch.input_ids[:, 1:])[follows & same].all()


def test_bytes_are_those_of_the_text(common, write):
    texts = ["héllo", "wörld ☃", "x"]
    data = TextData(path=write("a.jsonl", [{"text": one} for one in texts]), val_fraction=0.0, **common)
    data.setup()
    counted = sum(int(batch.num_bytes) for batch in data.train_dataloader())
    assert counted == sum(len(one.encode()) for one in texts)


def test_no_document_is_both_trained_on_and_held_out(common, write, tok):
    path = write("a.jsonl", documents(200) + documents(100))
    data = TextData(path=path, val_fraction=0.2, **common)
    data.setup()

    def begins(rows) -> set[tuple]:
        stream = [int(id) for r in range(len(rows)) for id in rows[r][0][:-1]]
        stream.append(int(rows[len(rows) - 1][0][-1]))
        starts = [i for i, id in enumerate(stream) if id == tok.bos_id] + [len(stream)]
        return {tuple(stream[a:b]) for a, b in zip(starts, starts[1:], strict=False)}

    train, held_out = begins(data.train_examples), begins(data.val_examples)
    assert train.isdisjoint(held_out) and len(held_out) > 20
    assert train | held_out == {tuple(tok.document(one["text"])) for one in documents(200)}


@pytest.mark.parametrize("part", [None, [0.0, 0.5]])
def test_the_texts_for_a_tokenizer_leave_out_what_is_not_trained_on(common, write, tok, part):
    chosen = {"path": write("a.jsonl", documents(100)), "val_fraction": 0.2, "train_part": part}
    data = TextData(**chosen, **common | {"tokenizer": None})
    texts = list(data.texts())
    again = TextData(**chosen, **common)
    again.setup()
    assert sum(len(tok.document(text)) for text in texts) == again.train_examples.num_tokens
    assert again.train_examples.num_tokens < again.counts["tokens"]
    with pytest.raises(ValueError, match="stage=tokenizer"):
        data.setup()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("abc", ["abc"]),
        ("ab\ncd\nef", ["ab\n", "cd\n", "ef"]),
        ("a\nb\ncdef", ["a\nb\n", "cdef"]),
        ("abcdefghi", ["abcd", "efgh", "i"]),
    ],
)
def test_a_long_text_is_cut_after_line_ends(text, parts):
    assert list(cut_at_lines(text, 4)) == parts


@pytest.mark.parametrize(("longest", "parts"), [(3, 4), (5, 2), (10, 1)])
def test_a_text_that_is_cut_begins_once_and_ends_once_and_is_counted(common, write, tok, longest, parts):
    path = write("a.jsonl", [{"text": "abcdefghij"}, {"text": "xyz"}])
    data = TextData(path=path, longest_document=longest, val_fraction=0.0, **common)
    data.setup()
    [batch] = data.train_dataloader()
    assert int(batch.layout.segments.max()) + 1 == parts + 1
    ids = batch.input_ids[batch.layout.real].tolist() + batch.targets[batch.mask].tolist()[-1:]
    assert ids.count(tok.bos_id) == ids.count(tok.eos_id) == 2
    whole = tok.document("abcdefghij")
    pieces = [[*(place for place in range(len(ids)) if ids[place] == letter)] for letter in whole[1:-1]]
    assert all(len(places) == 1 for places in pieces)  # nothing is lost or duplicated
    assert data.counts == Counter(records=2, tokens=len(whole) + len(tok.document("xyz")), cut=int(parts > 1))


def test_cut_texts_are_reported(common, write, caplog):
    path = write("a.jsonl", [{"text": "abcdefghij"}, {"text": "xyz"}])
    TextData(path=path, longest_document=4, val_fraction=0.0, **common).setup()
    assert "1 of 2 records cut" in caplog.text


def test_one_long_file_still_has_something_to_validate_on(common, write):
    path = write("a.txt", "".join(f"line {i}\n" for i in range(400)))
    data = TextData(path=path, longest_document=100, **common)
    data.setup()
    assert len(data.val_examples) > 0
    assert data.counts["records"] == 1


BOOK = "".join(f"Chapter {i}.\nIt rains.\n{' ' * (i % 2)}\n" for i in range(40))


@pytest.mark.parametrize(
    ("settings", "count", "first"),
    [
        ({}, 40, "Chapter 0.\nIt rains."),  # at blank lines, including those with spaces
        ({"split_at": r"\n(?=Chapter .0)"}, 4, None),
        ({"split_at": None}, 1, BOOK),
    ],
)
def test_a_text_file_is_split_into_documents_at_blank_lines_or_where_asked(common, write, settings, count, first):
    data = TextData(path=write("a.txt", BOOK), val_fraction=0.0, **settings, **common)
    texts = list(data.texts())
    assert len(texts) == count
    assert first is None or texts[0] == first
    assert "".join("".join(texts).split()) == "".join(BOOK.split())
    data.setup()
    assert data.counts["records"] == count


def test_only_whole_text_files_are_split(common, write):
    data = TextData(path=write("a.jsonl", [{"text": "a\n\nb"}]), val_fraction=0.0, **common)
    assert list(data.texts()) == ["a\n\nb"]


def test_a_book_has_a_held_out_part_and_a_text_without_one_warns(common, write, caplog):
    book = TextData(path=write("a.txt", BOOK), **common)
    book.setup()
    assert len(book.val_examples) and not caplog.records
    whole = TextData(path=write("a.txt", BOOK), split_at=None, **common)
    whole.setup()
    [warning] = [record.getMessage() for record in caplog.records]
    assert not len(whole.val_examples)
    assert "text data: nothing is held out" in warning and "1 different documents, expected at least 20" in warning
    caplog.clear()
    TextData(path=write("a.txt", BOOK), split_at=None, val_fraction=0.0, **common).setup()
    assert not caplog.records


def test_an_invalid_pattern_is_refused(common):
    with pytest.raises(ValueError, match=r"split_at: '\(' is not a regular expression"):
        TextData(path="a.txt", split_at="(", **common)


def test_a_mixture_reports_configured_and_realized_shares_and_epochs(common, write):
    long = write("a.jsonl", [{"text": f"{i:03d}" + "a" * 20} for i in range(100)])
    short = write("b.jsonl", [{"text": f"{i:03d}" + "b" * 5} for i in range(400)])
    mixture = [{"path": long, "weight": 3}, {"path": short, "weight": 1, "name": "short"}]
    data = TextData(mixture=mixture, val_fraction=0.0, **common)
    data.setup()
    letters = Counter(id for batch in data.train_dataloader() for id in batch.targets[batch.mask].tolist())
    a, b = letters[data.tokenizer.encode("a")[0]] / 20 * 25, letters[data.tokenizer.encode("b")[0]] / 5 * 10
    assert list(data.shares) == ["a.jsonl", "short"]
    assert data.shares["a.jsonl"].configured == 0.75
    assert data.shares["a.jsonl"].realized == pytest.approx(a / (a + b)) == pytest.approx(0.75, abs=0.005)
    assert data.shares["a.jsonl"].epochs == pytest.approx(a / 2500)


def test_a_path_beats_a_mixture_which_beats_the_world(common, write):
    path = write("a.txt", "file")
    mixture = [{"path": write("b.txt", "mixed"), "weight": 1}]
    world = {"seed": 0, "num_names": 4, "noise": 0.0}
    assert list(TextData(path=path, mixture=mixture, world=world, **common).texts()) == ["file"]
    assert list(TextData(mixture=mixture, world=world, **common).texts()) == ["mixed"]
    data = TextData(world=world, num_documents=50, **common)
    data.setup()
    assert data.counts["records"] == 50
    with pytest.raises(SourceError, match="no data: set data.path"):
        TextData(**common).setup()


def test_other_data_has_another_fingerprint(common, write):
    world = {"seed": 0, "num_names": 4, "noise": 0.0}
    made = [
        TextData(world=world, **common),
        TextData(world={**world, "seed": 1}, **common),
        TextData(world=world, num_documents=3, **common),
        TextData(path=write("a.txt", "x"), **common),
        TextData(path=write("b.txt", "y"), **common),
    ]
    assert len({data.fingerprint() for data in made}) == len(made)
    assert made[0].fingerprint() == TextData(world=dict(world), **common).fingerprint()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mixture": [{"path": "x.txt"}]}, r"mixture\[0\]: expected \{path, weight > 0, name\?, subset\?"),
        ({"mixture": [{"path": "x.txt", "weight": 1, "wieght": 2}]}, "wieght"),
        ({"world": {"num_namse": 3}}, "world: .*num_namse"),
        ({"world": {"language": "elvish"}}, "world: language.*elvish"),
    ],
)
def test_an_invalid_source_is_refused(common, arguments, said):
    with pytest.raises(SourceError, match=said):
        TextData(**arguments, **common).setup()


@pytest.mark.parametrize("wrong", [{"context": 1}, {"longest_document": 0}, {"batch_size": 0}])
def test_meaningless_sizes_are_refused(common, write, wrong):
    [name] = wrong
    with pytest.raises(ValueError, match=f"{name}: got"):
        data = TextData(path=write("a.txt", "x"), **common | wrong)
        data.setup()
        data.train_dataloader()


def test_documents_of_the_held_out_file_are_not_trained_on(common, write, tmp_path):
    """Of six training documents two are held out as well."""
    write("d/train.jsonl", documents(6))
    write("d/test.jsonl", documents(9)[4:])
    data = TextData(path=str(tmp_path / "d"), held_out_split="test", **common)
    data.setup()
    assert data.counts["held_out_too"] == 2
    assert list(data.texts()) == [one["text"] for one in documents(4)]
    targets = sum(int(batch.mask.sum()) for batch in data.train_dataloader())
    assert targets == sum(len(common["tokenizer"].document(one["text"])) - 1 for one in documents(4))


def test_a_text_file_with_other_names_for_columns_is_refused_by_name(common, write):
    data = TextData(path=write("a.txt", "one\n\ntwo"), columns={"text": "body"}, **common)
    with pytest.raises(SourceError, match="data.columns"):
        data.setup()
