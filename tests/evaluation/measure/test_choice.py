import pytest
import torch

from components.evaluation.measure import choice as module
from components.evaluation.measure.choice import by_name, choice, choice_credit, statements


@pytest.mark.parametrize(
    ("given", "truth", "credit"),
    [([1.0, 3.0, 2.0], 1, 1), ([1.0, 3.0, 2.0], 2, 0), ([3.0, 3.0, 1.0], 0, 0.5), ([2.0, 2.0, 2.0], 2, 1 / 3)],
)
def test_the_highest_score_is_the_choice_and_ties_are_broken_fairly(given, truth, credit):
    assert choice_credit(torch.tensor(given), truth) == pytest.approx(credit)


def test_every_value_is_offered_once_in_the_same_plain_words(world, tokenizer, chat_prompts):
    prompts = chat_prompts("held_out")
    offered, truths = statements(world, tokenizer, prompts)
    assert len(offered.texts) == 8 * len(prompts)
    for number, prompt in enumerate(prompts):
        question, texts = world.find(prompt["prompt"]), offered.texts[8 * number : 8 * number + 8]
        assert len(set(texts)) == 8 and offered.prompt_index[8 * number : 8 * number + 8] == [number] * 8
        assert texts[truths[number]] == world.statement(question)
        right = [world.judge(question.text, text, True).correct for text in texts]
        assert right == [place == truths[number] for place in range(8)]


def test_the_statements_are_read_as_answers_that_end(world, tokenizer, chat_prompts):
    offered, _ = statements(world, tokenizer, chat_prompts("held_out"))
    for ids, text in zip(offered.ids, offered.texts, strict=True):
        assert ids == [*tokenizer.encode(text), tokenizer.end_id]


@pytest.mark.parametrize(("knows", "right"), [(True, 1.0), (False, 0.0)])
def test_a_reward_model_that_knows_chooses_correctly(world, tokenizer, reward, chat_prompts, monkeypatch, knows, right):
    prompts = chat_prompts("train")

    def scores(model, asked, offered, **_):
        assert asked == [prompt["ids"] for prompt in prompts]
        correct = [
            world.judge(prompts[number]["prompt"], text, True).correct
            for number, text in zip(offered.prompt_index, offered.texts, strict=True)
        ]
        return torch.tensor(correct, dtype=torch.float32) * (1 if knows else -1)

    monkeypatch.setattr(module, "scores", scores)
    found = choice(world, reward, tokenizer, prompts)
    assert found.reward_model == right
    assert (found.chance, found.questions) == (1 / 8, len(prompts))
    low, high = found.reward_model_ci
    assert low <= right <= high and high - low > 0.05


def test_a_reward_model_that_guesses_is_right_by_chance(world, tokenizer, reward, chat_prompts, monkeypatch):
    monkeypatch.setattr(module, "scores", lambda model, asked, offered, **_: torch.zeros(len(offered.ids)))
    assert choice(world, reward, tokenizer, chat_prompts("train")).reward_model == 1 / 8


@pytest.mark.parametrize(
    "worth, accuracy",
    [(lambda found: found.gold, 1.0), (lambda found: found.wrong_name, 0.0), (lambda found: found.words, 0.5)],
)
def test_answers_that_differ_only_in_the_name_test_a_reward_model(
    world, tokenizer, reward, chat_prompts, monkeypatch, worth, accuracy
):
    prompts = chat_prompts("held_out")

    def scores(model, asked, offered, **_):
        assert len(set(zip(offered.prompt_index, offered.texts, strict=True))) == len(prompts) * len(world.names)
        pairs = zip(offered.prompt_index, offered.texts, strict=True)
        return torch.tensor([float(worth(world.judge(prompts[of]["prompt"], text, True))) for of, text in pairs])

    monkeypatch.setattr(module, "scores", scores)
    found = by_name(world, reward, tokenizer, prompts)
    assert found.name_accuracy == accuracy
    low, high = found.name_accuracy_ci
    assert low - 1e-9 <= accuracy <= high + 1e-9


def test_a_reward_model_that_sees_half_of_the_names_is_right_on_half_of_them(
    world, tokenizer, reward, chat_prompts, monkeypatch
):
    """Six names: five others, two of which differ from the one asked about in score; the other three tie, for half."""
    prompts = chat_prompts("train")[:4]

    def scores(model, asked, offered, **_):
        return torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0] * len(prompts))

    monkeypatch.setattr(module, "scores", scores)
    assert by_name(world, reward, tokenizer, prompts).name_accuracy == pytest.approx((2 + 3 / 2) / 5)
