"""Ready rewards on answers whose scores anyone can tell."""

import json

import pytest

from components.rewards.ready import (
    exact_match,
    format_match,
    json_match,
    length_within,
    math_match,
    numeric_match,
    overlong_penalty,
    repetition_penalty,
    script_share,
)


def scores(function, completions, answers=None, **settings):
    columns = {} if answers is None else {"answer": answers}
    return function([""] * len(completions), completions, **columns, **settings)


def one(function, completion, answer, **settings):
    return scores(function, [completion], [answer], **settings)[0]


def test_an_exact_match_is_the_whole_completion():
    completions = [" Paris\n", "paris", "It is Paris.", "Paris", "Lyon"]
    assert scores(exact_match, completions, ["Paris"] * 4 + [None]) == [1, 0, 0, 1, None]
    assert scores(exact_match, completions, ["Paris"] * 5, ignore_case=True) == [1, 1, 0, 1, 0]
    assert scores(exact_match, completions, ["Paris"] * 5, anywhere=True) == [1, 0, 1, 1, 0]


def test_a_completion_can_be_messages_and_an_answer_one_of_several():
    dialogue = [{"role": "assistant", "content": "four"}]
    assert scores(exact_match, [dialogue, dialogue], [["4", "four"], ["4", "five"]]) == [1, 0]
    assert one(exact_match, "4", 4) == 1


def test_an_answer_is_found_by_its_pattern_and_the_last_one_counts():
    completion = "<answer>3</answer> no, <answer> 4 </answer>, and 5"
    pattern = "<answer>(.*?)</answer>"
    assert [one(exact_match, completion, answer, extract=pattern) for answer in ("3", "4", "5")] == [0, 1, 0]
    assert one(exact_match, "4", "4", extract=pattern) == 0
    assert one(numeric_match, "so #### 72", "48 + 24\n#### 72", extract="####(.*)", extract_reference="####(.*)") == 1
    with pytest.raises(ValueError, match="extract_reference='####' is not in answer='72'"):
        one(exact_match, "72", "72", extract_reference="####")
    with pytest.raises(ValueError, match=r"extract='\(' is not a regular expression: missing \)"):
        one(exact_match, "72", "72", extract="(")


@pytest.mark.parametrize(
    ("completion", "answer", "occurs"),
    [
        ("the answer is 42.", "42", True),
        ("x=42, y=1", "42", True),
        ("it is 142", "42", False),
        ("it is 3.42", "42", False),
        ("it is 42.5", "42", False),
        ("it is -42", "42", False),
        ("lines 7-42", "42", True),
        ("a cathedral", "cat", False),
        ("f(x)+1 = 2", "f(x)", True),
        ("anything", "", False),
    ],
)
def test_anywhere_means_as_a_whole_word_or_number(completion, answer, occurs):
    assert one(exact_match, completion, answer, anywhere=True) == occurs


@pytest.mark.parametrize(
    ("completion", "answer", "equal"),
    [
        ("42", 42, True),
        ("42.0", "42", True),
        ("42.", "42", True),
        ("1,234.50", "1234.5", True),
        ("-3", "−3", True),
        ("3/4", "0.75", True),
        ("6e-3", "0.006", True),
        (".5", "1/2", True),
        ("0.30000000000000004", "0.3", False),
        ("12345678901234567890", "12345678901234567891", False),
        ("42 apples", "42", False),
        ("forty-two", "42", False),
        ("", "42", False),
        ("1/0", "42", False),
        ("1,23", "123", False),
        ("9" * 101, "42", False),
        ("__import__('os').abort()", "42", False),
    ],
)
def test_numbers_are_compared_by_value_and_anything_else_is_no_number(completion, answer, equal):
    assert one(numeric_match, completion, answer) == equal


def test_the_last_number_counts_if_it_may_be_anywhere():
    found = {"17 + 25 = 42": 1, "42, not 17": 0, "x = -42": 0, "10-42": 1, "it costs $42.": 1, "none": 0, "4 2": 0}
    assert {text: one(numeric_match, text, "42", anywhere=True) for text in found} == found


def test_a_tolerance_is_relative_to_the_answer():
    assert [one(numeric_match, text, "200", tolerance=0.01) for text in ("198", "197.9", "202", "203")] == [1, 0, 1, 0]
    assert one(numeric_match, "0.001", "0", tolerance=0.01) == 0


def test_a_column_without_a_number_or_without_a_name_is_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match="got 'many' in column 'answer', expected a number.*extract_reference"):
        one(numeric_match, "1", "many")
    with pytest.raises(ValueError, match="got no column 'solution' with the records, whose columns are: answer"):
        one(numeric_match, "1", "1", column="solution")
    assert scores(numeric_match, ["1"], [None]) == [None]


def test_a_mistyped_argument_is_not_taken_for_a_column():
    with pytest.raises(ValueError, match="numeric_match: has no argument 'colum'"):
        one(numeric_match, "1", "1", colum="answer")
    with pytest.raises(TypeError, match="unexpected keyword argument 'patern'"):
        scores(format_match, ["1"], pattern="1", patern="2")


def test_the_whole_completion_has_the_format_unless_a_part_may():
    pattern = r"<think>.*</think>\s*<answer>.*</answer>"
    completions = ["<think>a\nb</think>\n<answer>4</answer>", "well, <think></think><answer></answer>", "4"]
    assert scores(format_match, completions, pattern=pattern) == [1, 0, 0]
    assert scores(format_match, completions, pattern=pattern, anywhere=True) == [1, 1, 0]


def test_json_is_json_alone():
    completions = ['{"a": [1, null]}', " 3 ", '```json\n{"a": 1}\n```', '{"a": NaN}', "{'a': 1}", "", "[" * 100_000]
    assert scores(json_match, completions) == [1, 1, 0, 0, 0, 0, 0]


def test_json_fits_a_schema_of_all_records_or_each_records_own(tmp_path):
    pytest.importorskip("jsonschema", reason="the extra json-schema is not installed")
    schema = {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer", "minimum": 0}}}
    completions = ['{"age": 3}', '{"age": -3}', '{"age": "3"}', "{}", "3", "three"]
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    for given in (schema, str(tmp_path / "schema.json")):
        assert scores(json_match, completions, schema=given) == [1, 0, 0, 0, 0, 0]
    own = [schema, json.dumps(schema), {"type": "string"}, {}, None, None]
    assert scores(json_match, completions, schema=own) == [1, 0, 0, 1, None, None]
    with pytest.raises(ValueError, match="not a JSON Schema: 'many' is not valid"):
        scores(json_match, ["1"], schema={"type": "many"})


def test_nothing_is_fetched_for_a_schema_that_refers_to_another():
    pytest.importorskip("jsonschema", reason="the extra json-schema is not installed")
    with pytest.raises(Exception, match="127.0.0.1"):
        scores(json_match, ["1"], schema={"$ref": "http://127.0.0.1:9/schema.json"})


def test_lengths_are_counted_in_words_or_characters():
    completions = ["", "one", "one two", "one two three"]
    assert scores(length_within, completions, least=1, most=2) == [0, 1, 1, 0]
    assert scores(length_within, completions, least=3, unit="characters") == [0, 1, 1, 1]
    with pytest.raises(ValueError, match="got unit 'tokens', expected words or characters"):
        scores(length_within, completions, unit="tokens")


def test_the_overlong_penalty_grows_within_the_cache_of_tokens():
    """Longest 20, cache 4: nothing up to 16 tokens, a quarter a token from there on, −1 at most."""
    ids = [[7] * length for length in (3, 16, 17, 20, 25)]
    found = overlong_penalty([""] * 5, [""] * 5, completion_ids=ids, longest=20, cache=4)
    assert found == [0, 0, -0.25, -1, -1]
    with pytest.raises(ValueError, match="expected 0 < cache <= longest tokens, got cache 0, longest 20"):
        overlong_penalty([], [], completion_ids=[], longest=20, cache=0)


def test_letters_are_counted_by_their_script():
    completions = ["Où est-il ?", "да yes", "42!", "日本語のカナ", ""]
    assert scores(script_share, completions) == [1, 3 / 5, 1, 0, 1]
    assert scores(script_share, completions, scripts=["cyrillic", "latin"]) == [1, 1, 1, 0, 1]
    assert scores(script_share, completions, scripts=["cjk"])[3] == 3 / 6
    with pytest.raises(ValueError, match=r"got scripts \['english'\], expected names such as latin, cyrillic or cjk"):
        scores(script_share, completions, scripts=["english"])


def test_repeated_ngrams_cost_their_share():
    """a b c a b c a: abc bca cab abc bca, of which two repeat."""
    completions = ["a b c A b c a", "a b c d", "a b", ""]
    assert scores(repetition_penalty, completions) == [pytest.approx(-2 / 5), 0, 0, 0]
    assert scores(repetition_penalty, completions, ngram=1, scale=2.0)[0] == pytest.approx(-2 * 4 / 7)


def test_what_an_extra_brings_is_named_where_it_is_missing(monkeypatch):
    for name in ("math_verify", "jsonschema"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ValueError, match=r"math_match needs the package math-verify, .* Install it: .*\[math\]"):
        one(math_match, "1", "1")
    with pytest.raises(ValueError, match=r"needs the package jsonschema, .* Install it: .*\[json-schema\]"):
        scores(json_match, ["1"], schema={"type": "null", "title": "not asked for before"})


@pytest.mark.parametrize(
    ("completion", "answer", "equal"),
    [
        (r"so it is $\boxed{\frac{3}{4}}$", "0.75", True),
        (r"$x = 2\sqrt{2}$", r"\sqrt{8}", True),
        (r"$\boxed{(1, 2]}$", "$(1,2]$", True),
        (r"$\boxed{5}$, not $\boxed{4}$", "6", False),
        ("no idea", "6", False),
    ],
)
def test_formulas_are_compared_by_value(completion, answer, equal):
    pytest.importorskip("math_verify", reason="the extra math is not installed")
    assert one(math_match, completion, answer) == equal
