"""Techniques nest, count what they spend, and use seeds of their own."""

import pytest

from components.prompting.few_shot import FewShot
from components.prompting.self_consistency import SelfConsistency
from components.prompting.technique import Query, Tokens, applied, next_seed, one_by_one
from tests.kit.scripted import Scripted, question

EXAMPLES = [{"role": "user", "content": "1 + 1 ?"}, {"role": "assistant", "content": "2"}]


def test_without_techniques_the_model_answers_alone():
    assert applied([], Scripted("red"))(question()).answers[0].text == "red"


@pytest.mark.parametrize("order", [1, -1])
def test_a_pair_asks_once_for_all_samples_after_the_examples(order):
    model = Scripted("red", "blue", "red .")
    made = applied([FewShot(EXAMPLES), SelfConsistency(samples=3)][::order], model)(question())
    assert made.answers[0].text == "red"
    (asked,) = model.queries
    assert asked.messages == [*EXAMPLES, *question().messages] and asked.n == 3
    assert made.tokens == Tokens(read=4 + 1 + 5, sampled=1 + 1 + 2) and made.tokens.total == 14


def test_answers_made_one_by_one_have_seeds_of_their_own_and_one_sum():
    model = Scripted("a", "b c", "d")
    made = one_by_one(model, question(n=3, seed=7))
    assert [one.text for one in made.answers] == ["a", "b c", "d"]
    assert made.tokens == Tokens(read=15, sampled=4)
    assert len({one.seed for one in model.queries} | {7}) == 4 and all(one.n == 1 for one in model.queries)
    again = Scripted("a", "b c", "d")
    one_by_one(again, question(n=3, seed=7))
    assert [one.seed for one in again.queries] == [one.seed for one in model.queries]


def test_further_seeds_depend_on_the_query_and_on_every_number():
    seeds = {next_seed(Query([], seed=seed), *numbers) for seed in (0, 1) for numbers in ((0,), (1,), (0, 0), (0, 1))}
    assert len(seeds) == 8 and all(0 <= seed < 2**53 for seed in seeds)


def test_words_are_added_to_the_last_message_alone():
    query = Query([*EXAMPLES, {"role": "user", "content": "2 + 2 ?"}])
    worded = query.worded(before="Sum.", after="Think.")
    assert worded.messages == [*EXAMPLES, {"role": "user", "content": "Sum.\n2 + 2 ?\nThink."}]
    assert query.messages[-1]["content"] == "2 + 2 ?"
