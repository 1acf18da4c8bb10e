"""Techniques in a request: extra_body={"techniques": [{"name": "self_consistency", "samples": 5}]}."""

import asyncio
import json

import pytest

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from components.serving.api import new_app
from components.serving.engine import Engine
from components.serving.served import Served
from components.serving.service import Limits, Service
from tests.kit import tiny_models

HELLO = [{"role": "user", "content": "where does anna live?"}]
BODY = {"model": "random", "messages": HELLO, "max_tokens": 4, "seed": 1}


@pytest.fixture(scope="module")
def service(small_tokenizer):
    size = small_tokenizer.vocab_size
    models = {"random": tiny_models.random_model(size), "rm": tiny_models.random_scalar(size)}
    served = [Served(name, model, small_tokenizer, stage="sft") for name, model in models.items()]
    return Service(served, Engine({"random": models["random"]}, most_rows=8))


@pytest.fixture(scope="module")
def client(service):
    with TestClient(new_app(service)) as client:
        yield client


def post(client, *techniques, expect=200, **body):
    body = BODY | {"techniques": techniques} | body
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == expect, response.text
    return response


def test_the_usage_counts_every_sample_and_the_trace_names_them(client, small_tokenizer):
    made = post(client, {"name": "self_consistency", "samples": 3}, n=2).json()
    prompt = len(small_tokenizer.render_prompt(HELLO))
    assert made["object"] == "chat.completion" and [one["index"] for one in made["choices"]] == [0, 1]
    assert made["usage"]["prompt_tokens"] == prompt and 6 <= made["usage"]["completion_tokens"] <= 24
    samples = post(client, n=6).json()["choices"]  # the same ones, without techniques
    for choice, part in zip(made["choices"], (samples[:3], samples[3:])):
        assert choice["message"]["content"] in [one["message"]["content"] for one in part]
        (step,) = choice["trace"]
        assert step["technique"] == "self_consistency" and "×" in step["text"]


def test_the_best_of_n_is_what_the_reward_model_scores_highest(client):
    made = post(client, {"name": "best_of_n", "samples": 4, "score": "rm"}).json()
    samples = [one["message"]["content"] for one in post(client, n=4).json()["choices"]]
    talks = [[*HELLO, {"role": "assistant", "content": text}] for text in samples]
    scored = client.post("/v1/score", json={"model": "rm", "messages": talks}).json()["data"]
    best = max(range(4), key=lambda place: scored[place]["score"])
    assert made["choices"][0]["message"]["content"] == samples[best]
    plain = post(client, {"name": "self_consistency", "samples": 4}).json()
    read = sum(one["tokens"] for one in scored)
    assert made["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"] + read


def test_a_stream_sends_the_chosen_answer_and_its_usage(client):
    reflection = {"name": "reflection", "criticize": "Is it?", "revise": "So?"}
    response = post(client, reflection, stream=True, stream_options={"include_usage": True})
    *lines, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    first, text, end, usage = map(json.loads, lines)
    whole = post(client, reflection).json()
    assert done == "[DONE]" and first["choices"][0]["delta"]["role"] == "assistant"
    assert text["choices"][0]["delta"]["content"] == whole["choices"][0]["message"]["content"]
    assert text["choices"][0]["delta"]["trace"] == whole["choices"][0]["trace"]
    assert end["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert usage["usage"] == whole["usage"] and whole["usage"]["completion_tokens"] <= 12


@pytest.mark.parametrize(
    "technique, body, message",
    [
        ({"name": "telepathy"}, {}, "expected one of few_shot, chain_of_thought"),
        ({"name": "self_consistency", "sample": 3}, {}, "has no setting 'sample'; did you mean samples"),
        ({"name": "self_consistency", "samples": "many"}, {}, "self_consistency: samples: input should be"),
        ({"name": "self_consistency", "samples": 9}, {}, "expected at most 8 samples"),
        ({"name": "self_consistency", "extract": "(a+)+$"}, {}, "extract: expected one of number, line"),
        ({"name": "self_consistency"}, {"temperature": 0}, "5 samples at temperature 0 are all the same"),
        ({"name": "best_of_n", "score": "random"}, {}, "random is not a reward model"),
        ({"name": "best_of_n"}, {}, "best_of_n: score: field required"),
        ({"name": "reflection"}, {"logprobs": True}, "logprobs: not together with techniques"),
        ({"name": "few_shot", "examples": HELLO}, {}, "few_shot: examples: expected messages of the roles"),
        ({"name": "chain_of_thought"}, {"messages": [{"role": "user"}]}, "Missing required parameter"),
        ({"name": "chain_of_thought"}, {"messages": [{"role": "user", "content": [{}]}]}, "expected a part of type"),
        ({"name": "tool_use", "tools": ["calculator"]}, {}, "chat template"),
    ],
)
def test_what_cannot_be_done_is_said(client, technique, body, message):
    error = post(client, technique, expect=400, **body).json()["error"]
    assert message in error["message"] and error["type"] == "invalid_request_error"


def test_an_answer_has_the_time_of_the_server(service, client, monkeypatch):
    monkeypatch.setattr(service, "limits", Limits(seconds=0.0))
    error = post(client, {"name": "reflection", "rounds": 1000000}, expect=503).json()["error"]
    assert "longer than the server's time limit" in error["message"]
    for _ in range(2):
        service.engine.call(lambda: None).result(60)
    assert service.engine.lanes["random"].running == 0


def test_more_conversations_than_there_are_slots_are_sent_away(service, client, monkeypatch):
    monkeypatch.setattr(service, "slots", asyncio.Semaphore(0))
    response = client.post("/v1/chat/completions", json=BODY | {"techniques": [{"name": "reflection"}]})
    assert response.status_code == 429 and response.headers["retry-after"] == "5"
