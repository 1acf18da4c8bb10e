"""A conversation: what the model sees, what is remembered, and its answers."""

import pickle

import pytest
import torch

from components.generation.generate import Sampling, generate
from components.serving import session as session_module
from components.serving.session import ChatSession, Turn
from components.tokenizer.tokenizer import Tokenizer
from tests.kit import tiny_models


@pytest.fixture
def shown(monkeypatch):
    """The prompts (ids) that models were given, in order."""
    prompts = []

    def spy(model, prompt, *arguments, **settings):
        prompts.append(list(prompt))
        return stream(model, prompt, *arguments, **settings)

    stream = session_module.stream
    monkeypatch.setattr(session_module, "stream", spy)
    return prompts


def header(tokenizer):
    """The id of the assistant's header, after which the model speaks."""
    return tokenizer.render_prompt([{"role": "user", "content": ""}])[-1]


def saying(tokenizer, text, **settings):
    """A model that answers everything with `text`."""
    return tiny_models.parrot(tokenizer, [header(tokenizer), *tokenizer.encode(text), tokenizer.end_id], **settings)


def say(session, text):
    return "".join(session.ask(text).chunks)


def messages(*contents):
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


def test_the_model_sees_the_whole_history_in_the_chat_template(small_tokenizer, shown):
    session = ChatSession(saying(small_tokenizer, " yes"), small_tokenizer, seed=0)
    assert say(session, "is it?") == " yes"
    say(session, "sure?")
    assert shown == [
        small_tokenizer.render_prompt(messages("is it?")),
        small_tokenizer.render_prompt(messages("is it?", " yes", "sure?")),
    ]


def test_the_system_text_comes_first_and_survives_a_reset(small_tokenizer, shown):
    session = ChatSession(saying(small_tokenizer, " yes"), small_tokenizer, seed=0)
    session.system = "be kind"
    say(session, "a")
    session.reset()
    say(session, "b")
    system = [{"role": "system", "content": "be kind"}]
    assert shown == [small_tokenizer.render_prompt([*system, *messages(text)]) for text in "ab"]


def test_reset_clears_the_turns(small_tokenizer, shown):
    session = ChatSession(saying(small_tokenizer, " yes"), small_tokenizer, seed=0)
    say(session, "a")
    session.reset()
    assert session.turns == []
    say(session, "b")
    assert shown[1] == small_tokenizer.render_prompt(messages("b"))


def test_a_character_of_several_tokens_comes_in_one_piece(small_tokenizer):
    assert len(small_tokenizer.encode("中")) == 3
    session = ChatSession(saying(small_tokenizer, "中"), small_tokenizer, seed=0)
    assert list(session.ask("?").chunks) == ["中"]
    assert session.turns == [Turn("?", "中")]


def test_a_character_cut_in_the_middle_ends_as_the_replacement_character(small_tokenizer):
    session = ChatSession(saying(small_tokenizer, "中"), small_tokenizer, seed=0, max_new_tokens=2)
    assert list(session.ask("?").chunks) == ["\N{REPLACEMENT CHARACTER}"]
    assert session.cut


def test_base_mode_continues_the_bare_text_and_remembers_nothing(small_tokenizer, shown):
    text, after = "where does", " anna live?"
    model = tiny_models.parrot(small_tokenizer, [*small_tokenizer.encode(text + after), small_tokenizer.eos_id])
    session = ChatSession(model, small_tokenizer, seed=0, base=True)
    assert say(session, text) == after
    assert shown == [[small_tokenizer.bos_id, *small_tokenizer.encode(text)]]
    assert session.turns == []


def test_base_mode_without_a_bos_token_starts_with_the_text_alone(small_tokenizer, shown):
    bare = pickle.loads(pickle.dumps(small_tokenizer))
    bare.bos_id = None
    session = ChatSession(tiny_models.parrot(bare), bare, seed=0, base=True)
    say(session, "where")
    assert shown == [bare.encode("where")]
    with pytest.raises(ValueError, match="no beginning-of-text token: write at least one character"):
        session.ask("")


def test_a_full_context_forgets_whole_turns_the_oldest_first(small_tokenizer, shown):
    context = 64
    session = ChatSession(saying(small_tokenizer, " maybe", context=context), small_tokenizer, seed=0)
    session.system = "be kind"
    system = [{"role": "system", "content": "be kind"}]
    said: list[str] = []
    forgotten_in_all = 0
    for number in range(12):
        question = f"where does bob live {number}?"
        answer = session.ask(question)
        answer_text = "".join(answer.chunks)
        # slow and obvious: the longest tail of whole turns that leaves a quarter of the context
        starts = range(0, len(said) + 1, 2)
        tails = [small_tokenizer.render_prompt([*system, *messages(*said[i:], question)]) for i in starts]
        fitting = [tail for tail in tails if len(tail) <= context - context // 4]
        assert shown[-1] == fitting[0]
        assert answer.forgotten == len(tails) - len(fitting)
        forgotten_in_all += answer.forgotten
        said = said[2 * answer.forgotten :] + [question, answer_text]
        assert [text for turn in session.turns for text in turn] == said
    assert forgotten_in_all > 5


def test_a_message_that_cannot_fit_is_refused_and_nothing_is_forgotten(small_tokenizer):
    session = ChatSession(saying(small_tokenizer, " yes", context=32), small_tokenizer, seed=0)
    say(session, "a")
    # 24 of 32 tokens are left after reserving room for an answer; bos, user, end, assistant take four
    long = "yes " * 40
    count = len(small_tokenizer.encode(long)) + 4
    with pytest.raises(ValueError, match=f"takes {count} tokens; the model's context of 32 leaves 24"):
        session.ask(long)
    assert session.turns == [Turn("a", " yes")]


def test_an_answer_ends_where_the_context_does(small_tokenizer):
    loop = small_tokenizer.encode("yes")[0]
    model = tiny_models.parrot(small_tokenizer, [header(small_tokenizer), loop], [loop, loop], context=20)
    session = ChatSession(model, small_tokenizer, seed=0)
    answer = say(session, "")  # its prompt: bos, user, end, assistant
    assert answer == small_tokenizer.decode([loop]) * 16
    assert session.cut


def test_an_answer_that_ends_by_itself_is_not_cut_even_at_the_last_token(small_tokenizer):
    words = small_tokenizer.encode(" yes")
    session = ChatSession(saying(small_tokenizer, " yes"), small_tokenizer, seed=0, max_new_tokens=len(words) + 1)
    say(session, "a")
    assert not session.cut
    session.max_new_tokens = len(words)
    say(session, "a")
    assert session.cut


def test_the_same_seed_gives_the_same_answers_and_another_seed_others(small_tokenizer):
    def conversation(seed):
        model = tiny_models.random_model(small_tokenizer.vocab_size)
        session = ChatSession(model, small_tokenizer, seed=seed, temperature=1.0, max_new_tokens=8)
        return [say(session, "a"), say(session, "b")]

    assert conversation(3) == conversation(3)
    assert conversation(3) != conversation(4)


def test_retry_replaces_the_answer_with_another_sample(small_tokenizer, shown):
    model = tiny_models.random_model(small_tokenizer.vocab_size)
    session = ChatSession(model, small_tokenizer, seed=0, temperature=1.0, max_new_tokens=8)
    say(session, "a")
    first = say(session, "b")
    second = "".join(session.retry().chunks)
    assert second != first
    assert shown[2] == shown[1]
    assert [turn.user for turn in session.turns] == ["a", "b"]
    assert session.turns[-1] == Turn("b", second)


def test_retry_has_nothing_to_do_before_the_first_message(small_tokenizer):
    for base in (False, True):
        session = ChatSession(saying(small_tokenizer, " yes"), small_tokenizer, seed=0, base=base)
        assert session.retried_text is None
        with pytest.raises(ValueError, match="no message to answer again"):
            session.retry()


def test_a_streamed_greedy_answer_is_what_generate_gives(small_tokenizer):
    model = tiny_models.random_model(small_tokenizer.vocab_size)
    session = ChatSession(model, small_tokenizer, seed=0, temperature=0, max_new_tokens=12)
    prompt = small_tokenizer.render_prompt(messages("where?"))
    samples = generate(
        model,
        [prompt],
        Sampling(12, 0),
        stop_ids=small_tokenizer.stop_ids,
        pad_id=small_tokenizer.pad_id,
        generator=torch.Generator(),
    )
    expected = small_tokenizer.decode(samples.responses()[0])
    assert expected
    assert say(session, "where?") == expected


def test_an_answer_stopped_early_is_remembered_as_far_as_it_went(small_tokenizer):
    session = ChatSession(saying(small_tokenizer, " yes, said the cat"), small_tokenizer, seed=0)
    chunks = session.ask("a").chunks
    spoken = next(chunks) + next(chunks)
    chunks.close()
    assert session.turns == [Turn("a", spoken)]
    assert " yes, said the cat".startswith(spoken)


def test_an_id_of_a_padded_vocabulary_has_no_text(small_tokenizer):
    beyond, word = small_tokenizer.vocab_size + 3, small_tokenizer.encode("yes")
    model = tiny_models.parrot(
        small_tokenizer,
        [header(small_tokenizer), beyond, *word, small_tokenizer.end_id],
        vocab_size=small_tokenizer.vocab_size + 8,
    )
    assert say(ChatSession(model, small_tokenizer, seed=0), "a") == "yes"


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.5}, {"max_new_tokens": 0}],
)
def test_an_invalid_setting_is_refused_by_name(small_tokenizer, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ChatSession(saying(small_tokenizer, " yes"), small_tokenizer, seed=0, **settings)


def test_a_tokenizer_larger_than_the_models_vocabulary_is_refused(small_tokenizer):
    with pytest.raises(ValueError, match="do not belong together"):
        ChatSession(tiny_models.random_model(small_tokenizer.vocab_size - 1), small_tokenizer, seed=0)


# answers show their thinking while they are the last; prompts begin to think, or leave that to the model
FORGETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "<|assistant|>{{ m.content.split('</think>')[-1] }}<|end|>"
    "{% else %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("begun", ["", "<think>"])
def test_a_model_that_thinks_chats_on_and_sees_what_its_template_keeps(small_tokenizer, monkeypatch, begun):
    template = FORGETS.replace("%}<|assistant|>{% endif", f"%}}<|assistant|>{begun}{{% endif")
    thinks = Tokenizer(small_tokenizer.codec, template)
    assert thinks.prefill == begun
    text = "<think>dog</think> yes"
    shown: list[list[int]] = []

    def thought(model, prompt, *arguments, **settings):
        shown.append(list(prompt))
        return iter(thinks.encode(text.removeprefix(begun)))

    monkeypatch.setattr(session_module, "stream", thought)
    session = ChatSession(tiny_models.random_model(thinks.vocab_size), thinks, seed=0)
    for number, question in enumerate("abc"):
        assert say(session, question) == text
        assert session.turns[-1] == Turn(question, text)
        kept = [said for letter in "abc"[:number] for said in (letter, " yes")]
        whole = "".join(f"<|{one['role']}|>{one['content']}<|end|>" for one in messages(*kept, question))
        assert thinks.decode(shown[-1], skip_special=False) == f"<bos>{whole}<|assistant|>{begun}"
    assert "".join(session.retry().chunks) == text and len(session.turns) == 3
    session.base = True
    assert say(session, "a") == text.removeprefix(begun)
