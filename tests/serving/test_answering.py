"""A client that goes away stops costing, and what fails on the engine's thread reaches the client."""

import asyncio
import threading
import time

import pytest

pytest.importorskip("starlette")

from components.serving import answering as answering_module
from components.serving.answering import Answering, Gone
from components.serving.api_errors import ApiError
from components.serving.engine import Engine
from components.serving.rows import Options, Request
from tests.kit import tiny_models


@pytest.fixture
def engine(small_tokenizer):
    engine = Engine({"m": tiny_models.random_model(small_tokenizer.vocab_size)}, most_waiting=3)
    yield engine
    engine.close()


def request(tokenizer, answering, number=0, **settings):
    options = Options(max_tokens=40, temperature=1.0, seed=4)
    return Request([5, 9], options, tokenizer, answering.deliver_to(number), **settings)


def test_a_client_that_is_gone_leaves_no_row(engine, small_tokenizer, monkeypatch):
    monkeypatch.setattr(answering_module, "LOOK", 0.01)
    here = [True]

    async def is_gone():
        return not here[0]

    async def ask():
        with Answering(engine, "m", is_gone) as answering:
            answering.start([request(small_tokenizer, answering)])
            async for _ in answering.pieces():
                here[0] = False
                await asyncio.sleep(0.02)
        raise AssertionError("the answer went on to its end")

    with pytest.raises(Gone):
        asyncio.run(ask())
    engine.call(lambda: None).result(60)
    engine.call(lambda: None).result(60)
    assert engine.lanes["m"].running == 0 and not engine.waiting()


def test_what_came_while_the_loop_was_busy_is_one_piece_of_each_sample(engine, small_tokenizer):
    async def ask(wait):
        with Answering(engine, "m", stays) as answering:
            options = Options(max_tokens=12, temperature=1.0, seed=4, n=2, top=0)
            answering.start([Request([5, 9], options, small_tokenizer, answering.deliver_to(0))])
            if wait:
                while engine.lanes["m"].busy:
                    time.sleep(0.01)
            return [piece async for _, piece in answering.pieces()]

    def texts(pieces):
        return ["".join(piece.text for piece in pieces if piece.sample == sample) for sample in (0, 1)]

    at_once, merged = asyncio.run(ask(False)), asyncio.run(ask(True))
    assert texts(at_once) == texts(merged)
    assert sum(len(piece.scored) for piece in merged) == sum(len(piece.scored) for piece in at_once)
    assert sum(piece.finish is not None for piece in merged) == 2


async def stays():
    return False


def test_a_full_queue_is_told_and_nothing_of_the_request_stays_in_it(engine, small_tokenizer):
    released = threading.Event()
    engine.call(released.wait)
    requests = []

    async def ask():
        answering = Answering(engine, "m", stays)
        requests.extend(request(small_tokenizer, answering, number) for number in range(9))
        answering.start(requests)

    with pytest.raises(ApiError) as error:
        asyncio.run(ask())
    assert error.value.status == 429 and int(error.value.headers["Retry-After"]) >= 1
    assert any(one.canceled for one in requests)
    released.set()
    while engine.waiting():
        time.sleep(0.01)
    assert engine.lanes["m"].running == 0


def test_a_request_that_waits_too_long_is_told_to_come_back(engine, small_tokenizer):
    async def ask():
        with Answering(engine, "m", stays) as answering:
            answering.start([request(small_tokenizer, answering, seconds=0.0)])
            async for _ in answering.pieces():
                pass

    with pytest.raises(ApiError) as error:
        asyncio.run(ask())
    assert (error.value.status, error.value.code) == (503, "timeout")
