"""Foreign tokenizers used by the rest of the project: prompts with answers, probes, artifacts."""

import pytest

from components.artifacts import store
from components.data.loading.fitting import fit_answers, fit_prompt
from components.evaluation.reward_exam.probes import probes
from components.tokenizer.tokenizer import Tokenizer
from tests.kit import foreign_tokenizers, tiny_models

QUESTION = [{"role": "user", "content": "Where does dax live ?"}]


@pytest.fixture(params=["qwen2", "llama3", "llama2", "zephyr", "gpt2-vicuna"])
def tokenizer(request, published) -> Tokenizer:
    return Tokenizer.load(published[request.param])


def test_a_prompt_and_its_answer_are_the_beginning_of_the_chat(tokenizer):
    fitted = fit_answers(tokenizer, QUESTION, ["In cave .", ""], context=200)
    for answer, text in zip(fitted.answers, ["In cave .", ""], strict=True):
        chat = tokenizer.render([*QUESTION, {"role": "assistant", "content": text}]).ids
        assert chat[: len(fitted.prompt) + len(answer)] == fitted.prompt + answer
    assert fitted.finished == [True, True]


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Dax is a cat ."}]], ids=["", "system"])
def test_a_question_that_is_too_long_loses_its_beginning_and_the_template_nothing(tokenizer, system):
    asked = [*system, {"role": "user", "content": "Where does dax live ? " * 60}]
    whole, other = (tokenizer.render_prompt([*system, {"role": "user", "content": text}]) for text in ("Where", "?"))
    opening = next(i for i, (one, two) in enumerate(zip(whole, other)) if one != two)
    cut, was_cut = fit_prompt(tokenizer, asked, 150)
    full = tokenizer.render_prompt(asked)
    assert was_cut and len(cut) == 150 and opening > 0
    # a space that the template ends with may be one token with the question's first word
    assert cut in [full[:head] + full[head - 150 :] for head in (opening, opening + 1)]


def test_the_best_answer_is_no_probe_of_itself(tokenizer):
    prompt = tokenizer.render_prompt(QUESTION)
    made = probes(prompt, tokenizer.answer("In cave ."), ["No ."], tokenizer, context=200)
    assert "empty" in made and "empty" not in probes(prompt, tokenizer.answer(""), ["No ."], tokenizer, context=200)
    assert all(ids[-1] == tokenizer.end_id for ids in made.values())
    assert not set(made["special"][:-1]) & set(tokenizer.codec.special_ids.values())


def test_a_models_folder_carries_it_for_us_and_for_transformers(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = tiny_models.random_model(tokenizer.vocab_size)
    store.write_artifact(tmp_path / "export", card={}, tokenizer=tokenizer, model=model)
    again = store.load_tokenizer(tmp_path / "export")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    assert (again.fingerprint, again.stop_ids) == (tokenizer.fingerprint, tokenizer.stop_ids)
    for text in foreign_tokenizers.texts(100):
        assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == tokenizer.encode(text)
    chat = [*QUESTION, {"role": "assistant", "content": "In cave ."}]
    assert theirs.apply_chat_template(chat, return_dict=False) == tokenizer.render(chat).ids
