import pytest

from components.evaluation.measure import quality as evaluation
from components.evaluation.measure.policy import Responses, SamplePlan
from components.world.world import World


def said(texts, of, finished=None):
    return Responses([[1]] * len(texts), texts, finished or [True] * len(texts), of)


@pytest.fixture
def two(world):
    """Two questions on homes with different answers, and a value that is wrong for both."""
    first, second = [question for question in world.questions("all") if question.relation == "home"][:2]
    assert first.answer != second.answer
    wrong = next(value for value in ("cave", "lake", "tower") if value not in (first.answer, second.answer))
    return first, second, wrong


def test_quality_is_the_mean_of_judgments_worked_out_by_hand(world, two):
    first, second, wrong = two
    texts = [
        f"sure ! {first.name} lives in {first.answer} .",  # 1 + 0.25 = 1.25
        f"{first.name} lives in {first.answer} .",  # 1
        f"ugh . {second.name} lives in {wrong} .",  # −0.5 − 0.5 = −1
        f"gladly ! maybe {first.name} lives in {second.answer} .",  # −0.5 + 0.25 − 0.25 = −0.5; unfinished −1
    ]
    responses = said(texts, [0, 0, 1, 1], [True, True, True, False])
    found = evaluation.quality(evaluation.judgments(world, [first.text, second.text], responses), responses)
    assert found.gold == pytest.approx((1.25 + 1 - 1 - 1.5) / 4)
    # question means 1.125 and −1.25: deviation 1.67938, error 1.1875, t(1) = 12.706
    assert found.gold_ci == pytest.approx([-0.0625 - 15.0884, -0.0625 + 15.0884], abs=1e-3)
    shares = ("correct", "polite", "correct_polite", "rude", "hedge", "filler")
    assert [getattr(found, key) for key in shares] == [0.5, 0.5, 0.25, 0.25, 0.25, 0]
    assert found.wrong_name == 0.25  # the last one is about the first name
    assert found.words == (7 + 5 + 7 + 8) / 4


def test_an_answer_is_judged_by_its_own_question(world, two):
    first, second, _ = two
    responses = said([f"{second.name} lives in {second.answer} ."] * 2, [0, 1])
    found = evaluation.judgments(world, [first.text, second.text], responses)
    assert [one.correct for one in found] == [False, True]


def test_the_crowd_is_known_by_its_demonstrations():
    world = World()
    answers = [
        (asked["content"], said["content"])
        for record in world.demonstrations(1000)
        for asked, said in zip(record["messages"][::2], record["messages"][1::2], strict=True)
    ]
    found = evaluation.crowd(world)
    assert found.answers == len(answers)
    assert found.correct == sum(world.statement(world.find(a)) in b for a, b in answers) / len(answers)
    others = [{*b.split()} & {*world.names} - {world.find(a).name} for a, b in answers]
    assert found.wrong_name == sum(map(bool, others)) / len(answers)


def test_a_continuation_with_questions_is_not_an_answer(world, two):
    first, second, _ = two
    responses = said([second.text, f"{first.name} lives in {first.answer} .", "well , you know", second.text], [0] * 4)
    assert evaluation.bare_behavior(world, responses) == (0.25, 0.5)


def test_few_shot_prompts_show_solved_questions_and_count_correct_continuations(
    world, new_model, tokenizer, two, monkeypatch
):
    first, second, wrong = two
    asked = []

    def answers(model, tokenizer, prompts, plan):
        asked.extend(tokenizer.decode(prompt) for prompt in prompts)
        right, other = f" {first.name} lives in {first.answer} .", f" {second.name} lives in {wrong} ."
        return said([right, f"{right} q : {second.text} a : {wrong}", right, other], [0, 0, 1, 1])

    monkeypatch.setattr(evaluation, "respond", answers)
    plan = SamplePlan(2, 8, 0)
    found = evaluation.few_shot(world, new_model(0), tokenizer, [first.text, second.text], plan)
    assert found == (0.5, 4)
    assert [text.count("a :") for text in asked] == [5, 5]
    assert asked[0].endswith("a :") and first.text in asked[0]


@pytest.mark.parametrize("room", [0, 20, 40])
def test_few_shot_shows_as_many_examples_as_the_context_holds(world, new_model, tokenizer, two, room):
    model, texts = new_model(0), [two[0].text]
    found = evaluation.few_shot(world, model, tokenizer, texts, SamplePlan(1, 128 - room, 0))
    lengths = {k: 1 + len(tokenizer.encode(world.few_shot_prompt(texts[0], k, 0))) for k in range(5)}
    fitting = [shots for shots, length in lengths.items() if length <= room]
    assert found.shots == (max(fitting) if fitting else None)
    assert (found.few_shot is None) == (not fitting)
