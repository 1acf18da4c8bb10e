"""What the engine is asked for and what it delivers, row by row: one request has one row per sample of its prompt."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from components.tokenizer.tokenizer import StreamDecoder, Tokenizer

Finish = Literal["stop", "length"]


class Constraint(Protocol):
    """What one row can say next; it sees every sampled token."""

    def allowed(self) -> Tensor:
        """(V,) bool, True on the tokens that can come next, among them the tokens that stop a complete answer."""
        ...

    def accept(self, token: int) -> None:
        """Adds the sampled token."""
        ...


class Scored(NamedTuple):
    """A token and its log-probability in nats; top: the likeliest tokens at its position, likeliest first."""

    token: int
    logprob: float
    top: Sequence[tuple[int, float]] = ()


class Piece(NamedTuple):
    """The next text of one of a prompt's samples.

    scored: its tokens, if asked for; finish: why the sample ends with this piece.
    """

    sample: int
    text: str
    scored: Sequence[Scored] = ()
    finish: Finish | None = None


class Failed(NamedTuple):
    """The request ends without an answer; late: it waited or ran out of its time."""

    message: str
    late: bool = False


Event = Piece | Failed


@dataclass(frozen=True)
class Options:
    """How a prompt is continued.

    temperature 0 takes the likeliest token; top_k 0 and top_p 1 keep the whole vocabulary. stop: texts that end a
    sample and are not part of it. top: None, or the number of likeliest tokens to report with each token's own
    log-probability, which is the model's at temperature 1 without filters. bias: added to the logits of tokens.
    Sample i takes token t from noise that depends on (seed, i, t) alone.
    """

    max_tokens: int
    n: int = 1
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    top: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(eq=False)
class Request:
    """One prompt to continue; deliver is called on the engine's thread and must not block.

    begins: whether the answer starts a text (see StreamDecoder). seconds: the longest time from now on; a sample that
    runs out of it ends with finish "length". constrain: makes the constraint of one sample.
    """

    prompt: Sequence[int]
    options: Options
    tokenizer: Tokenizer
    deliver: Callable[[Event], None]
    begins: bool = True
    seconds: float = float("inf")
    constrain: Callable[[], Constraint] | None = None
    show_special: bool = False
    canceled: bool = field(default=False, init=False)  # by any thread; the rows leave before the next token
    cached: int = field(default=0, init=False)  # tokens of the prompt that were not computed again
    sampled: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.born = time.monotonic()

    @property
    def text(self) -> list[int]:
        """Ids of the prompt."""
        return list(self.prompt)

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt)

    @property
    def longest(self) -> int:
        """The tokens of the prompt and the longest answer."""
        return len(self.prompt) + self.options.max_tokens

    @property
    def late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() - self.born > self.seconds


class Row:
    """One sample: its tokens so far, and the text that has not been delivered because it can become a stop text."""

    def __init__(self, request: Request, index: int) -> None:
        self.request, self.index, self.options = request, index, request.options
        self.constraint = request.constrain() if request.constrain else None
        self.ids: list[int] = []
        self.joined = 0  # tokens that it had when it joined the running rows
        self.counts: Counter[int] = Counter()
        self.finish: Finish | None = None
        self._decoder = StreamDecoder(request.tokenizer, not request.show_special, begins=request.begins)
        self._stop_ids = frozenset(request.tokenizer.stop_ids)
        self._held = ""
        self._start = 0  # of the held text, in characters of the whole text
        self._scored: list[tuple[int, Scored]] = []  # tokens not delivered, by the character at which each starts

    @property
    def text(self) -> list[int]:
        """Ids of the prompt and the answer so far."""
        return [*self.request.prompt, *self.ids]

    @property
    def length(self) -> int:
        """Tokens of the prompt and the answer so far."""
        return len(self.request.prompt) + len(self.ids)

    @property
    def canceled(self) -> bool:
        return self.request.canceled

    @property
    def late(self) -> bool:
        return self.request.late

    def push(self, scored: Scored) -> None:
        """Adds a sampled token and delivers what is certain; `finish` is set if the sample ends with it."""
        token, request = scored.token, self.request
        self.ids.append(token)
        self.counts[token] += 1
        request.sampled += 1
        if token in self._stop_ids:
            self.end("stop")
            return
        if self.constraint is not None:
            self.constraint.accept(token)
        self._scored.append((self._start + len(self._held), scored))
        self._held += self._decoder.push(token)
        if self._stopped():
            return
        if len(self.ids) == self.options.max_tokens:
            self.end("length")
        elif certain := len(self._held) - self._open_stop():
            self._deliver(certain)

    def end(self, finish: Finish) -> None:
        """Delivers the rest, and that it was the last."""
        self._held += self._decoder.flush()
        if not self._stopped():
            self.finish = finish
            self._deliver(len(self._held))

    def _stopped(self) -> bool:
        """Ends the sample before the first stop text in the held text, if there is one."""
        found = [place for text in self.options.stop if (place := self._held.find(text)) >= 0]
        if found:
            self.finish = "stop"
            self._held = self._held[: min(found)]
            self._scored = [entry for entry in self._scored if entry[0] < self._start + min(found)]
            self._deliver(min(found))
        return bool(found)

    def _open_stop(self) -> int:
        """The number of characters at the end of the held text with which a stop text can begin."""
        longest = max(map(len, self.options.stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(text.startswith(self._held[-length:]) for text in self.options.stop):
                return length
        return 0

    def _deliver(self, count: int) -> None:
        text, self._held = self._held[:count], self._held[count:]
        self._start += count
        ready = len(self._scored)
        if self.finish is None:
            ready = sum(start < self._start for start, _ in self._scored)
        scored = [one for _, one in self._scored[:ready]]
        del self._scored[:ready]
        if text or scored or self.finish:
            wanted = scored if self.options.top is not None else ()
            self.request.deliver(Piece(self.index, text, wanted, self.finish))
