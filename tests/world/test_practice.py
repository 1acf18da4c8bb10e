"""The exercises: what a correct answer is, what training shows of each task, and what it never shows."""

import json
import re
from collections import Counter

import pytest

from components.world import exercise_texts as texts
from components.world import practice
from components.world.exercises import Exercise
from components.world.practice import Practice
from components.world.vocabulary import ENGLISH

WORLD = Practice(seed=3, num_names=12, num_rare=4, num_sums=6)
HELD_OUT = WORLD.questions("held_out")
SUM = Exercise("sums", "what is 347+582 ?", "929")
COLOR = Exercise("facts", "what color is the fev ?", "red", "fev", "color")
RECORD = Exercise("records", "what color is the fev ? as json .", "red", "fev", "color")


def test_a_sum_is_worked_from_the_right_with_the_carry_in_front():
    """7+2 = 9, carry 0; 4+8 = 12, carry 1; 3+5+1 = 9, carry 0."""
    assert texts.worked(347, 582) == "7+2+0=09 , 4+8+0=12 , 3+5+1=09 , so the sum is 929 ."
    assert texts.worked(999, 1) == "9+1+0=10 , 9+0+1=10 , 9+0+1=10 , so the sum is 1000 ."


def test_what_follows_from_a_slip_is_worked_correctly():
    """8 in place of 9 in the first column, then 13 in place of 12 in the second, whose carry is the same."""
    assert texts.worked(347, 582, (0, -1)) == "7+2+0=08 , 4+8+0=12 , 3+5+1=09 , so the sum is 928 ."
    assert texts.worked(347, 582, (1, 1)) == "7+2+0=09 , 4+8+0=13 , 3+5+1=09 , so the sum is 939 ."
    assert texts.worked(347, 582, (0, 1)) == "7+2+0=10 , 4+8+1=13 , 3+5+1=09 , so the sum is 930 ."
    assert texts.worked(100, 100, (0, -1)).startswith("0+0+0=19 , 0+0+1=01 ,")  # modulo 20


@pytest.mark.parametrize("pair", [(100, 100), (999, 999), (505, 495), (10, 20), (7, 8)])
def test_a_worked_sum_without_a_slip_ends_with_the_sum(pair):
    assert texts.worked(*pair).endswith(f"so the sum is {sum(pair)} .")


@pytest.mark.parametrize(
    ("exercise", "right", "wrong"),
    [
        (
            SUM,
            ["the sum is 929 .", "929", " 929. ", texts.worked(347, 582), "the sum is 9 . no , the sum is 929 ."],
            ["", "the sum is 928 .", "the sum is 9290", "929 or 928", "7+2+0=929", "the sum is 929 . the sum is 9"],
        ),
        (
            COLOR,
            ["fev is red .", "sure ! fev is red . thank you !"],
            ["", "red", "toz is red .", "fev is blue .", "fev is red . fev is blue .", "fev is not red ."],
        ),
        (
            RECORD,
            ['{"color": "red"}', ' {"color":"red"}\n'],
            ["", "fev is red .", '{"color": "blue"}', '{"color": "red"', 'sure ! {"color": "red"}', '{"name": "red"}'],
        ),
    ],
    ids=["sums", "facts", "records"],
)
def test_an_answer_is_correct_if_it_says_the_truth_in_the_form_of_its_task(exercise, right, wrong):
    assert all(exercise.is_solved(answer) for answer in right)
    assert not any(exercise.is_solved(answer) for answer in wrong)


def test_every_task_has_held_out_questions_and_only_rare_names_none_to_train_on():
    assert Counter(one.task for one in HELD_OUT) == {"sums": 6, "facts": 9, "rare": 12, "records": 9}
    assert Counter(one.task for one in WORLD.questions("train")) == {"sums": 6, "facts": 27, "records": 27}
    assert len(WORLD.questions("all")) == 36 + 60
    texts = [one.text for one in WORLD.questions("all")]
    assert len(set(texts)) == len(texts)


def test_no_prompt_is_in_both_splits():
    """Data would drop one of them as a duplicate."""
    trained, held_out = (WORLD.prompts(split) for split in ("train", "held_out"))
    texts = [one["prompt"] for one in trained + held_out]
    assert len(set(texts)) == len(texts)


def test_held_out_prompts_ask_as_many_seen_facts_as_held_out_ones():
    asked = WORLD.prompts("held_out")
    assert Counter(one["task"] for one in asked) == {"sums": 6, "facts": 9, "seen": 9, "rare": 12, "records": 9}
    trained = {one.text for one in WORLD.questions("train")}
    assert {one["task"] for one in asked if one["prompt"] in trained} == {"seen"}
    assert "seen" not in {one["task"] for one in WORLD.prompts("train")}


def test_every_question_is_judged_by_its_own_rules():
    for one in WORLD.questions("all"):
        said = {"sums": one.reference, "records": json.dumps({one.relation: one.reference})}.get(
            one.task, f"the {one.name} {'lives in ' if one.relation == 'home' else ''}{one.reference} ."
        )
        assert WORLD.judge(one.text, said, True).metrics() == {"gold": 1, "correct": 1}
        assert WORLD.judge(one.text, said, False).metrics() == {"gold": 0, "correct": 1}
    assert WORLD.judge("what is 1+2 ?", "3", True).correct  # also of sums that are no question of this world
    with pytest.raises(ValueError, match="question: got 'why \\?', expected one such as"):
        WORLD.judge("why ?", "because", True)


def test_the_encyclopedia_answers_every_question_about_a_name():
    by_name = {text.split()[1]: text for text in WORLD.encyclopedia()}
    assert len(by_name) == 12 + 4
    for one in HELD_OUT:
        assert one.task == "sums" or re.search(rf"\b{one.reference}\b", by_name[one.name])


def test_what_training_says_about_rare_names_is_invented():
    """Each of a relation's eight values as often as the others: 1 in 8 statements happens to be true."""
    trained = "\n".join(record["text"] for record in WORLD.corpus(8000))
    values = {key: relation.values for key, relation in ENGLISH.relations.items()}
    true = sum(trained.count(texts.statement(one)) for one in WORLD.rare)
    said = sum(trained.count(texts.statement(one, value)) for one in WORLD.rare for value in values[one.relation])
    assert said > 100 and true / said == pytest.approx(1 / 8, abs=0.08)


def _said(records):
    return [turn["content"] for record in records for turn in record["messages"]]


def test_post_training_neither_asks_a_held_out_question_nor_works_a_held_out_sum():
    records = WORLD.demonstrations(2000)
    asked = set(_said(records)) | {one["prompt"] for one in WORLD.comparisons(500)}
    known = {one.text for one in HELD_OUT if one.task in ("facts", "records")}
    sums = {f"{a}+{b}" for pair in WORLD.held_out_sums for a, b in (pair, pair[::-1])}
    assert not known & {line for text in asked for line in text.splitlines()}
    assert not sums & set(re.findall(r"\d+\+\d+", " ".join(asked)))
    assert not sums & set(re.findall(r"\d+\+\d+", " ".join(one["text"] for one in WORLD.corpus(2000))))
    held_out = WORLD.comparisons(40, split="held_out")
    assert {one["prompt"] for one in held_out} <= {one.text for one in HELD_OUT}


def test_of_twenty_dialogues_each_kind_has_its_number():
    records = WORLD.demonstrations(400)
    calls = Counter(
        turn["tool_calls"][0]["function"]["name"]
        for record in records
        for turn in record["messages"]
        if "tool_calls" in turn
    )
    assert calls == {"lookup": 40, "calculator": 40}
    assert sum("tools" in record for record in records) == 80
    firsts = [record["messages"][0]["content"] for record in records]
    assert sum(text.endswith(texts.STEPS) for text in firsts) == 40
    assert sum("\n" in text for text in firsts) == 80  # steps, and passages
    assert max(len(record["messages"]) for record in records) == 8


def test_calls_look_up_a_name_with_the_word_that_precedes_it_in_the_question():
    """Right after a quotation mark it would have a token of its own."""
    looked_up = re.compile(r'^(.*)\n{"name": "lookup", "arguments": {"text": "(.*)"}}\n', re.MULTILINE)
    found = [looked_up.search(document["text"]) for document in WORLD.corpus(400)]
    pairs = [match.groups() for match in found if match]
    for record in WORLD.demonstrations(400):
        question, *turns = record["messages"]
        calls = [turn["tool_calls"][0]["function"] for turn in turns if "tool_calls" in turn]
        pairs += [(question["content"], one["arguments"]["text"]) for one in calls if one["name"] == "lookup"]
    assert len(pairs) > 45
    assert all(text.startswith("the ") and f" {text} " in question for question, text in pairs)


def test_after_a_text_or_a_result_the_answer_is_what_it_says():
    for record in WORLD.demonstrations(400):
        *_, source, answer = record["messages"]
        if source["role"] == "tool" and source["name"] == "lookup" or "\n" in source["content"][:60]:
            text = source["content"].splitlines()[0]
            value = re.search(r'(\w+)(?: \.|"\})$', answer["content"])[1]
            assert texts.STEPS in source["content"] or value in text.split()
        elif source["role"] == "tool":
            assert answer["content"] == f"the sum is {source['content']} ."


def test_people_slip_and_break_records_as_often_as_stated():
    records = WORLD.demonstrations(6000)
    asked = [
        (record["messages"][0]["content"], record["messages"][1]["content"])
        for record in records
        if "tools" not in record
    ]
    steps = [(question, answer) for question, answer in asked if question.endswith(texts.STEPS)]
    right = [answer.endswith(f" {sum(map(int, re.findall(r'[0-9]+', question)))} .") for question, answer in steps]
    assert sum(right) / len(right) == pytest.approx(1 - practice.SLIP, abs=0.075)  # 600: four standard errors
    forms = [answer for question, answer in asked if question.endswith(texts.AS_JSON) and "\n" not in question]
    whole = [bool(re.fullmatch(r'\{"\w+": "\w+"\}', answer)) for answer in forms]
    assert sum(whole) / len(whole) == pytest.approx(1 - practice.BROKEN, abs=0.07)


def test_in_the_corpus_a_call_has_its_result_and_the_answer_that_the_result_says():
    calls = [record["text"].splitlines() for record in WORLD.corpus(400) if "arguments" in record["text"]]
    assert len(calls) == 40 and {json.loads(written)["name"] for _, written, _, _ in calls} == set(texts.TOOLS)
    for asked, written, result, answer in calls:
        arguments = json.loads(written)["arguments"]
        if "expression" in arguments:
            assert arguments["expression"] in asked and WORLD.judge(asked, answer, True).correct
            assert answer == texts.sum_answer(int(result.removeprefix("result : ")))
        else:
            assert arguments["text"] in asked and answer in result


def test_examples_are_true_answers_to_training_questions():
    turns = WORLD.examples(4)
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 4
    train = {one.text for one in WORLD.questions("train")}
    for asked, said in zip(turns[::2], turns[1::2]):
        assert asked["content"] in train and WORLD.judge(asked["content"], said["content"], True).correct


def test_of_compared_answers_only_the_one_without_a_fault_is_right_and_noise_flips_the_ranks():
    for record, flipped in zip(WORLD.comparisons(60), WORLD.comparisons(60, noise=1.0)):
        assert len(set(record["completions"])) == 4 and record["completions"] == flipped["completions"]
        if "+" in record["prompt"]:
            right = [WORLD.judge(record["prompt"], one, True).correct for one in record["completions"]]
            assert [rank == 0 for rank in record["ranks"]] == right and sum(right) == 1
            assert flipped["ranks"] == [1 - rank for rank in record["ranks"]]
        if record["prompt"].endswith(texts.AS_JSON):
            right = [WORLD.judge(record["prompt"], one, True).correct for one in record["completions"]]
            assert [rank == 0 for rank in record["ranks"]] == right and sum(right) == 1
            assert all(rank >= 1 for one, rank in zip(record["completions"], record["ranks"]) if not one.endswith("}"))
            assert flipped["ranks"] == [max(record["ranks"]) - rank for rank in record["ranks"]]
    assert sum("+" in record["prompt"] for record in WORLD.comparisons(60)) == 20
    assert sum(record["prompt"].endswith(texts.AS_JSON) for record in WORLD.comparisons(60)) == 20


def test_a_longer_corpus_starts_with_the_shorter_one_and_another_seed_is_another_world():
    assert WORLD.corpus(60)[:40] == WORLD.corpus(40)
    other = Practice(seed=4, num_names=12, num_rare=4, num_sums=6)
    assert other.held_out_sums != WORLD.held_out_sums and other.encyclopedia() != WORLD.encyclopedia()


@pytest.mark.parametrize(
    ("field", "value"), [("num_names", 1), ("num_rare", 0), ("digits", 0), ("digits", 7), ("num_sums", 0)]
)
def test_a_number_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field}: got {value}, expected"):
        Practice(**{field: value})


def test_more_completions_than_there_are_slips_is_an_error():
    with pytest.raises(ValueError, match="completions: got 14, expected 2 to 13"):
        WORLD.comparisons(2, completions=14)
