"""One conversation: its history, the part of it that the model sees, and the streamed answer."""

import math
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from components.functional.seeding import derived_seed, seeded
from components.generation.generate import Sampling, stream
from components.models.heads import CausalLM
from components.prompting.technique import Step, Tokens
from components.serving.chat_techniques import ChatTechniques
from components.serving.rows import Options
from components.tokenizer.tokenizer import StreamDecoder, Tokenizer

SETTINGS = ("temperature", "top_p", "max_new_tokens", "seed")  # that can be changed during a chat
ANSWER_SHARE = 4  # at least 1/4 of the context is reserved for an answer, unless max_new_tokens is less


class Turn(NamedTuple):
    """A question and its answer, as far as it was generated."""

    user: str
    assistant: str


class Answer(NamedTuple):
    """An answer in progress. chunks: text as it is sampled; when they end, or are closed early, the turn is added to
    the history.

    forgotten: number of oldest turns permanently dropped for this answer because the context is full.
    """

    chunks: Iterator[str]
    forgotten: int


class ChatSession:
    """A conversation with a model that takes the assistant's part.

    max_new_tokens: longest answer in tokens; None: as long as the context allows.
    base: no template and no history: the model continues the given text verbatim, as in pretraining.
    Answer n is sampled from (seed, n) alone: the same conversation with the same seed has the same answers.
    turns, system, base and seed can be changed at any time; cut is whether the last answer ran out of room, trace how
    techniques came to it, and spent the tokens that they took, None without techniques.
    Raises ValueError for invalid sampling settings, or a tokenizer larger than the model's vocabulary.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        *,
        seed: int,
        temperature: float = 0.7,
        top_p: float = 1.0,
        max_new_tokens: int | None = None,
        base: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.seed, self.base = model, tokenizer, seed, base
        self.context = model.config.longest
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {model.config.vocab_size}: "
                "they do not belong together"
            )
        self.max_new_tokens = self.context
        if max_new_tokens is not None:
            self.set("max_new_tokens", max_new_tokens)
        self.set("top_p", top_p)
        self.set_temperature(temperature)
        self.system: str | None = None
        self.turns: list[Turn] = []
        self.cut = False
        self.techniques = ChatTechniques(model, tokenizer)
        self.trace: tuple[Step, ...] = ()
        self.spent: Tokens | None = None
        self._continued: str | None = None  # the last text of base mode
        self._answers = 0

    def set_temperature(self, temperature: float) -> None:
        """0 takes the likeliest token. Raises ValueError for a negative or infinite temperature."""
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature: expected a finite number of at least 0, got {temperature}")
        self.temperature = temperature

    def set(self, name: str, value: float) -> None:
        """Changes one of SETTINGS, starting with the next answer. Raises ValueError for an invalid value or an unknown
        name."""
        if name == "temperature":
            self.set_temperature(value)
        elif name == "top_p":
            if not 0 < value <= 1:
                raise ValueError(f"top_p: expected a number in (0, 1], got {value}")
            self.top_p = value
        elif name in SETTINGS:
            least = 1 if name == "max_new_tokens" else 0
            if not (float(value).is_integer() and value >= least):
                raise ValueError(f"{name}: expected a whole number of at least {least}, got {value}")
            setattr(self, name, int(value))
        else:
            raise ValueError(f"{name}: expected one of {', '.join(SETTINGS)}")

    def messages(self, turns: list[Turn] | None = None) -> list[dict[str, str]]:
        """The system text and turns in the format of a chat record; None: all turns."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns if turns is None else turns:
            messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.assistant}]
        return messages

    def reset(self) -> None:
        """Clears the history; the system text stays."""
        self.turns = []
        self._continued = None

    def ask(self, text: str) -> Answer:
        """The model's answer to a message (in base mode: its continuation of the text).

        Raises ValueError if the message does not fit in the context even without the history.
        """
        return self._continue(text) if self.base else self._reply(text, self.turns)

    def retry(self) -> Answer:
        """A new answer to the last message, replacing the previous one. Raises ValueError if there is no message."""
        if self.base and self._continued is not None:
            return self._continue(self._continued)
        if self.base or not self.turns:
            raise ValueError("there is no message to answer again yet")
        return self._reply(self.turns[-1].user, self.turns[:-1])

    @property
    def retried_text(self) -> str | None:
        """The text that `retry` would answer."""
        if self.base:
            return self._continued
        return self.turns[-1].user if self.turns else None

    def _continue(self, text: str) -> Answer:
        prompt = [*self.tokenizer.beginning, *self.tokenizer.encode(text)]
        if not prompt:
            raise ValueError("this tokenizer has no beginning-of-text token: write at least one character to continue")
        self._check_fits(prompt)
        self._continued = text
        return Answer(self._sample(prompt), 0)

    def _reply(self, text: str, turns: list[Turn]) -> Answer:
        kept = list(turns)
        prompt = self._prompt(kept, text)
        while kept and len(prompt) > self._room():
            kept.pop(0)
            prompt = self._prompt(kept, text)
        self._check_fits(prompt)
        if self.techniques.techniques:
            sampled = self._by_techniques(kept, text)
        else:
            sampled = chain(filter(None, [self.tokenizer.prefill]), self._sample(prompt))
        return Answer(self._record(kept, text, sampled), len(turns) - len(kept))

    def _record(self, turns: list[Turn], text: str, sampled: Iterator[str]) -> Iterator[str]:
        """The answer's chunks; however they end, the text so far is added to the history, unless an error comes before
        any."""
        chunks: list[str] = []
        failed = False
        try:
            for piece in sampled:
                chunks.append(piece)
                yield piece
        except ValueError:
            failed = True
            raise
        finally:
            if chunks or not failed:
                self.turns = [*turns, Turn(text, "".join(chunks))]

    def _by_techniques(self, turns: list[Turn], text: str) -> Iterator[str]:
        """The whole answer, as one chunk."""
        messages = [*self.messages(turns), {"role": "user", "content": text}]
        seed = derived_seed(self.seed, self._answers)
        self._answers += 1
        options = Options(self.max_new_tokens, seed=seed, temperature=self.temperature, top_p=self.top_p)
        answer, self.spent = self.techniques.answer(messages, options)
        self.cut, self.trace = not answer.finished, answer.trace
        yield answer.text

    def _sample(self, prompt: list[int]) -> Iterator[str]:
        """Text sampled after a prompt, in chunks that never end inside a character."""
        room = min(self.max_new_tokens, self.context - len(prompt))
        sampling = Sampling(room, self.temperature, top_p=self.top_p)
        generator = seeded(next(self.model.parameters()).device, self.seed, self._answers)
        self._answers += 1
        self.cut, self.trace, self.spent = False, (), None
        decoder = StreamDecoder(self.tokenizer, begins=not self.base)
        count = 0
        for token in stream(self.model, prompt, sampling, stop_ids=self.tokenizer.stop_ids, generator=generator):
            count += 1
            if piece := decoder.push(token):
                yield piece
        self.cut = count == room
        if rest := decoder.flush():
            yield rest

    def _prompt(self, turns: list[Turn], text: str) -> list[int]:
        return self.tokenizer.render_prompt([*self.messages(turns), {"role": "user", "content": text}])

    def _room(self) -> int:
        """The number of tokens that a prompt can have."""
        return self.context - max(1, min(self.max_new_tokens, self.context // ANSWER_SHARE))

    def _check_fits(self, prompt: list[int]) -> None:
        if len(prompt) > self._room():
            what = "the text" if self.base else "the message" + (" with the system text" if self.system else "")
            raise ValueError(
                f"{what} takes {len(prompt)} tokens; the model's context of {self.context} leaves {self._room()} "
                "after reserving room for an answer. Shorten it"
            )
