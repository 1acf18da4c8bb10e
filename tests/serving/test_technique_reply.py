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


def respond(client, *techniques, expect=200, **body):
    body = {"model": "random", "input": HELLO, "max_output_tokens": 4, "seed": 1, "techniques": techniques} | body
    response = client.post("/v1/responses", json=body)
    assert response.status_code == expect, response.text
    return response


def uncached(usage):
    """A usage without the tokens that were kept from earlier requests."""
    return {name: count for name, count in usage.items() if not name.endswith("_details")}


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
    assert uncached(usage["usage"]) == uncached(whole["usage"]) and whole["usage"]["completion_tokens"] <= 12


def test_a_response_has_the_same_answer_trace_and_usage_as_a_chat_completion(client):
    votes = {"name": "self_consistency", "samples": 3}
    made, chat = respond(client, votes).json(), post(client, votes).json()
    (choice,) = chat["choices"]
    [message] = made["output"]
    assert message["content"][0]["text"] == choice["message"]["content"] and made["trace"] == choice["trace"]
    assert made["status"] == {"stop": "completed", "length": "incomplete"}[choice["finish_reason"]]
    assert list(uncached(made["usage"]).values()) == list(uncached(chat["usage"]).values())
    assert made["usage"]["input_tokens_details"]["cached_tokens"] < made["usage"]["input_tokens"]
    assert "trace" not in respond(client).json()


def test_a_streamed_response_has_the_official_events_and_ends_as_the_whole_one(client):
    reflection = {"name": "reflection", "criticize": "Is it?", "revise": "So?"}
    whole = respond(client, reflection).json()
    lines = [event.split("data: ")[1] for event in respond(client, reflection, stream=True).text.split("\n\n") if event]
    events = list(map(json.loads, lines))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        whole["status"],
    ]
    ended = events[-1]["response"]
    assert events[4]["delta"] == ended["output"][0]["content"][0]["text"] == whole["output"][0]["content"][0]["text"]
    assert ended["trace"] == whole["trace"] and len(ended["trace"]) == 2
    assert uncached(ended["usage"]) == uncached(whole["usage"])


def test_a_response_says_what_cannot_be_done_as_a_chat_completion_does(client):
    tool = {"type": "function", "name": "add"}
    error = post(client, {"name": "reflection"}, tools=[{"type": "function", "function": tool}], expect=400).json()
    assert error["error"]["message"] == "tools: not together with techniques"
    assert respond(client, {"name": "reflection"}, tools=[tool], expect=400).json() == error
    for body in ({}, {"stream": True}):
        error = respond(client, {"name": "telepathy"}, expect=400, **body).json()["error"]
        assert "expected one of few_shot" in error["message"] and error["param"] == "techniques"
    votes = {"name": "self_consistency"}
    late = respond(client, votes, temperature=0, expect=400).json()["error"]
    *_, failed = respond(client, votes, temperature=0, stream=True).text.strip().split("data: ")
    response = json.loads(failed)["response"]
    assert "5 samples at temperature 0" in late["message"]
    assert (response["status"], response["error"]) == ("failed", late)


def test_the_official_client_reads_responses_by_techniques(service, client):
    """In the process, through its transport for ASGI applications."""
    openai, httpx = pytest.importorskip("openai"), pytest.importorskip("httpx")
    extra = {"techniques": [{"name": "best_of_n", "samples": 2, "score": "rm"}], "seed": 1}
    asked = {"model": "random", "input": HELLO, "max_output_tokens": 4, "extra_body": extra}

    async def answers():
        http = httpx.AsyncClient(transport=httpx.ASGITransport(client.app))
        async with openai.AsyncOpenAI(api_key="-", base_url="http://test/v1", http_client=http) as official:
            whole = await official.responses.create(**asked)
            async with official.responses.stream(**asked) as events:
                return whole, "".join([event.delta async for event in events if event.type.endswith("text.delta")])

    whole, streamed = asyncio.run(answers())
    assert whole.output_text == streamed == respond(client, **extra).json()["output"][0]["content"][0]["text"]
    assert whole.trace[-1]["technique"] == "best_of_n" and whole.usage.output_tokens > 4


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
