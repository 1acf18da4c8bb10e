"""The world: its facts, questions and words, and that chance in it is a function of the seed."""

import os
import random
import subprocess
import sys
import unicodedata
from collections import Counter

import pytest

from components.world.randomness import Deck
from components.world.world import World

LANGUAGES = ("english", "chinese")
SIGNATURE = """
import hashlib, json
from components.world.world import World
for language in ("english", "chinese"):
    world = World(seed=3, language=language)
    everything = [world.names, sorted(world.facts.items()), [q.text for q in world.questions("held_out")],
                  world.corpus(60, seed=1), world.demonstrations(60, seed=1),
                  world.comparisons(30, noise=0.3, seed=1), world.prompts("train"),
                  world.few_shot_prompt(world.questions("held_out")[0].text, 3, seed=1)]
    print(hashlib.sha256(json.dumps(everything).encode()).hexdigest())
"""


@pytest.fixture(params=LANGUAGES, scope="module")
def world(request):
    return World(seed=1, language=request.param)


def records(world, seed):
    return {
        "corpus": world.corpus(60, seed=seed),
        "demonstrations": world.demonstrations(60, seed=seed),
        "comparisons": world.comparisons(60, noise=0.2, seed=seed),
    }


def test_the_default_world_has_108_facts_of_which_36_questions_are_held_out(world):
    assert len(set(world.names)) == 36
    assert len(world.facts) == 108
    assert len(world.questions("train")) == 72
    assert len(world.questions("held_out")) == 36
    assert set(world.questions("train")) | set(world.questions("held_out")) == set(world.questions("all"))
    assert len({question.text for question in world.questions("all")}) == 108


def test_a_question_knows_its_fact(world):
    for question in world.questions("all"):
        assert world.facts[question.name, question.relation] == question.answer
        assert world.find(question.text) == question


def test_held_out_questions_are_spread_over_relations_and_names(world):
    held_out = world.questions("held_out")
    assert Counter(question.relation for question in held_out) == {"color": 12, "home": 12, "food": 12}
    assert len({question.name for question in held_out}) == 36


def test_held_out_questions_stay_different_when_there_are_more_of_them_than_names():
    held_out = World(num_names=7, held_out_share=0.5).questions("held_out")  # 21 questions, round(10.5) = 10
    assert len(set(held_out)) == 10
    assert max(Counter(question.relation for question in held_out).values()) <= 4


def test_every_value_belongs_to_four_or_five_names(world):
    for relation, table in world.vocabulary.relations.items():
        used = Counter(value for (_, of), value in world.facts.items() if of == relation)
        assert used.keys() == set(table.values) and set(used.values()) == {4, 5}


def test_names_are_not_other_words(world):
    assert world.vocabulary.known_words.isdisjoint(world.vocabulary.possible_names)
    letters = {"english": 3, "chinese": 2}[world.language]
    assert {len(name) for name in world.names} == {letters}


def test_english_wording():
    world = World()
    name = world.names[0]
    of_name = [question for question in world.questions("all") if question.name == name]
    by_relation = {question.relation: question for question in of_name}
    assert by_relation["home"].text == f"where does the {name} live ?"
    assert by_relation["color"].text == f"what color is the {name} ?"
    assert by_relation["food"].text == f"what does the {name} eat ?"
    assert world.statement(by_relation["home"]) == f"the {name} lives in {world.facts[name, 'home']} ."
    assert world.statement(by_relation["color"], "red") == f"the {name} is red ."


def test_a_name_follows_a_space_in_questions_and_answers_so_that_tokenizers_see_one_word():
    world = World()
    for question in world.questions("all"):
        assert f" {question.name} " in question.text and f" {question.name} " in world.statement(question)


def test_chinese_wording_has_no_spaces():
    world = World(language="chinese")
    name = world.names[0]
    home = next(one for one in world.questions("all") if (one.name, one.relation) == (name, "home"))
    assert home.text == f"{name}住在哪里？"
    assert world.statement(home) == f"{name}住在{world.facts[name, 'home']}。"
    texts = [record["text"] for record in world.corpus(60)]
    texts += [message["content"] for record in world.demonstrations(60) for message in record["messages"]]
    assert not any(" " in text for text in texts)


def test_english_words_are_separated_by_one_space_and_lower_case():
    world = World()
    for record in world.corpus(100):
        assert record["text"].split(" ") == world.vocabulary.words(record["text"])


def test_every_text_consists_of_known_words_and_joining_them_restores_it(world):
    known = world.vocabulary.known_words | set(world.names)
    texts = [record["text"] for record in world.corpus(200)]
    texts += [message["content"] for record in world.demonstrations(200) for message in record["messages"]]
    for text in texts:
        words = world.vocabulary.words(text)
        assert known.issuperset(words)
        assert world.vocabulary.join(words) == text


def test_the_world_uses_few_words(world):
    assert len(world.vocabulary.known_words) + len(world.names) < 110


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_a_normalized_text_has_the_same_words(world, form):
    """SentencePiece's default normalizer turns wide punctuation into narrow."""
    for record in world.corpus(60):
        text = record["text"]
        assert world.vocabulary.words(unicodedata.normalize(form, text)) == world.vocabulary.words(text)


def test_a_deck_deals_hands_without_duplicates_and_every_item_equally_often():
    deck, rng, dealt = Deck(range(5), random.Random(0)), random.Random(1), Counter(dict.fromkeys(range(5), 0))
    for _ in range(200):
        hand = deck.take(rng.randint(1, 5))
        assert len(set(hand)) == len(hand)
        dealt.update(hand)
        assert max(dealt.values()) - min(dealt.values()) <= 1


def test_the_same_seed_gives_the_same_records(world):
    again = World(seed=1, language=world.language)
    assert records(world, 5) == records(again, 5)


def test_another_record_seed_gives_other_records_of_the_same_facts(world):
    one, other = records(world, 5), records(world, 6)
    assert all(one[kind] != other[kind] for kind in one)


def test_another_world_seed_gives_other_names_and_facts(world):
    other = World(seed=2, language=world.language)
    assert set(other.names) != set(world.names)
    assert other.facts != world.facts


def test_more_records_start_with_fewer_records(world):
    assert world.corpus(60)[:25] == world.corpus(25)
    assert world.demonstrations(60)[:25] == world.demonstrations(25)
    assert world.comparisons(60, noise=0.5)[:25] == world.comparisons(25, noise=0.5)


def test_records_are_the_same_in_processes_that_hash_strings_differently(pytestconfig):
    outputs = [
        subprocess.run(
            [sys.executable, "-c", SIGNATURE],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=pytestconfig.rootpath,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert len(outputs[0].split()) == 2
    assert outputs[0] == outputs[1]


def test_the_first_names_of_the_default_world_never_change():
    """Pinned: a change of the draws makes every recorded figure of the default world stale."""
    assert World().names[:3] == ("fux", "taf", "vif")


def test_size_follows_the_number_of_names():
    world = World(num_names=2, held_out_share=0.5)
    assert len(world.facts) == 6 and len(world.questions("held_out")) == 3
    assert all(record["text"] for record in world.corpus(100))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_names": 1}, "num_names: got 1, expected 2 to 2"),
        ({"num_names": 10_000}, "num_names: got 10000, expected 2 to"),
        ({"held_out_share": 0.6}, "held_out_share: got 0.6, expected a share from 0 to 0.5"),
        ({"language": "french"}, "language: got 'french', expected one of english, chinese"),
    ],
)
def test_an_impossible_world_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        World(**fields)


def test_an_unknown_question_is_refused_with_an_example(world):
    with pytest.raises(ValueError, match="got 'who are you \\?', expected one of the 108 questions"):
        world.find("who are you ?")
    with pytest.raises(ValueError, match="split: got 'test', expected train, held_out or all"):
        world.questions("test")


def test_prompts_are_the_questions_with_the_true_value_as_reference(world):
    for split in ("train", "held_out", "all"):
        expected = [{"prompt": one.text, "reference": one.answer} for one in world.questions(split)]
        assert world.prompts(split) == expected
