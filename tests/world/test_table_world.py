"""The table world: a reward for every answer, demonstrations that prefer the bad ones, people who compare."""

import math
from collections import Counter

import pytest

from components.world.table_world import TableWorld

WORLD = TableWorld(seed=3)


def test_every_answer_of_up_to_two_letters_has_a_reward_and_they_are_21():
    assert list(WORLD.rewards) == ["A", "B", "C", "D"]
    assert WORLD.answers[:3] == ("", "a", "b") and WORLD.answers[-1] == "dd"
    assert len(WORLD.answers) == 1 + 4 + 16
    assert all(set(table) == set(WORLD.answers) for table in WORLD.rewards.values())


def test_rewards_are_standard_normal_in_hundredths():
    rewards = [r for seed in range(40) for table in TableWorld(seed=seed).rewards.values() for r in table.values()]
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
    assert abs(mean) < 0.06 and deviation == pytest.approx(1, abs=0.05)  # 3360 draws: 3.5 standard errors
    assert all(r == round(r, 2) for r in rewards)


def test_another_seed_gives_another_table_and_the_same_seed_the_same():
    assert TableWorld(seed=3) == WORLD and TableWorld(seed=3).rewards == WORLD.rewards
    assert TableWorld(seed=4).rewards != WORLD.rewards
    assert WORLD.rewards["A"] != WORLD.rewards["B"]


def test_the_reference_has_every_answer_and_likes_the_bad_ones():
    for seed in range(5):
        world = TableWorld(seed=seed)
        for question, shares in world.reference.items():
            rewards = world.rewards[question]
            assert sum(shares.values()) == pytest.approx(1)
            assert sorted(shares.values(), reverse=True)[0] / min(shares.values()) == pytest.approx(21)
            assert sum(shares[a] * rewards[a] for a in shares) < sum(rewards.values()) / 21 - 0.3
            best = max(rewards, key=rewards.get)
            assert 0.012 < shares[best] < 0.1  # uncommon, but within reach


def test_demonstrations_follow_the_reference_and_ask_evenly():
    records = WORLD.demonstrations(8000)
    asked = Counter(record["messages"][0]["content"] for record in records)
    assert set(asked.values()) == {2000}
    given = Counter(r["messages"][1]["content"] for r in records if r["messages"][0]["content"] == "B")
    for answer, share in WORLD.reference["B"].items():
        assert given[answer] / 2000 == pytest.approx(share, abs=4 * math.sqrt(share / 2000))


def test_in_a_document_every_question_is_followed_by_an_answer():
    for record in WORLD.corpus(50):
        text = record["text"]
        assert text[0] in "ABCD" and set(text) <= set("ABCDabcd")
        assert 2 <= sum(letter.isupper() for letter in text) <= 5


def test_a_pair_is_won_as_often_as_bradley_and_terry_say():
    world = TableWorld(seed=3, temperature=0.8)
    won, met, expected = 0, 0, 0.0
    for record in world.comparisons(3000, completions=3):
        rewards = world.rewards[record["prompt"]]
        (a, b, _), (rank_a, rank_b, _) = record["completions"], record["ranks"]
        expected += 1 / (1 + math.exp((rewards[b] - rewards[a]) / 0.8))
        won, met = won + (rank_a < rank_b), met + 1
    assert won / met == pytest.approx(expected / met, abs=0.025)  # three standard errors


def test_the_better_answer_wins_more_often_the_further_apart_they_are():
    won, met = Counter(), Counter()
    for record in WORLD.comparisons(3000, completions=2):
        first, second = (WORLD.rewards[record["prompt"]][one] for one in record["completions"])
        apart = int(min(abs(first - second), 2.99))
        met[apart] += 1
        won[apart] += (first > second) == (record["ranks"][0] < record["ranks"][1])
    shares = [won[apart] / met[apart] for apart in (0, 1, 2)]
    assert 0.5 < shares[0] < 0.65 < shares[1] < 0.87 < shares[2] < 0.99  # σ(0…1), σ(1…2), σ(2…)


def test_compared_answers_differ_and_noise_only_flips_rankings():
    plain, noisy = WORLD.comparisons(200, completions=4), WORLD.comparisons(200, completions=4, noise=1.0)
    for one, other in zip(plain, noisy):
        assert len(set(one["completions"])) == 4 and sorted(one["ranks"]) == [0, 1, 2, 3]
        assert one["completions"] == other["completions"]
        assert other["ranks"] == [3 - rank for rank in one["ranks"]]


def test_the_judge_reads_the_table():
    best = max(WORLD.rewards["C"], key=WORLD.rewards["C"].get)
    assert WORLD.judge("C", best, finished=True).correct
    assert WORLD.judge("C", best, finished=True).gold == max(WORLD.rewards["C"].values())
    assert not WORLD.judge("C", "", finished=True).correct
    assert WORLD.judge("C", "", finished=True).gold == WORLD.rewards["C"][""]
    for answer, finished in (("abc", True), ("x", True), (best, False)):
        found = WORLD.judge("C", answer, finished)
        assert (found.gold, found.correct) == (-3.0, False)


def test_the_reference_of_a_prompt_is_its_best_answer_and_none_is_held_out():
    assert [record["prompt"] for record in WORLD.prompts()] == ["A", "B", "C", "D"]
    for record in WORLD.prompts():
        assert WORLD.judge(record["prompt"], record["reference"], True).correct
    assert WORLD.prompts("held_out") == [] == WORLD.questions("held_out")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"letters": "abA"}, "letters"),
        ({"letters": "aa"}, "letters"),
        ({"num_prompts": 0}, "num_prompts"),
        ({"longest": 9}, "longest"),
        ({"temperature": 0}, "temperature"),
    ],
)
def test_a_wrong_field_is_named(fields, named):
    with pytest.raises(ValueError, match=named):
        TableWorld(**fields)


def test_what_is_not_in_the_world_is_an_error():
    with pytest.raises(ValueError, match="expected one of A, B, C, D"):
        WORLD.judge("E", "a", True)
    with pytest.raises(ValueError, match="holds none out"):
        WORLD.comparisons(1, split="held_out")
    with pytest.raises(ValueError, match="completions"):
        WORLD.comparisons(1, completions=22)
    with pytest.raises(ValueError, match="noise"):
        WORLD.comparisons(1, noise=1.5)
