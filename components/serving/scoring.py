"""Scores of answers by a served reward model, for techniques that choose among samples."""

from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial

from components.prompting.best_of import Score, Scored
from components.prompting.technique import Message, Tokens
from components.serving.answering import busy
from components.serving.api_errors import too_long
from components.serving.engine import Busy, Engine
from components.serving.served import Served


def scorer_of(engine: Engine, served: Served, writer: Executor) -> Score:
    """A reward model as what best_of_n scores by. writer: see EngineGenerator."""

    def score(messages: Sequence[Message], answers: Sequence[str]) -> Scored:
        conversations = [[*messages, {"role": "assistant", "content": answer}] for answer in answers]
        read = [writer.submit(served.chat_ids, conversation).result() for conversation in conversations]
        longest = max(map(len, read))
        if longest > served.room:
            raise too_long(served.room, longest, 0, "messages")
        try:
            scores = [engine.call(partial(served.reward, ids)).result() for ids in read]
        except Busy as error:
            raise busy(error) from None
        return Scored(scores, Tokens(read=sum(map(len, read))))

    return score
