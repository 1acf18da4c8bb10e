"""Foreign tokenizers used by the rest of the project: prompts with answers, probes, artifacts."""

import pytest

from components.artifacts import store
from components.data.loading.fitting import fit_answers
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
