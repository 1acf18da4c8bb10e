"""Tables as text: what a row of cells means, and what is refused."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from components.data.records import formats
from components.data.records.errors import SourceError
from components.data.sources.csv_rows import csv_rows
from components.data.sources.source import open_source, records


def values(path: str) -> list:
    return [value for _, value in csv_rows(Path(path))]


def read(path: str, normalize=formats.chat, on_malformed="error", counts=None) -> list:
    found = records(open_source(path), normalize, on_malformed=on_malformed, counts=counts or Counter())
    return [record for _, record in found]


def turns(*said: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "prompt,completion\nHi,42\nWhy?,So.\n"),
        ("a.csv", '"prompt","completion"\r\n"Hi","42"\r\n"Why?","So."\r\n'),
        ("a.csv", "\ufeffprompt;completion\nHi;42\nWhy?;So."),  # as spreadsheets in much of Europe write it
        ("a.csv", "prompt\tcompletion\nHi\t42\nWhy?\tSo.\n"),
        ("A.TSV", "prompt\tcompletion\nHi\t42\nWhy?\tSo.\n"),
        ("a.csv", ",prompt,completion\n0,Hi,42\n1,Why?,So.\n"),  # with pandas' row numbers
        ("a.csv", "prompt,completion\n\nHi,42\n,\nWhy?,So.\n,\n"),  # with empty rows
        ("a.csv.gz", "prompt,completion\nHi,42\nWhy?,So.\n"),
    ],
)
def test_rows_of_every_dialect_are_the_same_records(name, content, write):
    wanted = [{"messages": turns("Hi", "42")}, {"messages": turns("Why?", "So.")}]
    assert read(write(name, content)) == wanted


def test_a_utf_16_file_with_a_mark_is_read(write):
    assert values(write("a.csv", "text\né☃\n".encode("utf-16"))) == [{"text": "é☃"}]


def test_a_quoted_cell_contains_delimiters_quotes_and_line_ends(write):
    content = 'prompt,completion\r\n"Say ""a, b""","one\r\n\r\ntwo\n"\r\nHi,Yes\r\n'
    path = write("a.csv", content)
    assert [where.rpartition(":")[2] for where, _ in csv_rows(Path(path))] == ["2", "6"]
    assert values(path)[0] == {"prompt": 'Say "a, b"', "completion": "one\r\n\r\ntwo\n"}


def test_what_python_writes_is_read_back(write, tmp_path):
    cells = ["a", '"', "'", ",", ";\t", "x\ny", "\\", "007", "null", " ", "é\u2028", "a" * 200_000, "\x00"]
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([["x", "y"], *([cell, "1"] for cell in cells)])
        assert [row["x"] for row in values(str(tmp_path / name))] == cells


def test_an_empty_cell_is_absent_and_json_in_a_cell_is_read(write):
    cells = [json.dumps(turns("Hi", "Yes")), "", json.dumps([{"name": "f"}])]
    row = ",".join('"' + cell.replace('"', '""') + '"' if cell else "" for cell in cells)
    tool = {"type": "function", "function": {"name": "f"}}
    assert read(write("a.csv", f"messages,system,tools\n{row}\n")) == [
        {"messages": turns("Hi", "Yes"), "tools": [tool]}
    ]
    table = "instruction,input,output\nAdd,1 2,3\nGreet,,Hi\n"
    assert [record["messages"] for record in read(write("b.csv", table))] == [
        turns("Add\n\n1 2", "3"),
        turns("Greet", "Hi"),
    ]


def test_messages_in_any_column_are_read_and_other_json_is_text(write):
    question, yes, no = turns("Hi"), [{"role": "assistant", "content": "Yes"}], [{"from": "gpt", "value": "No"}]
    cells = ",".join('"' + json.dumps(messages).replace('"', '""') + '"' for messages in (question, yes, no))
    [record] = read(write("a.csv", f"prompt,chosen,rejected\n{cells}\n"), formats.preference)
    assert record == {"prompt": question, "completions": ["Yes", "No"], "ranks": [0.0, 1.0]}
    alone = ",".join('"' + json.dumps(messages[0]).replace('"', '""') + '"' for messages in (yes, no))
    [record] = read(write("b.csv", f"question,chosen,rejected\nHi,{alone}\n"), formats.preference)
    assert record == {"prompt": question, "completions": ["Yes", "No"], "ranks": [0.0, 1.0]}
    for text in ("[1, 2]", '[{"a": 1}]', '{"role": "wizard", "name": "Fep"}', '{"from": "me"}'):
        cell = '"' + text.replace('"', '""') + '"'
        [record] = read(write("c.csv", f"prompt,completion\n{cell},{cell}\n"))
        assert record == {"messages": turns(text, text)}


def test_comparisons_rankings_prompts_and_text_come_from_tables_too(write):
    pairs = write("a.csv", "prompt,chosen,rejected\nHi,Yes,No\n")
    ranking = {"prompt": turns("Hi"), "completions": ["Yes", "No"], "ranks": [0.0, 1.0]}
    assert read(pairs, formats.preference) == [ranking]
    ranked = write("b.csv", 'prompt,completions,ranks\nHi,"[""Yes"", ""No""]","[0, 1]"\n')
    assert read(ranked, formats.preference) == [ranking]
    voted = write("c.csv", "history,human_ref_A,human_ref_B,labels\nHi,Yes,No,1\n")
    assert read(voted, formats.preference) == [ranking]
    assert read(pairs, formats.prompts)[0]["prompt"] == turns("Hi")
    assert read(write("d.csv", "text\nx\ny\n"), formats.text) == [{"text": "x"}, {"text": "y"}]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "prompt,completion\nHi,Yes\nWhy,so,no\n", r"a\.csv:3: expected 2 cells, like the first row, got 3"),
        ("a.csv", "prompt,completion\nHi\n", r"a\.csv:2: expected 2 cells, like the first row, got 1"),
        ("a.csv", "Hi,Yes\nWhy?,So.\n", r"a\.csv:2: expected .*got fields 'Hi', 'Yes'"),
        ("a.csv", "prompt,completion\nHi,\n", r"a\.csv:2: .*got fields 'prompt'; \"completion\" is null"),
        ("a.csv", "a,b,a\n1,2,3\n", r"a\.csv:1: two columns are named a\. Rename one"),
        (
            "a.csv",
            'prompt,completion\nHi,Yes\n"Why,so\n',
            r"a\.csv:3: expected cells separated by ',', got unexpected end",
        ),
        ("a.csv", 'prompt,completion\nHi,"Yes" he said\n', r"a\.csv:2: expected cells .*Write double quotes .* twice"),
        (
            "a.csv",
            b"prompt,completion\nHi,caf\xe9\n",
            r"a\.csv: expected UTF-8, got byte 0xe9 in or after line 1.*cp1252",
        ),
        ("a.csv", "", r"a\.csv: contains no records"),
        ("a.csv", "prompt,completion\n", r"a\.csv: contains no records"),
        ("a.csv", "messages\n\"[{'role': 'user'}]\"\n", r"a\.csv:2: expected messages as JSON, got .*double quotes"),
        ("a.csv.gz", b"", r"a\.csv\.gz: contains no records"),
    ],
)
def test_errors_say_what_is_wrong_with_a_table(name, content, said, write):
    with pytest.raises(SourceError, match=said):
        read(write(name, content))


def test_rows_of_another_width_are_skipped_like_other_malformed_records(write):
    counts = Counter()
    path = write("a.csv", "prompt,completion\nHi,Yes\nWhy,so,no\n\nHow,So\n")
    found = list(records(open_source(path), formats.chat, on_malformed="skip", counts=counts))
    assert [row.where.rpartition(":")[2] for row, _ in found] == ["2", "5"]
    assert counts == {"records": 2, "malformed": 1}


@pytest.mark.parametrize("header", ["Frage;Antwort (kurz, klar)", "Frage, kurz;Antwort, klar"])
def test_delimiters_in_the_names_of_columns_do_not_split_them(header, write):
    rows = values(write("a.csv", f"{header}\nJa, gern;Nein\nSo;So\nUnd;Oder\n"))
    assert [list(row) for row in rows] == [header.split(";")] * 3
    assert [list(row.values()) for row in rows] == [["Ja, gern", "Nein"], ["So", "So"], ["Und", "Oder"]]
