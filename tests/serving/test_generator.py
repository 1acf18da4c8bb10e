"""Techniques over a served model: the engine's answers, whole, from any thread."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from components.prompting.constrained import Constrained
from components.prompting.self_consistency import SelfConsistency
from components.prompting.technique import Tokens, applied
from components.serving.api_errors import ApiError
from components.serving.calls import format_of
from components.serving.engine import Engine
from components.serving.generator import EngineGenerator, answer_of
from components.serving.rows import Options
from components.serving.served import Served
from tests.kit import tiny_models, tool_templates
from tests.kit.scripted import question

HELLO = "where does anna live?"
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


@pytest.fixture
def generator(small_tokenizer):
    """Makes a generator of a model, as many as are wanted."""
    engines = []

    def make(model, tokenizer=small_tokenizer, **options):
        engines.append(Engine({"m": model}))
        writer = ThreadPoolExecutor(1)
        return EngineGenerator(
            engines[-1], Served("m", model, tokenizer), Options(**{"max_tokens": 5} | options), writer
        )

    yield make
    for engine in engines:
        engine.close()


def parrot(tokenizer, said):
    header = tokenizer.render_prompt([{"role": "user", "content": ""}])[-1]
    return tiny_models.parrot(tokenizer, [header, *tokenizer.encode(said), tokenizer.end_id])


def test_the_answer_is_whole_and_its_tokens_are_counted(generator, small_tokenizer):
    answer = generator(parrot(small_tokenizer, " paris"))
    prompt = small_tokenizer.render_prompt(question(HELLO).messages)
    made = answer(question(HELLO, temperature=0.0, n=2))
    assert [(one.text, one.finished) for one in made.answers] == [(" paris", True)] * 2
    assert made.tokens == Tokens(len(prompt), 2 * (len(small_tokenizer.encode(" paris")) + 1))


def test_samples_differ_and_are_those_of_their_query_whoever_else_asks(generator, small_tokenizer):
    answer = generator(tiny_models.random_model(small_tokenizer.vocab_size))
    alone = answer(question(HELLO, n=3, seed=2))
    assert len({one.text for one in alone.answers}) == 3
    with ThreadPoolExecutor(3) as threads:
        crowd = list(threads.map(lambda seed: answer(question(HELLO, n=3, seed=seed)), range(3)))
    assert crowd[2].answers == alone.answers and crowd[1].answers != alone.answers


def test_what_does_not_fit_is_cut_and_a_prompt_that_fills_the_context_refused(generator, small_tokenizer):
    room = len(small_tokenizer.render_prompt(question(HELLO).messages)) + 2
    model = tiny_models.random_model(small_tokenizer.vocab_size, max_position_embeddings=room)
    answer = generator(model, bias={small_tokenizer.end_id: -100.0, small_tokenizer.eos_id: -100.0})
    made = answer(question(HELLO))
    assert made.tokens.sampled == 2 and not made.answers[0].finished
    with pytest.raises(ApiError, match=f"maximum context length is {room} tokens"):
        answer(question(HELLO * 2))


def test_votes_and_constraints_on_a_random_model(generator, small_tokenizer):
    pytest.importorskip("llguidance")
    techniques = [SelfConsistency(5), Constrained(choices=["paris", "rome"])]
    answer = applied(techniques, generator(tiny_models.random_model(small_tokenizer.vocab_size)))
    (elected,), tokens = answer(question(HELLO))
    counts = dict(part.split(" ×") for part in elected.trace[0].text.split(", "))
    assert elected.text in counts and sum(map(int, counts.values())) == 5 and set(counts) <= {"paris", "rome"}
    assert tokens.read == len(small_tokenizer.render_prompt(question(HELLO).messages))


def test_calls_are_read_as_the_template_writes_them(generator, small_tokenizer):
    tokenizer = tiny_models.with_template(small_tokenizer, tool_templates.QWEN25)
    form = format_of(tokenizer, TOOLS)
    said = f'Let me see.{form.opening}{{"name": "add", "arguments": {{"a": 1}}}}{form.closing}'
    made = answer_of(said, True, form)
    assert made.text == "Let me see." and [(c.name, c.arguments) for c in made.calls] == [("add", '{"a": 1}')]
    assert answer_of("1 + 1 = 2", True, form).calls == ()


def test_a_canceled_generator_ends_what_runs_and_begins_nothing(generator, small_tokenizer):
    answer = generator(
        tiny_models.random_model(small_tokenizer.vocab_size, max_position_embeddings=4096),
        max_tokens=4000,
        bias={small_tokenizer.end_id: -100.0, small_tokenizer.eos_id: -100.0},
    )
    errors = []

    def ask():
        try:
            answer(question(HELLO))
        except ApiError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not answer.engine.lanes["m"].running:
        thread.join(0.01)
    answer.cancel()
    thread.join(60)
    ask()
    assert len(errors) == 2 and not thread.is_alive()
    answer.engine.call(lambda: None).result(60)
    answer.engine.call(lambda: None).result(60)
    assert answer.engine.lanes["m"].running == 0
