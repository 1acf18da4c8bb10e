"""Votes on answers, kept at once as records that a reward model or KTO trains on.

`votes.jsonl` has comparisons ({"prompt", "completions", "ranks"}), for `stage=rm data.path=…`, and next to it
`thumbs.jsonl` answers labeled one by one ({"prompt", "completion", "label"}), for `stage=kto data=unpaired`.
"""

import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from components.data.records.errors import FormatError
from components.data.records.formats import preference
from components.data.records.labels import unpaired
from components.functional.bradley_terry import strengths
from components.serving.api_errors import invalid
from components.serving.protocol import Strict
from components.serving.served import message_of

Record = dict[str, Any]


class VotedAnswer(Strict):
    """An answer that was voted on, and the model that gave it."""

    model: str
    content: str


class VoteAsked(Strict):
    """POST /v1/votes with several answers: winner is the best one's index, or absent for a tie."""

    messages: Annotated[list[Record], Field(min_length=1)]
    answers: Annotated[list[VotedAnswer], Field(min_length=2, max_length=16)]
    winner: Annotated[int, Field(ge=0)] | None = None


class ThumbAsked(Strict):
    """POST /v1/votes with one answer: label is whether it is good."""

    messages: Annotated[list[Record], Field(min_length=1)]
    answer: VotedAnswer
    label: bool


class Votes:
    """The two files; add can be called from any thread, and a line is on the disk before it returns."""

    def __init__(self, file: Path) -> None:
        self.file, self.thumbs = file, file.with_name("thumbs.jsonl")
        self._lock = threading.Lock()

    def add(self, vote: VoteAsked | ThumbAsked) -> Record:
        """Keeps a vote and returns its record. Raises ApiError for one that could not be trained on."""
        prompt = [message_of(message, f"messages[{number}]") for number, message in enumerate(vote.messages)]
        record: Record = {"prompt": prompt}
        if isinstance(vote, VoteAsked):
            if vote.winner is not None and vote.winner >= len(vote.answers):
                raise invalid(f"winner: expected an index below {len(vote.answers)}", "winner")
            record["completions"] = [answer.content for answer in vote.answers]
            record["ranks"] = [int(vote.winner not in (None, number)) for number in range(len(vote.answers))]
            record["models"] = [answer.model for answer in vote.answers]
        else:
            record |= {"completion": vote.answer.content, "label": vote.label, "model": vote.answer.model}
        record["time"] = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            (preference if isinstance(vote, VoteAsked) else unpaired)(record)
        except FormatError as error:
            raise invalid(str(error)) from None
        self._append(self.file if isinstance(vote, VoteAsked) else self.thumbs, record)
        return record

    def table(self) -> Record:
        """How many votes there are, who of each pair of models won how often, and the models' strengths from that."""
        pairs: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        count = 0
        for record in _lines(self.file):
            count += 1
            models, ranks = record["models"], record["ranks"]
            for second in range(1, len(models)):
                for first in range(second):
                    one, other = sorted(((models[first], ranks[first]), (models[second], ranks[second])))
                    won = 2 if one[1] == other[1] else int(one[1] > other[1])
                    pairs[one[0], other[0]][won] += one[0] != other[0]
        listed = [
            {"models": list(names), "wins": won[:2], "ties": won[2]} for names, won in sorted(pairs.items()) if any(won)
        ]
        thumbs: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for record in _lines(self.thumbs):
            thumbs[record["model"]][not record["label"]] += 1
        return {
            "votes": count,
            "pairs": listed,
            "strengths": {model: found._asdict() for model, found in strengths(_wins(listed)).items()},
            "thumbs": {model: {"up": up, "down": down} for model, (up, down) in sorted(thumbs.items())},
        }

    def _append(self, file: Path, record: Record) -> None:
        line = json.dumps(record, ensure_ascii=False) + "\n"
        with self._lock:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as written:
                written.write(line)
                written.flush()
                os.fsync(written.fileno())


def is_thumb(body: bytes) -> bool:
    """Whether a vote is on a single answer."""
    return b'"answer"' in body and b'"answers"' not in body


def _wins(pairs: list[Record]) -> dict[tuple[str, str], float]:
    """Wins of the first against the second; a tie is half a win for each."""
    wins: dict[tuple[str, str], float] = {}
    for pair in pairs:
        first, second = pair["models"]
        wins[first, second], wins[second, first] = (won + pair["ties"] / 2 for won in pair["wins"])
    return wins


def _lines(file: Path) -> Iterator[Record]:
    if file.exists():
        with file.open(encoding="utf-8") as lines:
            yield from (json.loads(line) for line in lines if line.strip())
