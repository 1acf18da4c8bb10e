"""Tool use: the model calls functions and reads their results.  Source: Schick et al. 2023; Yao et al. 2023."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from components.prompting.technique import (
    Answer,
    Answers,
    Call,
    Generate,
    Message,
    Query,
    Step,
    Tokens,
    expect_count,
    next_seed,
)
from components.prompting.tools import Tool


@dataclass(frozen=True)
class ToolUse:
    """Answers the calls of the given tools, until an answer has none, or `rounds` times.

    Calls are read as the model's chat template writes them, so it must be able to write them. What is wrong with a
    call goes back to the model as its result. Raises ValueError for no tool, two of one name, or fewer than 1 rounds,
    and for a query that has tools already.
    """

    tools: Sequence[Tool]
    rounds: int = 4

    def __post_init__(self) -> None:
        expect_count("tool_use", "rounds", self.rounds)
        names = [tool.name for tool in self.tools]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"tool_use: tools: expected at least one, all of different names, got {names}")

    def __call__(self, generate: Generate, query: Query) -> Answers:
        if query.tools:
            raise ValueError("tool_use: the query has tools already")
        query = replace(query, tools=[tool.schema for tool in self.tools])
        answers, tokens = generate(query)
        made = []
        for number, answer in enumerate(answers):
            last, spent = self._continued(generate, query, answer, number)
            made.append(last)
            tokens += spent
        return Answers(made, tokens)

    def _continued(self, generate: Generate, query: Query, answer: Answer, number: int) -> tuple[Answer, Tokens]:
        talk, tokens = replace(query, n=1), Tokens()
        for turn in range(self.rounds):
            arguments = [_arguments(call) for call in answer.calls]
            if not arguments or None in arguments:
                break
            results = [self._result(call, given or {}) for call, given in zip(answer.calls, arguments)]
            talk = talk.then(_calling(answer), *map(_returned, answer.calls, results))
            steps = [
                Step("tool_use", f"{call.name}({call.arguments}) → {result}")
                for call, result in zip(answer.calls, results)
            ]
            (following,), spent = generate(replace(talk, seed=next_seed(query, number, turn)))
            answer, tokens = following.after(*answer.trace, *steps), tokens + spent
        return answer, tokens

    def _result(self, call: Call, arguments: dict[str, Any]) -> str:
        tool = next((tool for tool in self.tools if tool.name == call.name), None)
        if tool is None:
            return f"error: no tool {call.name}; there are {', '.join(tool.name for tool in self.tools)}"
        return tool.result(arguments)


def _arguments(call: Call) -> dict[str, Any] | None:
    try:
        value = json.loads(call.arguments)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _calling(answer: Answer) -> Message:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in answer.calls
    ]
    return {"role": "assistant", "content": answer.text, "tool_calls": calls}


def _returned(call: Call, result: str) -> Message:
    return {"role": "tool", "tool_call_id": call.id, "name": call.name, "content": result}
