"""Trees of messages (OpenAssistant): joins rows of one message each into trees, and reads a tree's best path."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from components.data.records.errors import FormatError, kind

Placed = TypeVar("Placed", bound=Any)  # a sources.Row: where, value, held_out
_ROLES = {"prompter": "user", "assistant": "assistant"}


def joined(rows: Iterable[Placed]) -> Iterator[Placed]:
    """The rows, with consecutive ones of the same "message_tree_id" joined into one row {"prompt": tree}.

    Such a row contains one message, {"message_id", "parent_id", "message_tree_id", …}, and follows its parent. A
    message without its parent makes the joined row's value a FormatError.
    """
    for tree, group in itertools.groupby(rows, key=lambda row: _tree_id(row.value)):
        if tree is None:
            yield from group
            continue
        messages = list(group)
        yield messages[0]._replace(value=_tree([row.value for row in messages]))


def best_path(root: dict[str, Any]) -> list[dict[str, Any]]:
    """Messages from a tree's root along the lowest-ranked replies, or the first ones if none has a rank.

    Drops an unanswered question at the end.
    """
    messages: list[dict[str, Any]] = []
    node: dict[str, Any] | None = root
    while node is not None:
        role, replies = node.get("role"), node.get("replies") or []
        if not isinstance(role, str) or role not in _ROLES:
            raise FormatError(f"a role of {', '.join(_ROLES)} in a tree of messages", kind(role))
        if not isinstance(replies, list) or not all(map(_is_reply, replies)):
            raise FormatError('"replies" as a list of messages, each "rank" a number or null', kind(replies))
        messages.append({"role": _ROLES[role], "content": node.get("text")})
        node = min(replies, key=_rank) if replies else None  # the first of equal ones
    return messages[:-1] if len(messages) > 1 and messages[-1]["role"] == "user" else messages


def _is_reply(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("rank"), int | float | None)


def _rank(reply: dict[str, Any]) -> float:
    return float("inf") if reply.get("rank") is None else reply["rank"]


def _tree_id(value: Any) -> Any:
    is_message = isinstance(value, dict) and "parent_id" in value and "replies" not in value
    return value.get("message_tree_id") if is_message else None


def _tree(messages: list[dict[str, Any]]) -> dict[str, Any] | FormatError:
    nodes = {message["message_id"]: {**message, "replies": []} for message in messages}
    root, *others = nodes.values()
    for node in others:
        if node["parent_id"] not in nodes:
            return FormatError(f"the parent of message {node['message_id']} before it", "a tree without it")
        nodes[node["parent_id"]]["replies"].append(node)
    return {"prompt": root}
