"""Whatever a client sends, the answer says what is wrong with it: 4xx, never 5xx."""

import json
import random
import time

import pytest

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from components.serving.api import new_app
from components.serving.engine import Engine
from components.serving.served import Served
from components.serving.service import Limits, Service
from tests.kit import tiny_models

HELLO = [{"role": "user", "content": "where?"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "a", "type": "function", "function": {"name": "add", "arguments": "{}"}}
FIELDS = {
    "messages": HELLO,
    "max_tokens": 3,
    "temperature": 1,
    "top_p": 0.5,
    "top_k": 3,
    "n": 2,
    "seed": 1,
    "stop": ["a"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "logit_bias": {"5": 1},
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
}
CHAT = {
    "logprobs": True,
    "top_logprobs": 2,
    "tools": [TOOL],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
}
TEXT = {"prompt": ["a", "b"], "echo": True, "logprobs": 2, "best_of": 2}
NEEDS = {"top_logprobs": "logprobs", "stream_options": "stream", "best_of": "n", "tool_choice": "tools"}
SCORED = [*HELLO, {"role": "assistant", "content": "there"}]
ODD = [None, True, False, 0, -1, 1, 10**30, -(10**30), 0.5, 1e308, "", "x", "\ud800", "\0", "é" * 200, "5" * 300]
ODD += [[], [[]], [None], [5], ["a"], ["a", 5], {}, {"a": {}}, {"type": []}, {"5" * 50: 1}, [[1], [2]], [[340]]]
ODD += [[{"role": "user"}], [{"role": 5, "content": []}], [{"role": "tool", "content": "x"}], [{"type": "function"}]]
ODD += [[{"role": "assistant", "content": "x", "tool_calls": [CALL]}], [10**9], {"type": "regex", "regex": "("}]
ODD += [json.loads("[" * 60 + "]" * 60), [*HELLO * 3], [{"role": "system", "content": "x"}], {"include_usage": "yes"}]
for odd in (5, {"$ref": "#/x"}, {"type": "string", "pattern": "("}, {"type": "integer", "minimum": 5, "maximum": 4}):
    ODD.append({"type": "json_schema", "json_schema": {"name": "x", "schema": odd}})


def mutated(rng):
    """(path, body) with some valid fields, and at times one or two odd ones."""
    path = rng.choice(["/v1/chat/completions", "/v1/completions", "/v1/score", "/v1/responses"])
    fields, body = {"/v1/completions": (FIELDS | TEXT, {"prompt": "a"}), "/v1/score": ({}, {"messages": SCORED})}.get(
        path, (FIELDS | CHAT, {"messages": HELLO})
    )
    if path == "/v1/responses":
        fields = {"techniques": [{"name": "self_consistency", "samples": 2}], "seed": 1, "stream": True}
        body = {"input": "a", "max_output_tokens": 2}
    names = rng.sample(sorted(fields), min(len(fields), rng.randint(0, 3)))
    names += [NEEDS[name] for name in names if name in NEEDS]
    body |= {"model": "rm" if "score" in path else "m"} | {name: fields[name] for name in names}
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        body[rng.choice([*body, *fields, "other", "Ä", "suffix", "user"])] = rng.choice(ODD)
    return path, body


@pytest.mark.slow
def test_400_requests_get_an_answer_or_a_reason(small_tokenizer):
    size = small_tokenizer.vocab_size
    served = [
        Served("m", tiny_models.random_model(size), small_tokenizer),
        Served("rm", tiny_models.random_scalar(size), small_tokenizer),
    ]
    service = Service(served, Engine({"m": served[0].model}, most_rows=8), Limits(tokens=4))
    rng = random.Random(0)
    statuses = []
    with TestClient(new_app(service), raise_server_exceptions=False) as client:
        for _ in range(400):
            path, body = mutated(rng)
            content = json.dumps(body).encode()
            if rng.random() < 0.1:
                content = content[: rng.randrange(len(content))] + bytes([rng.randrange(256)])
            response = client.post(path, content=content, headers={"content-type": "application/json"})
            statuses.append(response.status_code)
            assert response.status_code < 500, (path, body, response.text)
            if response.status_code >= 400:
                error = response.json()["error"]
                assert error["message"] and set(error) == {"message", "type", "param", "code"}, (path, body)
            else:
                assert '"error":{' not in response.text, (path, body, response.text)
        while service.engine.lanes["m"].busy:  # an answer is delivered before its row leaves
            time.sleep(0.01)
    assert statuses.count(200) > 100 and len(set(statuses)) >= 3
