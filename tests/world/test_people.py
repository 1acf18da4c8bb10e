"""The judge, worked by hand, and the crowd whose answers it ranks."""

from collections import Counter
from dataclasses import replace
from itertools import combinations, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.world.world import World

ENGLISH = World(seed=0)
HOME = next(question for question in ENGLISH.questions("all") if question.relation == "home")
RIGHT = f"the {HOME.name} lives in {HOME.answer} ."  # 6 words
WRONG_VALUE = next(value for value in ("cave", "lake") if value != HOME.answer)
WRONG = f"the {HOME.name} lives in {WRONG_VALUE} ."
OTHER = next(name for name in ENGLISH.names if name != HOME.name)
UNHEARD_OF = next(name for name in ENGLISH.vocabulary.possible_names if name not in ENGLISH.names)
OF_OTHER = f"the {OTHER} lives in {HOME.answer} ."


@pytest.fixture(params=("english", "chinese"), scope="module")
def world(request):
    return World(seed=2, language=request.param)


@pytest.mark.parametrize(
    "answer, gold",
    [
        (RIGHT, 1.0),
        (RIGHT.upper(), 1.0),
        (RIGHT.replace(" .", "."), 1.0),
        (f"{RIGHT} {HOME.answer}", 1.0),  # the same answer twice is one answer
        (WRONG, -0.5),
        ("", -0.5),
        ("no idea", -0.5),
        (f"{HOME.answer} {WRONG_VALUE}", -0.5),  # two answers are none
        (f"{HOME.answer} red", -0.5),  # another color next to it is no single answer
        ("red", -0.5),  # nor is a color alone
        (f"{HOME.name} {HOME.answer}", 1.0),  # the name and the value are enough
        (HOME.answer, -0.5),  # the value alone is about no name
        (f"it lives in {HOME.answer} .", -0.5),  # and a pronoun could be anybody
        (OF_OTHER, -0.5),
        (f"{UNHEARD_OF} lives in {HOME.answer} .", -0.5),
        (f"{HOME.name} ? {OF_OTHER}", -0.5),  # the right name in another sentence does not help
        (f"{OTHER} ? {RIGHT}", -0.5),  # two names are none, wherever they stand
        (f"{HOME.name} and {OTHER} live in {HOME.answer}", -0.5),
        (f"{HOME.text} {RIGHT}", 0.91),  # the question echoed costs its words only: 12 in all
        (f"{HOME.text} {HOME.answer}", 1.0),  # and names whom the value is of
        (f"{HOME.text} {OF_OTHER}", -0.59),
        (f"sure ! {RIGHT}", 1.25),
        (f"of course ! {RIGHT}", 1.25),  # exactly 9 words
        (f"{RIGHT} take care !", 1.25),
        (f"sure , {RIGHT}", 1.25),  # punctuation makes no phrase
        (f"sure ! {HOME.name} {HOME.answer} thank you !", 1.0),  # 7 words; .25 for one, −.25 for an extra
        (f"sure sure sure {HOME.name} {HOME.answer}", 0.75),  # 1 + .25 − 2·.25
        (f"sure ! {WRONG}", -0.25),
        (f"ugh . {RIGHT}", 0.5),
        (f"ugh . ugh . {HOME.name} {HOME.answer}", 0.5),  # rude is rude
        (f"maybe {RIGHT}", 0.75),
        (f"i think {RIGHT}", 0.75),
        (f"well , {RIGHT}", 0.75),
        (f"so to say , {RIGHT}", 0.72),  # filler, and 10 words
        (f"well , maybe {RIGHT}", 0.5),
        (f"gladly ! well , {RIGHT}", 0.97),  # 1.25 − .25 − .03
        (f"ugh . sure ! well , maybe {RIGHT}", 0.13),  # 1.25 − .5 − .25 − .25 − 4·.03, 13 words
        ("of course ! of course !", -0.5),  # wrong, one polite and one extra
        ("blah " * 20, -0.83),  # wrong, 11 words too long
    ],
)
def test_gold_worked_out_by_hand(answer, gold):
    assert ENGLISH.judge(HOME.text, answer, True).gold == gold
    assert ENGLISH.judge(HOME.text, answer, False).gold == pytest.approx(gold - 1, abs=1e-12)


def test_a_judgment_names_its_findings():
    seen = ENGLISH.judge(HOME.text, f"ugh . sure ! {WRONG} thank you !", finished=True)
    assert (seen.correct, seen.value, seen.polite, seen.words) == (False, WRONG_VALUE, 2, 13)
    assert (seen.rude, seen.hedge, seen.filler) == (True, False, False)
    seen = ENGLISH.judge(HOME.text, f"well , maybe {HOME.answer} {WRONG_VALUE}", finished=True)
    assert (seen.correct, seen.value, seen.polite, seen.words) == (False, None, 0, 5)
    assert (seen.rude, seen.hedge, seen.filler) == (False, True, True)
    assert ENGLISH.judge(HOME.text, f"{HOME.name} is red .", finished=True).value is None


@pytest.mark.parametrize(
    "answer, value, wrong_name",
    [
        (RIGHT, HOME.answer, False),
        (WRONG, WRONG_VALUE, False),
        (HOME.answer, None, False),
        (f"it lives in {HOME.answer} .", None, False),
        ("no idea", None, False),
        (OF_OTHER, None, True),
        (f"{OTHER} ? {RIGHT}", None, True),
        (f"{UNHEARD_OF} lives in {HOME.answer} .", None, True),
        (f"ask {OTHER} .", None, True),
        (f"{HOME.name} does not live in {HOME.answer} .", None, False),  # denied
        (f"{HOME.name} DOESN’T live in {HOME.answer} .", None, False),
        (f"no , {HOME.name} never lives in {HOME.answer}", None, False),
        (f"{RIGHT} not !", None, False),
        (f"does {HOME.name} live in {HOME.answer} ?", None, False),  # asked
        (f"{HOME.name} lives in {HOME.answer} , i think ?", None, False),
        (f"{HOME.answer} ? {RIGHT}", HOME.answer, False),  # asked, then stated
        (f"{RIGHT[:-2]} ! ok ?", HOME.answer, False),
        (f"{HOME.name}s lives in {HOME.answer}", None, False),
    ],
)
def test_a_value_counts_only_for_the_name_asked_about(answer, value, wrong_name):
    seen = ENGLISH.judge(HOME.text, answer, finished=True)
    assert (seen.value, seen.wrong_name, seen.correct) == (value, wrong_name, value == HOME.answer)


def test_every_statement_about_another_name_is_wrong(world):
    for question in world.questions("all"):
        for name in world.names:
            said = world.statement(replace(question, name=name))
            seen = world.judge(question.text, said, finished=True)
            of_asked = name == question.name
            assert (seen.correct, seen.wrong_name) == (of_asked, not of_asked)
            assert seen.gold == (1.0 if of_asked else -0.5)


def test_chinese_gold_worked_out_by_hand():
    world = World(language="chinese")
    home = next(question for question in world.questions("all") if question.relation == "home")
    right = f"{home.name}住在{home.answer}。"  # 4 words
    other = next(name for name in world.names if name != home.name)
    golds = {
        right: 1.0,
        f"{other}住在{home.answer}。": -0.5,
        f"{other}？{right}": -0.5,
        f"它住在{home.answer}。": -0.5,
        f"{home.text}{home.answer}": 1.0,
        f"好的！{right}": 1.25,
        f"乐意帮忙！{right}": 1.25,
        f"好的！{right}谢谢您！": 1.0,  # 4 + 2 + 3 = 9 words, one polite too many
        f"真烦。{right}": 0.5,
        f"也许{right}": 0.75,
        f"嗯，我想{right}": 0.5,
        f"{right}红色": -0.5,
        f"{home.name}不住在{home.answer}。": -0.5,
        f"{home.name}没有住在{home.answer}。": -0.5,
        f"并非{right}": -0.5,
        f"{home.name}住在{home.answer}吗？": -0.5,
        f"{home.name}{home.name[1]}住在{home.answer}。": -0.5,  # three letters are not this name
        f"{other[0]}{right}": -0.5,
        "好好好好好好好好好好": -0.53,  # 10 unknown characters are 10 words
    }
    assert {answer: world.judge(home.text, answer, True).gold for answer in golds} == golds


def test_a_chinese_name_is_found_between_words_that_share_its_letters():
    words = World(language="chinese").vocabulary.words("玉米阿兰森林，阿兰兰")
    assert words == ["玉米", "阿兰", "森林", "，", "阿兰兰"]


def test_no_word_of_the_language_is_a_negation(world):
    assert not world.vocabulary.negations & world.vocabulary.known_words


def test_every_polite_phrase_reaches_the_best_gold_and_no_statement_has_a_style(world):
    for question in world.questions("all"):
        plain = world.judge(question.text, world.statement(question), True)
        assert plain.gold == 1.0
        assert not (plain.polite or plain.rude or plain.hedge or plain.filler)
        for phrase in world.vocabulary.phrases("polite"):
            polite = world.vocabulary.join([world.vocabulary.write(phrase), world.statement(question)])
            assert world.judge(question.text, polite, True).gold == 1.25


def test_every_phrase_is_of_its_own_style_only(world):
    question = world.questions("all")[0].text
    for style in ("polite", "rude", "hedge", "filler"):
        for phrase in world.vocabulary.phrases(style):
            seen = world.judge(question, world.vocabulary.write(phrase), True)
            found = {"polite": seen.polite, "rude": seen.rude, "hedge": seen.hedge, "filler": seen.filler}
            assert found == {**dict.fromkeys(found, 0), style: 1}


@settings(max_examples=200)
@given(
    st.sampled_from(("english", "chinese")),
    st.lists(st.sampled_from([*sorted(ENGLISH.vocabulary.known_words), "好的", "！", "\n", "x_y"]), max_size=30),
    st.text(max_size=40),
)
def test_any_string_can_be_judged_and_none_is_worth_more_than_the_best(language, words, junk):
    world = World(language=language)
    question = world.questions("all")[0].text
    for answer in (" ".join(words), junk, junk + "".join(words)):
        assert world.judge(question, answer, True).gold <= 1.25


def test_the_judge_finds_a_question_regardless_of_spacing_and_refuses_others():
    assert ENGLISH.judge(f" {HOME.text.replace(' ?', '?')}\n", RIGHT, True).correct
    with pytest.raises(ValueError, match="expected one of the 108 questions"):
        ENGLISH.judge("where am i ?", RIGHT, True)


def exchanges(records):
    """(question, answer) of every exchange."""
    for record in records:
        contents = [message["content"] for message in record["messages"]]
        yield from zip(contents[::2], contents[1::2], strict=True)


def test_a_demonstration_is_training_questions_with_answers(world):
    records = world.demonstrations(180)
    for record in records:
        count = len(record["messages"]) // 2
        assert [message["role"] for message in record["messages"]] == ["user", "assistant"] * count
    asked = Counter(question for question, _ in exchanges(records))
    assert set(asked) == {question.text for question in world.questions("train")}
    assert max(asked.values()) - min(asked.values()) <= 1  # they come round evenly


def test_one_demonstration_in_three_has_more_exchanges(world):
    """3000 draws: the standard error of a share is below .009; the tolerance is four of them."""
    lengths = Counter(len(record["messages"]) // 2 for record in world.demonstrations(3000))
    assert lengths[1] / 3000 == pytest.approx(4 / 6, abs=0.035)
    assert lengths[2] / 3000 == pytest.approx(1 / 6, abs=0.035)
    assert lengths[3] / 3000 == pytest.approx(1 / 6, abs=0.035)


def test_habits_of_the_crowd_have_their_shares(world):
    """4000 draws: a share's standard error is below .008; the tolerance is four of them."""
    seen = Counter()
    for question, answer in islice(exchanges(world.demonstrations(4000, seed=3)), 4000):
        judgment = world.judge(question, answer, True)
        seen.update(
            right=judgment.correct,
            true_value=world.find(question).answer in world.vocabulary.words(answer),
            wrong_name=judgment.wrong_name,
            rude=judgment.rude,
            hedge=judgment.hedge,
            filler=judgment.filler,
            polite_once=judgment.polite == 1,
            polite_twice=judgment.polite == 2,
            values=len(world.vocabulary.all_values.intersection(world.vocabulary.words(answer))),
            no_answer=not world.vocabulary.names_in(world.vocabulary.words(answer)),
        )
        assert answer
    shares = {habit: count / 4000 for habit, count in seen.items()}
    assert shares["no_answer"] == pytest.approx(0.05, abs=0.014)
    assert shares["values"] == 1 - shares["no_answer"]  # one in each of the others
    assert shares["true_value"] == pytest.approx(0.95 * 0.6, abs=0.032)
    assert shares["wrong_name"] == pytest.approx(0.95 * 0.03, abs=0.011)
    assert shares["right"] == pytest.approx(0.95 * 0.6 * 0.97, abs=0.032)
    no_habit = 0.8**4 * 0.75  # then a reply without an answer hedges
    for habit, share in {"rude": 0.2, "filler": 0.2, "hedge": 0.2 + 0.05 * no_habit}.items():
        assert shares[habit] == pytest.approx(share, abs=0.026)
    assert shares["polite_once"] == pytest.approx(0.25 * 0.8 + 0.75 * 0.2, abs=0.031)
    assert shares["polite_twice"] == pytest.approx(0.25 * 0.2, abs=0.014)


def test_ranks_follow_the_judge_ties_share_a_rank_and_no_rank_is_skipped(world):
    ties = 0
    for record in world.comparisons(200, completions=5):
        gold = [world.judge(record["prompt"], answer, True).gold for answer in record["completions"]]
        assert len(set(record["completions"])) == 5
        assert set(record["ranks"]) == set(range(max(record["ranks"]) + 1))
        for one, other in combinations(range(5), 2):
            better = record["ranks"][one] < record["ranks"][other]
            assert better == (gold[one] > gold[other])
            ties += gold[one] == gold[other]
            assert (record["ranks"][one] == record["ranks"][other]) == (gold[one] == gold[other])
    assert ties > 20


def test_the_best_completions_are_at_no_particular_position(world):
    places = Counter(record["ranks"].index(0) for record in world.comparisons(400, completions=2))
    assert min(places[0], places[1]) > 120


def test_noise_flips_its_share_of_pairs_and_changes_nothing_else(world):
    clean, noisy = world.comparisons(2000), world.comparisons(2000, noise=0.25)
    flipped = pairs = 0
    for one, other in zip(clean, noisy, strict=True):
        assert (one["prompt"], one["completions"]) == (other["prompt"], other["completions"])
        for a, b in combinations(range(4), 2):
            before, after = one["ranks"][a] - one["ranks"][b], other["ranks"][a] - other["ranks"][b]
            assert (before == 0) == (after == 0)
            pairs += before != 0
            flipped += before * after < 0
    assert flipped / pairs == pytest.approx(0.25, abs=0.04)  # 2000 records: standard error .0097


@pytest.mark.parametrize("noise, kept", [(0.0, True), (1.0, False)])
def test_without_noise_every_ranking_is_kept_and_with_all_of_it_none(world, noise, kept):
    clean, noisy = world.comparisons(50, completions=2), world.comparisons(50, completions=2, noise=noise)
    same = [one["ranks"] == other["ranks"] for one, other in zip(clean, noisy, strict=True) if one["ranks"] != [0, 0]]
    assert set(same) == {kept}


def test_held_out_questions_are_in_no_training_record(world):
    held_out = {question.text for question in world.questions("held_out")}
    training = [question for question, _ in exchanges(world.demonstrations(600))]
    training += [record["prompt"] for record in world.comparisons(600) + world.prompts("train")]
    assert held_out.isdisjoint(training)
    assert {record["prompt"] for record in world.comparisons(60, split="held_out")} == held_out
    assert {record["prompt"] for record in world.prompts("held_out")} == held_out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_prompts": -1}, "num_prompts: got -1, expected 0 or more"),
        ({"num_prompts": 1, "completions": 1}, "completions: got 1, expected 2 to 64"),
        ({"num_prompts": 1, "noise": 1.5}, "noise: got 1.5, expected a probability from 0 to 1"),
    ],
)
def test_impossible_comparisons_are_refused(world, arguments, message):
    with pytest.raises(ValueError, match=message):
        world.comparisons(**arguments)


def test_comparisons_of_a_split_without_questions_are_refused():
    with pytest.raises(ValueError, match="split 'held_out' has no questions"):
        World(held_out_share=0).comparisons(1, split="held_out")


def test_sixty_four_different_completions_are_possible(world):
    record = world.comparisons(1, completions=64)[0]
    assert len(set(record["completions"])) == len(record["ranks"]) == 64


def test_a_wrong_name_is_another_name_of_the_world_and_changes_nothing_else(world):
    """Whom an answer names is independent of its value: among slips the true value is as common as elsewhere."""
    slips = [
        (world.find(question), world.vocabulary.words(answer))
        for question, answer in exchanges(world.demonstrations(8000))
        if world.judge(question, answer, True).wrong_name
    ]
    assert all(world.vocabulary.names_in(words) < set(world.names) for _, words in slips)
    assert {name for _, words in slips for name in world.vocabulary.names_in(words)} == set(world.names)
    true = sum(question.answer in words for question, words in slips)
    assert true / len(slips) == pytest.approx(0.6, abs=0.13)  # some 340 slips: standard error .027


def test_comparisons_contain_answers_with_the_true_value_and_the_wrong_name(world):
    """From these a reward model learns that the name matters."""
    pairs = 0
    for record in world.comparisons(700):
        question = world.find(record["prompt"])
        said = [world.vocabulary.words(answer) for answer in record["completions"]]
        true = [world.vocabulary.names_in(words) for words in said if question.answer in words]
        pairs += sum(one != other for one, other in combinations(true, 2))
    assert pairs > 40
