"""What clients can ask: the official API's fields, each honored or refused by name."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from components.serving.api_errors import ApiError, invalid

ABSENT = {  # official fields that could have no effect here, with the values that ask for none
    "audio": (),
    "conversation": (),
    "function_call": ("none",),
    "functions": ([],),
    "include": ([],),
    "max_tool_calls": (),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "previous_response_id": (),
    "prompt": (),
    "prompt_cache_retention": (),
    "reasoning": ({},),
    "reasoning_effort": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "verbosity": (),
    "web_search_options": (),
}
LABELS = ("prompt_cache_key", "safety_identifier", "user")  # say who asks, which changes no answer of the official API
MOST_STOPS, MOST_TOP, MOST_TECHNIQUES = 16, 20, 8
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Techniques = Annotated[list[dict[str, Any]], Field(max_length=MOST_TECHNIQUES)]  # see prompting.named


class Strict(BaseModel):
    """An object of a request: an unknown field, or a value of another type, is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Strict):
    """What a stream has besides the answer. include_usage: a last chunk with the numbers of tokens."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Asked(Strict):
    """What every endpoint that generates reads. top_k is not in the official API; 0 keeps the whole vocabulary."""

    model: str
    n: Annotated[int, Field(ge=1, le=128)] = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, lt=2**31)] = 0
    seed: Seed | None = None
    stop: str | list[str] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = {}
    max_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _check(self) -> "Asked":
        if len(self.stops) > MOST_STOPS or not all(self.stops):
            raise ValueError(f"stop: expected at most {MOST_STOPS} texts, none of them empty")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream=true")
        return self

    def biases(self, vocab_size: int) -> dict[int, float]:
        """logit_bias by token id. Raises ApiError for another key."""
        for key in self.logit_bias:
            if not (key.isascii() and key.isdigit() and int(key[:12]) < vocab_size and len(key) < 12):
                raise invalid(f"logit_bias: {key[:40]!r} is not a token id below {vocab_size}", "logit_bias")
        return {int(key): value for key, value in self.logit_bias.items()}


class ChatAsked(Asked):
    """POST /v1/chat/completions. techniques is not in the official API."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    response_format: dict[str, Any] | None = None
    techniques: Techniques = []

    @model_validator(mode="after")
    def _check_chat(self) -> "ChatAsked":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs=true")
        if self.techniques and (self.tools or self.logprobs):
            raise ValueError(f"{'tools' if self.tools else 'logprobs'}: not together with techniques")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("max_tokens and max_completion_tokens: expected only one of them")
        return self

    @property
    def limit(self) -> int | None:
        """The most tokens of an answer, under either name; None: what fits."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def top(self) -> int | None:
        """As Options.top: the number of likeliest tokens to report; None without log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class CompletionAsked(Asked):
    """POST /v1/completions. max_tokens 0 with echo scores the prompt alone."""

    prompt: str | Ids | list[str] | list[Ids]
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _check_completion(self) -> "CompletionAsked":
        if self.best_of not in (None, self.n):
            raise ValueError("best_of: expected the value of n; to rank more samples than that, ask for all of them")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: 0 needs echo=true")
        if self.prompt == []:
            raise ValueError("prompt: expected at least one")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt


class ScoreAsked(Strict):
    """POST /v1/score: conversations that end with an answer, to a reward model."""

    model: str
    messages: list[dict[str, Any]] | list[list[dict[str, Any]]]

    @property
    def conversations(self) -> list[list[dict[str, Any]]]:
        given: Any = self.messages
        return [given] if given and isinstance(given[0], dict) else given


def parsed(body: bytes, kind: type[Strict]) -> Any:
    """The request in a body. Raises ApiError naming the field that is missing, wrong, or has no effect here."""
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not valid JSON: {str(error)[:200]}", code=None) from None
    if not isinstance(value, dict):
        raise invalid("the body must be a JSON object", code=None)
    labels = [name for name in LABELS if isinstance(value.get(name), str) and name not in kind.model_fields]
    given = {name: field for name, field in value.items() if field is not None and name not in labels}
    for name in [name for name in given if name in ABSENT and name not in kind.model_fields]:
        if not any(given[name] == neutral for neutral in ABSENT[name]):
            raise invalid(f"{name!r} is not supported: it would have no effect here. Leave it out", name, _UNSUPPORTED)
        del given[name]
    return validated(given, kind)


def validated(given: Mapping[str, Any], kind: type[Strict]) -> Any:
    """The request with these fields. Raises ApiError naming the field that is missing or wrong."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _refusal(error.errors()[0]) from None


_UNSUPPORTED = "unsupported_parameter"


def _refusal(first: Mapping[str, Any]) -> ApiError:
    param = ""
    for part in first["loc"]:
        if isinstance(part, int):
            param += f"[{part}]"
        elif part.isidentifier():  # else the name of a branch of a union
            param += f".{part}" if param else part
    if first["type"] == "missing":
        return invalid(f"Missing required parameter: {param!r}.", param, "missing_required_parameter")
    if first["type"] == "extra_forbidden":
        return invalid(f"Unrecognized request argument supplied: {param}", param, "unknown_parameter")
    message = first["msg"].removeprefix("Value error, ")
    if not param:
        return invalid(message, message.partition(":")[0] or None)
    return invalid(f"Invalid value for {param!r}: {message}.", param)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
