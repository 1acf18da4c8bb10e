"""Few-shot prompting: solved examples before the question.  Source: Brown et al. 2020 (GPT-3), section 2."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from components.prompting.technique import Answers, Generate, Message, Query


@dataclass(frozen=True)
class FewShot:
    """Puts examples before the conversation, after its system message, as earlier turns.

    examples: messages, the user's and the assistant's in turns. Raises ValueError for others.
    """

    examples: Sequence[Message]

    def __post_init__(self) -> None:
        roles = [message.get("role") for message in self.examples]
        if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
            raise ValueError(
                f"few_shot: examples: expected messages of the roles user, assistant, user, …, assistant; got {roles}"
            )

    def __call__(self, generate: Generate, query: Query) -> Answers:
        first = 1 if query.messages[0]["role"] == "system" else 0
        messages = [*query.messages[:first], *self.examples, *query.messages[first:]]
        return generate(replace(query, messages=messages))
