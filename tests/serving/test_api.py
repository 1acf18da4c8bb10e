"""The OpenAI-compatible API through the ASGI application: shapes, streams, errors."""

import json
import threading
from contextlib import contextmanager

import pytest
import torch

pytest.importorskip("starlette")
from starlette.requests import Request as HttpRequest
from starlette.testclient import TestClient

from components.serving.api import new_app
from components.serving.batch import Batch
from components.serving.engine import Engine
from components.serving.served import Served
from components.serving.service import Limits, Service
from components.tokenizer.tokenizer import StreamDecoder
from tests.kit import tiny_models, tool_templates

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "where does anna live?"}]


@contextmanager
def serving(tokenizer, models, *, limits=None, most_rows=8, cache_bytes=float("inf"), **settings):
    """A client of a server of models, by name."""
    served = [Served(name, model, tokenizer, stage="sft") for name, model in models.items()]
    speaking = {one.name: one.model for one in served if one.generates}
    engine = Engine(speaking, most_rows=most_rows, most_waiting=16, cache_bytes=cache_bytes)
    service = Service(served, engine, limits or Limits())
    with TestClient(new_app(service, **settings)) as client:
        client.service = service
        yield client


@pytest.fixture(scope="module")
def models(small_tokenizer):
    header = small_tokenizer.render_prompt([{"role": "user", "content": ""}])[-1]
    answer = [header, *small_tokenizer.encode(" paris, naïve"), small_tokenizer.end_id]
    size = small_tokenizer.vocab_size
    return {
        "run/parrot": tiny_models.parrot(small_tokenizer, answer),
        "run/random": tiny_models.random_model(size),
        "run/rm": tiny_models.random_scalar(size),
    }


@pytest.fixture(scope="module")
def client(small_tokenizer, models):
    with serving(small_tokenizer, models) as client:
        yield client


def ask(client, path=CHAT, *, expect=200, **body):
    body = {"model": "run/parrot"} | ({"messages": HELLO} if path == CHAT else {}) | body
    response = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == expect, response.text
    return response.json() if not body.get("stream") or expect != 200 else events(response)


def events(response):
    """The chunks of a stream, without [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_models_are_listed_with_their_kinds(client):
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert {one["id"]: one["kind"] for one in listed["data"]} == {
        "run/parrot": "language model",
        "run/random": "language model",
        "run/rm": "reward model",
    }
    assert client.get("/v1/models/run/parrot").json()["context_length"] == 128
    assert client.get("/v1/models/none").json()["error"]["code"] == "model_not_found"


def test_a_chat_completion_is_the_official_object(client, small_tokenizer):
    made = ask(client, temperature=0)
    assert made["object"] == "chat.completion" and made["model"] == "run/parrot"
    [choice] = made["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": " paris, naïve", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    prompt = len(small_tokenizer.render_prompt(HELLO))
    sampled = len(small_tokenizer.encode(" paris, naïve")) + 1  # and the end of turn
    assert made["usage"] | {"prompt_tokens_details": None} == {
        "prompt_tokens": prompt,
        "completion_tokens": sampled,
        "total_tokens": prompt + sampled,
        "prompt_tokens_details": None,
    }


def test_a_stream_says_the_same_in_chunks_and_ends_with_the_usage(client):
    chunks = ask(client, temperature=0, stream=True, stream_options={"include_usage": True})
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]) == " paris, naïve"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]][-1] == "stop"
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] > 0
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert all("usage" not in chunk for chunk in ask(client, stream=True))


def test_n_samples_and_a_seed(client):
    settings = dict(model="run/random", n=4, seed=5, max_tokens=6)
    first, second = ask(client, **settings), ask(client, **settings)
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert texts == [choice["message"]["content"] for choice in second["choices"]]
    assert len(set(texts)) > 1
    streamed = ["", "", "", ""]
    for chunk in ask(client, **settings, stream=True):
        [choice] = chunk["choices"]
        streamed[choice["index"]] += choice["delta"].get("content", "")
    assert streamed == texts


def test_logprobs_of_a_chat(client):
    content = ask(client, temperature=0, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in content).decode() == " paris, naïve"
    for one in content:
        assert one["logprob"] == one["top_logprobs"][0]["logprob"] and len(one["top_logprobs"]) == 2


@pytest.mark.parametrize("stop", ["is, n", ["naï", "never"]])
def test_a_stop_text_is_left_out(client, stop):
    made = ask(client, temperature=0, stop=stop)["choices"][0]
    first = stop if isinstance(stop, str) else stop[0]
    assert made["message"]["content"] == " paris, naïve".partition(first)[0] and made["finish_reason"] == "stop"


def test_max_tokens_cuts_an_answer(client):
    for name in ("max_tokens", "max_completion_tokens"):
        made = ask(client, temperature=0, **{name: 2})
        assert made["choices"][0]["finish_reason"] == "length" and made["usage"]["completion_tokens"] == 2


def test_an_answer_without_a_limit_is_cut_where_the_memory_ends(small_tokenizer, models):
    """On a model whose context is longer than what one row may hold."""
    long = tiny_models.random_model(small_tokenizer.vocab_size, max_position_embeddings=4096)
    per_token = Batch(long, rows=1, prefix_bytes=0).bytes_per_token
    endless = dict(logit_bias={str(token): -100 for token in small_tokenizer.stop_ids})
    with serving(small_tokenizer, {"run/parrot": long}, cache_bytes=200 * per_token) as client:
        most = client.service.engine.longest("run/parrot", 1)
        assert 40 < most < 200
        made = ask(client, **endless)
        assert made["choices"][0]["finish_reason"] == "length" and made["usage"]["total_tokens"] == most
        by_technique = ask(client, **endless, techniques=[{"name": "self_consistency", "samples": 1}])
        assert by_technique["usage"]["total_tokens"] == most
        error = ask(client, expect=400, max_tokens=1000)["error"]
        assert "do not fit in memory" in error["message"] and "--context" in error["message"]
        error = ask(client, expect=400, messages=[{"role": "user", "content": "where " * 200}])["error"]
        assert f"expected at most {most} tokens" in error["message"]


def test_an_echoed_prompt_of_ids_has_the_training_forwards_logprobs(client, models, small_tokenizer):
    """What lm-evaluation-harness asks for, to score a continuation."""
    ids = [1, *small_tokenizer.encode("anna lives in rome")]
    made = ask(client, TEXT, model="run/random", prompt=[ids], echo=True, logprobs=1, max_tokens=1, temperature=0)
    logprobs = made["choices"][0]["logprobs"]
    expected = models["run/random"](torch.tensor([ids])).detach().log_softmax(-1)[0]
    assert logprobs["token_logprobs"][0] is None and len(logprobs["tokens"]) == len(ids) + 1
    own = [float(expected[place, token]) for place, token in enumerate(ids[1:])]
    assert logprobs["token_logprobs"][1:-1] == pytest.approx(own, abs=1e-5)
    for near, row in zip(logprobs["top_logprobs"][1:-1], expected[:-1]):
        assert max(near.values()) == pytest.approx(float(row.max()), abs=1e-5)
    alone = ask(client, TEXT, model="run/random", prompt=ids, echo=True, logprobs=1, max_tokens=0)
    assert alone["choices"][0]["logprobs"]["token_logprobs"] == logprobs["token_logprobs"][:-1]
    assert alone["choices"][0]["text"] == small_tokenizer.decode(ids, skip_special=False)


def test_several_texts_are_continued_in_order_and_in_a_stream(client, small_tokenizer):
    settings = dict(model="run/random", prompt=["anna", "the cat", "bob"], n=2, seed=1, max_tokens=5, echo=True)
    made = ask(client, TEXT, **settings)
    texts = [choice["text"] for choice in made["choices"]]
    assert [text[:3] for text in texts] == ["ann", "ann", "the", "the", "bob", "bob"]
    streamed = [""] * 6
    for chunk in ask(client, TEXT, **settings, stream=True):
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["text"]
    assert streamed == texts


def test_equal_prompts_get_different_samples_unless_a_seed_is_given(client):
    settings = dict(model="run/random", prompt=["anna"] * 4, max_tokens=12)
    assert len({choice["text"] for choice in ask(client, TEXT, **settings)["choices"]}) > 1
    assert len({choice["text"] for choice in ask(client, TEXT, **settings, seed=3)["choices"]}) == 1


SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["paris", "rome"]}, "size": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["city", "size"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(3))
def test_a_json_schema_holds_even_a_random_model(client, seed):
    form = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": SCHEMA}}
    made = ask(client, model="run/random", seed=seed, response_format=form)["choices"][0]
    answer = json.loads(made["message"]["content"])
    assert made["finish_reason"] == "stop"
    assert set(answer) == {"city", "size"} and answer["city"] in ("paris", "rome") and 0 <= answer["size"] < 100


def test_choices_and_regular_expressions(client):
    form = {"type": "choice", "choices": ["yes (a)", "no. b"]}
    said = ask(client, model="run/random", n=6, seed=0, response_format=form)["choices"]
    assert {choice["message"]["content"] for choice in said} <= {"yes (a)", "no. b"}
    [choice] = ask(client, model="run/random", seed=0, response_format={"type": "regex", "regex": "[0-9]{3}"})[
        "choices"
    ]
    assert len(choice["message"]["content"]) == 3 and choice["message"]["content"].isdigit()
    error = ask(client, expect=400, response_format={"type": "json_schema", "json_schema": {"schema": {"type": 5}}})
    assert error["error"]["code"] == "invalid_json_schema"
    assert ask(client, expect=400, response_format={"type": "xml"})["error"]["param"] == "response_format.type"


def test_an_answer_in_a_format_does_not_start_with_the_thinking_that_the_prompt_begins(small_tokenizer):
    thinks = tiny_models.with_template(
        small_tokenizer, tool_templates.CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    )
    assert thinks.prefill == "<think>\n"
    form = {"type": "choice", "choices": ["yes", "no"]}
    random = tiny_models.random_model(thinks.vocab_size, max_position_embeddings=256)
    with serving(thinks, {"run/parrot": random}) as client:

        def texts(**settings):
            streamed = ask(client, **settings, stream=True)
            made = ask(client, **settings)["choices"][0]["message"]["content"]
            return made, "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed)

        for techniques in ([], [{"name": "self_consistency", "samples": 1}]):
            assert set(texts(response_format=form, seed=1, techniques=techniques)) <= {"yes", "no"}
            assert all(text.startswith("<think>\n") for text in texts(max_tokens=4, seed=1, techniques=techniques))


@pytest.mark.slow
def test_a_forced_call_of_a_tool_whole_and_in_a_stream(small_tokenizer):
    parameters = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "add", "parameters": parameters | {"additionalProperties": False}}}
    tokenizer = tiny_models.with_template(small_tokenizer, tool_templates.QWEN25)
    random = tiny_models.random_model(tokenizer.vocab_size, max_position_embeddings=512)
    with serving(tokenizer, {"run/parrot": random}) as client:
        forced = dict(tools=[tool], seed=1, max_tokens=100)
        made = ask(client, **forced, tool_choice="required")["choices"][0]
        [call] = made["message"]["tool_calls"]
        assert made["finish_reason"] == "tool_calls" and made["message"]["content"] is None
        assert call["function"]["name"] == "add" and json.loads(call["function"]["arguments"])["a"] in (1, 2)
        chunks = ask(client, **forced, tool_choice={"type": "function", "function": {"name": "add"}}, stream=True)
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        assert [call for delta in deltas for call in delta.get("tool_calls", [])][0]["function"] == call["function"]
        results = [made["message"], {"role": "tool", "tool_call_id": call["id"], "content": "3"}]
        ask(client, tools=[tool], messages=[*HELLO, *results], max_tokens=5)
        flat = {"type": "function", **tool["function"]}
        response = ask(
            client, "/v1/responses", input="add", tools=[flat], tool_choice="required", max_output_tokens=100
        )
        assert [item["type"] for item in response["output"]] == ["message", "function_call"]
        body = dict(model="run/parrot", input="add", tools=[flat], tool_choice="required", max_output_tokens=100)
        lines = client.post("/v1/responses", json=body | {"stream": True}).text.split("\n")
        made = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        call = made[-1]["response"]["output"][1]
        delta, done = [event for event in made if "function_call_arguments" in event["type"]]
        same = {"item_id": call["id"], "output_index": 1}
        assert delta == same | {
            "type": "response.function_call_arguments.delta",
            "sequence_number": done["sequence_number"] - 1,
            "delta": call["arguments"],
        }
        assert done["arguments"] == call["arguments"] and json.loads(call["arguments"])["a"] in (1, 2)
        assert ask(client, expect=400, **forced, tool_choice="other")["error"]["param"] == "tool_choice"


def test_a_response_without_state(client):
    made = ask(client, "/v1/responses", input=HELLO, instructions="be kind", temperature=0)
    assert made["object"] == "response" and made["status"] == "completed" and made["store"] is False
    assert made["output"][0]["content"][0]["text"] == " paris, naïve"
    assert made["usage"]["output_tokens"] > 3
    cut = ask(client, "/v1/responses", input="where?", temperature=0, max_output_tokens=2)
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    for name, value in (("store", True), ("previous_response_id", "x"), ("tools", [{"type": "web_search"}])):
        error = ask(client, "/v1/responses", expect=400, input="x", **{name: value})["error"]
        assert name in error["message"] or name in str(error["param"])
    assert ask(client, "/v1/responses", expect=400, input=[])["error"]["param"] == "input"


def test_adjacent_messages_of_one_role_are_joined_if_the_template_would_refuse_them(client, small_tokenizer):
    def read(expect=200, **body):
        made = ask(client, "/v1/responses", expect=expect, temperature=0, **body)
        return made if expect != 200 else made["usage"]["input_tokens"]

    def length(*messages):
        return len(small_tokenizer.render_prompt([{"role": role, "content": text} for role, text in messages]))

    told = {"role": "developer", "content": "be brief"}
    user = {"role": "user", "content": "where?"}
    assert read(instructions="be kind", input=[told, user]) == length(
        ("system", "be kind\n\nbe brief"), ("user", "where?")
    )
    again = [user, user, {"role": "assistant", "content": "paris"}, {"role": "assistant", "content": "or rome"}, user]
    joined = ("user", "where?\n\nwhere?"), ("assistant", "paris\n\nor rome"), ("user", "where?")
    assert read(input=again) == length(*joined)
    error = read(input=[user, told, user], expect=400)["error"]
    assert error["param"] == "messages" and "at most one system message" in error["message"]


def test_a_response_in_events(client):
    body = {"model": "run/parrot", "input": [{"role": "user", "content": "where?"}], "temperature": 0, "stream": True}
    lines = [event.split("\n") for event in client.post("/v1/responses", json=body).text.split("\n\n") if event]
    made = [json.loads(data.removeprefix("data: ")) for _, data in lines]
    assert [name.removeprefix("event: ") for name, _ in lines] == [event["type"] for event in made]
    assert [event["sequence_number"] for event in made] == list(range(len(made)))
    said = "".join(event["delta"] for event in made if event["type"] == "response.output_text.delta")
    assert said == " paris, naïve" == made[-1]["response"]["output"][0]["content"][0]["text"]
    assert (made[0]["type"], made[-1]["type"]) == ("response.created", "response.completed")


def test_answers_of_more_than_10_000_characters_are_whole_at_once_and_in_a_stream(client, monkeypatch):
    """Every token's text is 800 times as long."""
    push = StreamDecoder.push
    monkeypatch.setattr(StreamDecoder, "push", lambda decoder, token: 800 * push(decoder, token))
    whole = ask(client, temperature=0)["choices"][0]["message"]["content"]
    assert len(whole) == 800 * len(" paris, naïve") and whole.count("ï") == 800
    chunks = ask(client, temperature=0, stream=True)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole
    body = {"input": HELLO, "techniques": [{"name": "self_consistency", "samples": 2}]}
    assert ask(client, "/v1/responses", **body)["output"][0]["content"][0]["text"] == whole
    streamed = client.post("/v1/responses", json={"model": "run/parrot", "stream": True} | body).text
    made = [json.loads(line.removeprefix("data: ")) for line in streamed.split("\n") if line.startswith("data: ")]
    assert "".join(event["delta"] for event in made if event["type"] == "response.output_text.delta") == whole
    assert made[-1]["response"]["output"][0]["content"][0]["text"] == whole


def test_a_reward_model_scores_conversations(client, models, small_tokenizer):
    messages = [*HELLO, {"role": "assistant", "content": " paris"}]
    made = ask(client, "/v1/score", model="run/rm", messages=[messages, messages])
    ids = small_tokenizer.render(messages).ids
    last = len(ids) - 1 - ids[::-1].index(small_tokenizer.end_id)
    expected = float(models["run/rm"](torch.tensor([ids]))[0, last].detach())
    assert [one["score"] for one in made["data"]] == pytest.approx([expected, expected], abs=1e-5)


def test_too_many_prompts_or_conversations_are_refused_before_they_are_read(client, monkeypatch):
    def read(*_):
        raise AssertionError("nothing may be tokenized")

    for name in ("text_prompt", "chat_ids"):
        monkeypatch.setattr(Served, name, read)
    error = ask(client, TEXT, expect=400, prompt=["a"] * 5, n=2)["error"]
    assert error["param"] == "n" and "at most 8 samples in all, got 5 prompts with n = 2" in error["message"]
    conversations = [[*HELLO, {"role": "assistant", "content": "x"}]] * 257
    error = ask(client, "/v1/score", expect=400, model="run/rm", messages=conversations)["error"]
    assert error["param"] == "messages" and "at most 256 conversations, got 257" in error["message"]


def test_nothing_more_is_scored_for_a_client_that_has_gone(client, monkeypatch):
    async def gone(_):
        return True

    monkeypatch.setattr(HttpRequest, "is_disconnected", gone)
    monkeypatch.setattr(Served, "reward", lambda *_: 1 / 0)
    monkeypatch.setattr(Served, "prompt_scores", lambda *_: 1 / 0)
    messages = [*HELLO, {"role": "assistant", "content": "x"}]
    asked = {"model": "run/rm", "messages": [messages, messages]}
    assert client.post("/v1/score", json=asked).status_code == 499
    asked = {"model": "run/parrot", "prompt": ["anna", "bob"], "echo": True, "logprobs": 1, "max_tokens": 0}
    assert client.post(TEXT, json=asked).status_code == 499


BAD = [
    (dict(model="none"), 404, "model_not_found", "model"),
    (dict(model="run/rm"), 400, "model_not_supported", "model"),
    (dict(messages=[{"role": "user", "content": "anna " * 500}]), 400, "context_length_exceeded", "messages"),
    (dict(max_tokens=1000), 400, "context_length_exceeded", "messages"),
    (dict(colour="red"), 400, "unknown_parameter", "colour"),
    (dict(reasoning_effort="high"), 400, "unsupported_parameter", "reasoning_effort"),
    (dict(temperature=3), 400, "invalid_value", "temperature"),
    (dict(temperature="hot"), 400, "invalid_value", "temperature"),
    (dict(messages=[]), 400, "invalid_value", "messages"),
    (dict(messages=[{"role": "user"}]), 400, "missing_required_parameter", "messages[0].content"),
    (dict(messages=[{"role": "judge", "content": "x"}]), 400, "invalid_value", "messages"),
    (dict(messages=[{"role": "user", "content": "\ud800"}]), 400, "invalid_value", "messages"),
    (dict(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, "invalid_value", None),
    (dict(n=0), 400, "invalid_value", "n"),
    (dict(n=9), 400, "invalid_value", "n"),
    (dict(stop=[""]), 400, "invalid_value", "stop"),
    (dict(top_logprobs=2), 400, "invalid_value", "top_logprobs"),
    (dict(logit_bias={"x": 1}), 400, "invalid_value", "logit_bias"),
    (dict(stream_options={"include_usage": True}), 400, "invalid_value", "stream_options"),
]


@pytest.mark.parametrize(("body", "status", "code", "param"), BAD, ids=[str(list(b))[:40] for b, *_ in BAD])
def test_an_error_is_the_official_object_and_names_the_field(client, body, status, code, param):
    error = ask(client, expect=status, **body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code and error["type"] == "invalid_request_error" and error["message"]
    assert param is None or error["param"] == param


def test_fields_that_ask_for_nothing_are_accepted(client):
    ask(client, user="anna", safety_identifier="a1", prompt_cache_key="b2")
    assert ask(client, expect=400, user=5)["error"]["param"] == "user"
    ask(client, temperature=0, store=False, user=None, metadata={}, service_tier="auto", frequency_penalty=0)


def test_bodies_that_are_not_json_objects(client):
    for content in (b"", b"{", b"[]", b"[" * 100_000, b'{"a": NaN}', b"\xff"):
        response = client.post(CHAT, content=content, headers={"content-type": "application/json"})
        assert response.status_code == 400 and response.json()["error"]["message"]
    assert client.post(CHAT, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert client.get("/v1/nothing").json()["error"]["code"] == "unknown_url"
    assert client.get(CHAT).status_code == 405


def test_keys_host_names_and_sizes(small_tokenizer, models):
    only = {"run/parrot": models["run/parrot"]}
    settings = dict(keys=["one", "zwei-ü"], hosts=["localhost"], limits=Limits(body=300))
    with serving(small_tokenizer, only, **settings) as client:
        client.headers["host"] = "localhost:8000"
        error = client.get("/v1/models").json()["error"]
        assert error["code"] == "invalid_api_key"
        assert client.get("/v1/models", headers={"Authorization": "Bearer two"}).status_code == 401
        client.headers["authorization"] = "Bearer one"
        assert client.get("/v1/models").status_code == 200
        assert client.get("/health", headers={"Authorization": ""}).json() == {"status": "ok"}
        assert client.post(CHAT, json={"model": "x" * 400}).status_code == 413
        assert client.get("/v1/models", headers={"host": "evil.example:8000"}).status_code == 403


def test_a_full_queue_is_429_with_retry_after(client):
    released = threading.Event()
    engine = client.service.engine
    engine.call(released.wait)
    most, engine.most_waiting = engine.most_waiting, 0
    try:
        response = client.post(CHAT, json={"model": "run/parrot", "messages": HELLO})
    finally:
        engine.most_waiting = most
        released.set()
    assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["code"] == "rate_limit_exceeded"


def test_metrics_count_requests_and_tokens(client):
    ask(client, temperature=0)
    page = client.get("/metrics").text
    while 'gradus_running_rows{model="run/parrot"} 1' in page:  # an answer is delivered before its row leaves
        page = client.get("/metrics").text
    assert 'gradus_requests_total{path="/v1/chat/completions",status="200"}' in page
    assert 'gradus_completion_tokens_total{model="run/parrot"}' in page
    assert 'gradus_running_rows{model="run/parrot"} 0' in page
    assert 'gradus_first_token_seconds_bucket{le="+Inf"}' in page


def test_logs_hold_texts_only_if_asked(client, caplog):
    caplog.set_level("INFO")
    ask(client, temperature=0)
    ask(client, expect=400, colour="anna")
    assert "chat/completions 200" in caplog.text
    assert "anna" not in caplog.text and "paris" not in caplog.text
    client.service.logs_texts = True
    ask(client, temperature=0)
    client.service.logs_texts = False
    assert "where does anna live?" in caplog.text and " paris, naïve" in caplog.text
