"""The engine: what a request gets does not depend on who else is served, and nobody's leaving costs the others."""

import threading
from queue import Empty, Queue

import pytest
import torch

from components.generation.generate import Sampling, generate
from components.serving.batch import Batch
from components.serving.engine import Busy, Engine
from components.serving.rows import Failed, Options, Piece, Request
from tests.kit import tiny_models

PROMPTS = [[5, 9, 31], [7] * 12, [40, 41], [8, 3, 100, 200, 6, 5, 44]]


class Client:
    """Submits a request and collects what the engine delivers."""

    def __init__(self, engine, tokenizer, prompt, **options):
        self.pieces = Queue()
        own = {name: options.pop(name) for name in ("seconds", "constrain") if name in options}
        options = {"max_tokens": 8, "temperature": 0.0, "top": 0} | options
        self.request = Request(prompt, Options(**options), tokenizer, self.pieces.put, begins=False, **own)
        self.engine, self.samples = engine, options.get("n", 1)
        engine.submit("m", self.request)

    def events(self):
        """Everything delivered, to the end."""
        left = self.samples
        while left:
            event = self.pieces.get(timeout=60)
            yield event
            if isinstance(event, Failed):
                return
            left -= event.finish is not None

    def answers(self):
        """(text, tokens, finish) by sample."""
        made = [["", [], None] for _ in range(self.samples)]
        for event in self.events():
            assert isinstance(event, Piece), event
            made[event.sample][0] += event.text
            made[event.sample][1] += [one.token for one in event.scored]
            made[event.sample][2] = event.finish
        return made


@pytest.fixture(scope="module")
def model(small_tokenizer):
    return tiny_models.random_model(small_tokenizer.vocab_size)


@pytest.fixture
def engine(model):
    engine = Engine({"m": model}, most_rows=64, most_waiting=80)
    yield engine
    engine.close()


def greedy(model, tokenizer, prompt, count=8):
    """The tokens that `generate` takes, without the stop token."""
    made = generate(
        model,
        [prompt],
        Sampling(count, 0.0),
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        generator=torch.Generator(),
    ).responses()[0]
    return [token for token in made if token not in tokenizer.stop_ids]


def hold(engine):
    """Keeps the engine's thread busy; set the event to let it go on, so that all requests until then start at once."""
    released = threading.Event()
    engine.call(released.wait)
    return released


def memory_for(model, rows, tokens):
    """Bytes for the caches of rows that reach so many tokens; a quarter is for prefixes."""
    batch = Batch(model, rows=1, prefix_bytes=0)
    return rows * batch.columns(tokens) * batch.bytes_per_token * 4 / 3 + 1


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_greedy_answer_is_that_of_generate(engine, model, small_tokenizer, prompt):
    [[text, tokens, finish]] = Client(engine, small_tokenizer, prompt).answers()
    assert tokens == greedy(model, small_tokenizer, prompt)
    assert text == small_tokenizer.decode(tokens)
    assert finish == ("length" if len(tokens) == 8 else "stop")


def test_rows_that_join_and_leave_between_tokens_do_not_change_the_others(engine, model, small_tokenizer):
    first = Client(engine, small_tokenizer, PROMPTS[0], max_tokens=16)
    later = []
    for event in first.events():  # each new piece of the first lets another one join
        later.append(Client(engine, small_tokenizer, PROMPTS[len(later) % 4], max_tokens=3 + len(later) % 7))
        assert isinstance(event, Piece)
    for number, client in enumerate(later):
        expected = greedy(model, small_tokenizer, PROMPTS[number % 4], 3 + number % 7)
        assert client.answers()[0][1] == expected
    assert len(later) > 3, "the first answer is too short to show anything"


def test_the_same_seed_gives_the_same_answer_alone_and_in_a_batch_of_64(engine, small_tokenizer):
    ways = [dict(temperature=1.0), dict(temperature=0.7, top_p=0.9), dict(temperature=1.5, top_k=20), dict()]

    def ask(number):
        return Client(engine, small_tokenizer, PROMPTS[number % 4], seed=number, max_tokens=6, **ways[number % 4])

    alone = {number: ask(number).answers() for number in range(3, 64, 7)}
    released = hold(engine)
    clients = [ask(number) for number in range(64)]
    released.set()
    together = [client.answers() for client in clients]
    assert {number: together[number] for number in alone} == alone
    assert len({str(answer) for answer in together}) > 40


def test_samples_of_one_prompt_differ_and_read_it_once(engine, small_tokenizer):
    client = Client(engine, small_tokenizer, [9] * 20, n=6, temperature=1.0, seed=3)
    answers = client.answers()
    assert len({tuple(tokens) for _, tokens, _ in answers}) == 6
    again = Client(engine, small_tokenizer, [*[9] * 20, 11], temperature=1.0, seed=3)
    again.answers()
    assert (client.request.cached, again.request.cached) == (0, 20)


def test_prompts_that_wait_are_read_together_as_if_each_were_alone(engine, model, small_tokenizer, monkeypatch):
    Client(engine, small_tokenizer, [9, 8, 7, 6]).answers()  # one of them continues an earlier text
    prompts = [[5, 9, 31], [9, 8, 7, 6, 50], [40] * 6, [9, 8, 7, 6, 20, 21], [77, 3]]
    released = hold(engine)
    clients = [Client(engine, small_tokenizer, prompt, n=2 - number % 2) for number, prompt in enumerate(prompts)]
    calls = []
    forward = model.next_logits
    monkeypatch.setattr(model, "next_logits", lambda ids, cache: calls.append(ids.shape) or forward(ids, cache))
    released.set()
    answers = [client.answers() for client in clients]
    monkeypatch.undo()
    for prompt, samples in zip(prompts, answers):
        assert [tokens for _, tokens, _ in samples] == [greedy(model, small_tokenizer, prompt)] * len(samples)
    assert len([shape for shape in calls if shape[1] > 1]) <= 2


def test_a_long_start_that_waiting_prompts_share_is_computed_once(engine, model, small_tokenizer):
    start = [30 + number % 7 for number in range(40)]
    released = hold(engine)
    clients = [Client(engine, small_tokenizer, [*start, 50 + number]) for number in range(4)]
    released.set()
    for number, client in enumerate(clients):
        assert client.answers()[0][1] == greedy(model, small_tokenizer, [*start, 50 + number])
    assert [client.request.cached for client in clients] == [0, 40, 40, 40]


def test_a_next_turn_continues_the_text_of_the_previous_one(engine, model, small_tokenizer):
    [[_, tokens, _]] = Client(engine, small_tokenizer, PROMPTS[1]).answers()
    prompt = [*PROMPTS[1], *tokens, 77]
    client = Client(engine, small_tokenizer, prompt)
    assert client.answers()[0][1] == greedy(model, small_tokenizer, prompt)
    assert client.request.cached >= len(prompt) - 2


def test_logprobs_are_those_of_the_training_forward(engine, model, small_tokenizer):
    client = Client(engine, small_tokenizer, PROMPTS[3], temperature=0.8, seed=1, top=3)
    scored = [one for event in client.events() for one in event.scored]
    ids = [*PROMPTS[3], *(one.token for one in scored)]
    expected = model(torch.tensor([ids])).detach().log_softmax(-1)[0, len(PROMPTS[3]) - 1 : -1]
    for one, row in zip(scored, expected, strict=True):
        assert one.logprob == pytest.approx(float(row[one.token]), abs=1e-5)
        assert [token for token, _ in one.top] == row.topk(3).indices.tolist()
        assert [value for _, value in one.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-5)


def test_a_canceled_request_frees_its_slot_and_delivers_nothing_more(engine, small_tokenizer):
    client = Client(engine, small_tokenizer, [3], max_tokens=60, n=64, temperature=1.0)
    client.pieces.get(timeout=60)
    engine.cancel(client.request)
    engine.call(lambda: None).result(60)
    engine.call(lambda: None).result(60)
    assert engine.lanes["m"].running == 0
    while not client.pieces.empty():
        client.pieces.get_nowait()
    Client(engine, small_tokenizer, PROMPTS[0], n=64).answers()
    with pytest.raises(Empty):
        client.pieces.get_nowait()


def test_a_full_queue_says_when_to_try_again(engine, small_tokenizer):
    released = hold(engine)
    clients = []
    with pytest.raises(Busy) as error:
        for _ in range(100):
            clients.append(Client(engine, small_tokenizer, PROMPTS[0], max_tokens=1))
    assert error.value.seconds >= 1
    assert len(clients) in (79, 80)  # the call that holds the thread may still be counted
    released.set()
    for client in clients:
        client.answers()


def test_a_request_that_waits_too_long_fails_and_one_that_runs_too_long_is_cut(engine, small_tokenizer):
    released = hold(engine)
    waiting = Client(engine, small_tokenizer, PROMPTS[0], seconds=0.0)
    released.set()
    [failed] = waiting.events()
    assert failed.late and "time limit" in failed.message
    running = Client(engine, small_tokenizer, [3], max_tokens=60, temperature=1.0, seconds=60.0)
    running.pieces.get(timeout=60)
    running.request.seconds = 0.0
    assert [event.finish for event in running.events()][-1] == "length"


@pytest.mark.parametrize("bad", [dict(max_tokens=62), dict(n=65), dict(max_tokens=0)])
def test_an_impossible_request_is_refused_at_once(engine, small_tokenizer, bad):
    with pytest.raises(ValueError):
        Client(engine, small_tokenizer, [1, 2, 3], **bad)


def test_rows_run_as_long_as_their_texts_fit_in_memory_and_then_the_newest_wait(model, small_tokenizer, monkeypatch):
    """Five answers in memory for two of their length: all start, two go on, the others later, and none is changed."""
    monkeypatch.setattr("components.serving.batch.ROOM", 8)
    memory = memory_for(model, 2, 20)
    asked = dict(max_tokens=16, bias={token: -100 for token in small_tokenizer.stop_ids})
    free, engine = Engine({"m": model}), Engine({"m": model}, cache_bytes=memory)
    try:
        expected = [Client(free, small_tokenizer, [3 + n] * 4, **asked) for n in range(5)]
        released = hold(engine)
        clients = [Client(engine, small_tokenizer, [3 + n] * 4, **asked) for n in range(5)]
        first, running = clients[0], []
        first.request.deliver = lambda event: (running.append(engine.lanes["m"].running), first.pieces.put(event))
        released.set()
        assert [client.answers() for client in clients] == [client.answers() for client in expected]
        assert sorted(set(running)) == [2, 5] and running == sorted(running, reverse=True)
        with pytest.raises(ValueError, match=r"3 samples of up to 20 .* do not fit .* at most 11 tokens.*--context"):
            Client(engine, small_tokenizer, [3] * 4, max_tokens=16, n=3)
        Client(engine, small_tokenizer, [3] * 4, max_tokens=7, n=3).answers()
    finally:
        free.close()
        engine.close()


def test_kept_prefixes_take_at_most_a_quarter_of_the_memory(model, small_tokenizer):
    memory = memory_for(model, 1, 30)
    engine = Engine({"m": model}, cache_bytes=memory)
    try:
        for number in range(12):
            Client(engine, small_tokenizer, [3 + number] * 20, max_tokens=2).answers()
        engine.call(lambda: None).result(60)
        texts = engine.lanes["m"].batch.prefixes._texts
        kept = sum(tensor.nbytes for held in texts for tensor in (*held.keys, *held.values))
        assert 0 < kept <= memory / 4
        owned = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for held in texts for tensor in held.keys
        }
        assert sum(storage.nbytes() for storage in owned.values()) <= kept
    finally:
        engine.close()


def test_a_long_answer_gives_its_place_to_one_that_waits_and_continues(model, small_tokenizer, monkeypatch):
    """With a single row, and turns of 4 tokens, a short answer does not wait for the long one's end."""
    monkeypatch.setattr("components.serving.engine.SLICE", 4)
    engine = Engine({"m": model}, most_rows=1)
    try:
        asked = dict(max_tokens=16, temperature=1.0, seed=3, bias={token: -100 for token in small_tokenizer.stop_ids})
        alone = Client(engine, small_tokenizer, [7] * 4, **asked).answers()
        released = hold(engine)
        long = Client(engine, small_tokenizer, [7] * 4, **asked)
        short = Client(engine, small_tokenizer, [9] * 5, max_tokens=3)
        left = []
        short.request.deliver = lambda event: (left.append(16 - long.request.sampled), short.pieces.put(event))
        released.set()
        short.answers()
        assert set(left) == {12}
        assert long.answers() == alone
    finally:
        engine.close()


def test_one_request_that_fails_ends_alone(engine, model, small_tokenizer, caplog):
    class Broken:
        def allowed(self):
            return torch.ones(small_tokenizer.vocab_size, dtype=torch.bool)

        def accept(self, token):
            raise RuntimeError("broken")

    released = hold(engine)
    broken = Client(engine, small_tokenizer, PROMPTS[0], constrain=Broken)
    other = Client(engine, small_tokenizer, PROMPTS[2])
    released.set()
    assert "RuntimeError" in list(broken.events())[-1].message
    assert other.answers()[0][1] == greedy(model, small_tokenizer, PROMPTS[2])
    assert "a request failed" in caplog.text


def test_a_small_model_decodes_on_one_thread(engine, small_tokenizer, monkeypatch):
    """As in generate: with more of them, they would mostly wait for each other."""
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    Client(engine, small_tokenizer, PROMPTS[1], max_tokens=3).answers()
    assert asked[:1] == [1] and len(asked) % 2 == 0


def test_models_take_turns(model, small_tokenizer):
    """With two models at work, neither is ever more than one token ahead of the other."""
    order = []
    engine = Engine({"m": model, "other": model})
    try:
        released = hold(engine)
        for name in ("m", "other"):
            options = Options(max_tokens=10, temperature=0.0, top=0)
            done = Queue()

            class Spy:
                def __init__(self, name=name):
                    self.name = name

                def allowed(self):
                    return torch.ones(small_tokenizer.vocab_size, dtype=torch.bool)

                def accept(self, token):
                    order.append(self.name)

            engine.submit(name, Request(PROMPTS[0], options, small_tokenizer, done.put, constrain=Spy))
        released.set()
        while not done.get(timeout=60).finish:
            pass
    finally:
        engine.close()
    ahead = [order[:end].count("m") - order[:end].count("other") for end in range(len(order))]
    assert set(ahead) <= {0, 1} and len(order) > 2


@pytest.mark.gpu
def test_on_a_gpu_rows_join_and_leave_as_on_a_cpu(model, small_tokenizer):
    """Each step is a CUDA graph, which stays valid while prompts take the rows of finished ones."""
    expected = [greedy(model, small_tokenizer, prompt) for prompt in PROMPTS]
    on_gpu = tiny_models.random_model(small_tokenizer.vocab_size).cuda()
    engine = Engine({"m": on_gpu}, most_rows=3)
    try:
        clients = [Client(engine, small_tokenizer, PROMPTS[number % 4]) for number in range(16)]
        answers = [client.answers()[0][1] for client in clients]
    finally:
        engine.close()
    assert answers == expected * 4
