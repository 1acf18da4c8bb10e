"""The tokenizer a model is trained with: text, documents and conversations ↔ ids."""

import codecs
import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from components.tokenizer import folder as folders
from components.tokenizer.codec import Codec, Segment, TemplateError, TokenizerError
from components.tokenizer.date import DAY
from components.tokenizer.template import DEFAULT_TEMPLATE, ChatTemplate
from components.tokenizer.turns import THINKING, Answer, Writer, has_thinking

PROBE_TURNS = tuple({"role": role, "content": f"Probe {n} <&> \n"} for n, role in enumerate(("user", "assistant") * 2))


class Rendered(NamedTuple):
    """A conversation as ids; mask is True where the assistant speaks, its end of turn included."""

    ids: list[int]
    mask: list[bool]


class Tokenizer:
    """A codec and a chat template: made here, or somebody else's.

    vocab_size    highest id + 1
    pad_id, bos_id; bos_id may be None: then a document has no beginning
    eos_id        end of a document
    end_id        end of a turn: the first special piece that the template writes after an assistant's message
    prefill       what the template's prompts write of the answer itself, such as "<think>\n"; "" for most
    stop_ids      what ends a sampled text: end_id, eos_id, and further ones that the model's folder names
    byte_lengths  per id, the UTF-8 bytes it stands for (specials 0); over a text's ids they sum to its bytes, or
                  to one more where the tokenizer puts a space before a text (Llama 2)
    fingerprint   SHA-256 of what decides the ids of texts and chats, in hexadecimal
    Raises TokenizerError for a codec or a template that cannot keep these promises; a template that was not made
    here is refused when a chat is rendered, so that its tokenizer can still read and write text.
    """

    def __init__(self, codec: Codec, chat_template: str = DEFAULT_TEMPLATE, more_stop_ids: Sequence[int] = ()) -> None:
        self.codec = codec
        self.chat_template = chat_template
        self.vocab_size = len(codec.pieces)
        self.pad_id, self.bos_id, self.eos_id = codec.pad_id, codec.bos_id, codec.eos_id
        self.byte_lengths = [len(spelling) for spelling in codec.spelling]
        dated = DAY if "strftime_now" in chat_template else ""
        self.fingerprint = hashlib.sha256(codec.identity + chat_template.encode() + dated.encode()).hexdigest()
        self.end_id, self.prefill = self.eos_id, ""
        self._specials = set(codec.special_ids.values())
        self._refusal: str | None = None
        try:
            self._template = ChatTemplate(chat_template, codec.special_tokens)
            self._prompt_text = self._find_prompt_text()
            self.end_id = self._find_end_of_turn()
            self._writer = self._make_writer()
            self._check_template()
        except TokenizerError as error:
            if codec.strict:
                raise
            self._refusal = str(error)
        self._more_stop_ids = tuple(more_stop_ids)
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((self.end_id, self.eos_id, *more_stop_ids)))

    def __reduce__(self):
        return Tokenizer, (self.codec, self.chat_template, self._more_stop_ids)  # so that workers can be given one

    def encode(self, text: str) -> list[int]:
        """Ids of a text: no special is added and none can be produced, whatever the text spells.

        Raises TokenizerError for a lone surrogate.
        """
        return self.codec.encode(text)

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """`encode` of each text, in one call; the ids do not depend on num_threads."""
        return self.codec.encode_batch(texts, num_threads)

    def document(self, text: str) -> list[int]:
        """Ids of a whole document: bos, the text, eos."""
        return [*self.beginning, *self.encode(text), self.eos_id]

    @property
    def beginning(self) -> list[int]:
        """What stands before every text: bos, or nothing where the tokenizer has none."""
        return [] if self.bos_id is None else [self.bos_id]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids; specials are left out, or shown by name. Bytes that are no UTF-8 become U+FFFD; an id without a
        piece spells nothing.

        Raises TokenizerError for a negative id.
        """
        return self.codec.decode(ids, skip_special)

    def unused_ids(self, size: int) -> tuple[int, ...]:
        """The ids below `size`, a model's number of rows, that stand for no piece."""
        pieces = self.codec.pieces
        return tuple(i for i in range(size) if i >= len(pieces) or not pieces[i])

    def render(self, messages: Sequence[Mapping], tools: Sequence[Mapping] | None = None) -> Rendered:
        """A conversation by the chat template: the last of its `examples`, which has the whole of it."""
        return self._rendered(messages) if self._is_plain(messages, tools) else self._unrolled(messages, tools)[-1]

    def examples(self, messages: Sequence[Mapping], tools: Sequence[Mapping] | None = None) -> list[Rendered]:
        """A conversation by the chat template, in as many parts as it takes for every answer to stand once after the
        very prompt that asks for it: one, unless the template rewrites earlier answers (drops their thinking).

        messages: {"role", "content"}: at most one system message, first, then user and assistant in turns, messages
        of "tool" between two of the assistant's; further tool_calls and reasoning_content, and weight 0 for an
        answer that is no target. tools: what the assistant may call.
        The assistant's is all that stands after what a prompt would end with, up to the end of turn: the ids of
        the template's text around the content (a space, " </s>") are what it has to write too. A token that
        begins in the prompt is the prompt's; where it reaches into the content with more than white space (as
        "\n" + "\nyes" does not), the mask would lose a word, and that is an error.
        Raises TokenizerError for other messages, or where the template refuses, alters or leaves out something.
        """
        return [self.render(messages)] if self._is_plain(messages, tools) else self._unrolled(messages, tools)

    def _is_plain(self, messages: Sequence[Mapping], tools: Sequence[Mapping] | None) -> bool:
        """Whether contents without thinking are all there is to write, and the template rewrites none of them."""
        return self._is_content(messages, tools) and not has_thinking(messages)

    def _is_content(self, messages: Sequence[Mapping], tools: Sequence[Mapping] | None) -> bool:
        if self._refusal is not None:
            raise TemplateError(
                f"{self._refusal}. Put another template into the tokenizer's folder, as {folders.TEMPLATE_FILE}"
            )
        self._template.check(messages)
        further = any("tool_calls" in message or "reasoning_content" in message for message in messages)
        return not (self._rewrites or tools or further or any(message["role"] == "tool" for message in messages))

    def _unrolled(self, messages: Sequence[Mapping], tools: Sequence[Mapping] | None) -> list[Rendered]:
        if self._is_content(messages, tools):
            with suppress(TokenizerError):  # where the template changes no thinking
                return [self._rendered(messages)]
        return [self._masked(*example) for example in self._writer.examples(messages, tools)]

    def _rendered(self, messages: Sequence[Mapping]) -> Rendered:
        segments = self._template.segments(messages, add_generation_prompt=False)
        ids, starts = self.codec.encode_segments(segments)
        mask = [False] * len(ids)
        place = 0
        weights = iter([message.get("weight", 1) for message in messages if message["role"] == "assistant"])
        for number, (text, role) in enumerate(segments):
            if role == "assistant":
                header, after = segments[number - 1].text, segments[number + 1].text
                begin = place - len(header) + self._length_of_prompt(header)
                first = bisect_left(starts, begin)
                self._check_border(starts, first, begin, "".join(segment.text for segment in segments))
                stop = bisect_left(starts, place + len(text) + len(after))
                ends = (t for t in range(first, stop) if starts[t] >= place + len(text) and ids[t] in self._specials)
                end = next(ends, None)
                if end is None or ids[end] != self.end_id:
                    raise TokenizerError("the chat template must end every assistant's message the same way")
                mask[first : end + 1] = [next(weights) != 0] * (end + 1 - first)
            place += len(text)
        return Rendered(ids, mask)

    def _masked(self, segments: Sequence[Segment], answers: Sequence[Answer]) -> Rendered:
        ids, starts = self.codec.encode_segments(segments)
        mask, text = [False] * len(ids), "".join(segment.text for segment in segments)
        for begin, stop, counts in answers:
            first, end = bisect_left(starts, begin), bisect_left(starts, stop)
            self._check_border(starts, first, begin, text)
            mask[first:end] = [counts] * (end - first)
        return Rendered(ids, mask)

    def _check_border(self, starts: Sequence[int], first: int, begin: int, text: str) -> None:
        """Raises TokenizerError where the token before `first` reaches past `begin` into more than white space."""
        reached = text[begin : starts[first] if first < len(starts) else len(text)]
        if reached.strip():
            raise TokenizerError(
                f"with add_generation_prompt the chat template must write what stands before an assistant's message, "
                f"and end where a token ends; here one token holds the end of the prompt and {reached!r} of the "
                "answer, so it can belong to neither. Let the prompt end without a space, or with a special piece"
            )

    def render_prompt(self, messages: Sequence[Mapping], tools: Sequence[Mapping] | None = None) -> list[int]:
        """Ids of a conversation that waits for the assistant: it ends with the assistant's header, and with what the
        template writes of the answer itself (`prefill`).

        Raises TokenizerError as `examples` does, and where the last message is not the user's or a tool's.
        """
        segments = None
        if self._is_content(messages, tools):
            try:
                segments = self._template.segments(messages, add_generation_prompt=True)
            except TokenizerError:
                if not has_thinking(messages):
                    raise
        if messages[-1]["role"] not in ("user", "tool"):
            raise TokenizerError("a prompt ends with the user's message; the last is the assistant's")
        return self.codec.encode_segments(segments or self._writer.prompt(messages, tools)).ids

    def answer(self, said: str | Mapping, tools: Sequence[Mapping] | None = None) -> list[int]:
        """Ids of what the assistant writes after a prompt to say a text (or a message), its end of turn included.

        Raises TokenizerError as `examples` does.
        """
        message = {"role": "assistant", "content": said} if isinstance(said, str) else said
        ids, mask = self.render([PROBE_TURNS[0], message], tools)
        return [token for token, spoken in zip(ids, mask, strict=True) if spoken]

    def _length_of_prompt(self, text: str) -> int:
        """Characters at the start of the template's text before an assistant's message that a prompt has too."""
        if not text.startswith(self._prompt_text):
            raise TokenizerError(
                "with add_generation_prompt the chat template must write what stands before an assistant's "
                f"message; that is {text!r} here, and it wrote {self._prompt_text!r}"
            )
        return len(self._prompt_text)

    def _find_prompt_text(self) -> str:
        return self._template.segments(PROBE_TURNS[:1], add_generation_prompt=True)[-1].text

    def _find_end_of_turn(self) -> int:
        after = self._template.segments(PROBE_TURNS[:2], add_generation_prompt=False)[-1]
        for token in self.codec.encode_segments([after]).ids:
            if token in self._specials:
                return token
        raise TokenizerError(
            "the chat template must write a special piece after an assistant's message, to end its turn; it "
            f"writes {after.text!r}"
        )

    def _make_writer(self) -> Writer:
        """Also finds out whether the template rewrites earlier turns, and sets `prefill`."""
        first, asked, whole = (self._probed(*which) for which in ((1, True), (3, True), (4, False)))
        segments = self._template.segments(PROBE_TURNS[:2], add_generation_prompt=False)
        answered = "".join(segment.text for segment in segments[:-1])
        header = answered.removesuffix(segments[-2].text)
        if first.startswith(header) and THINKING.match(first[len(header) :]):
            self.prefill = first.removeprefix(header)
        goes_on = answered.startswith(first)
        self._rewrites = bool(self.prefill) or (
            goes_on and not (asked.startswith(answered) and whole.startswith(asked))
        )
        end = self.codec.pieces[self.end_id]
        return Writer(
            self._template,
            list(self.codec.special_ids),
            end=end,
            closing=segments[-1].text,
            prefill=self.prefill,
            cuts=self.codec.strict,
        )

    def _probed(self, count: int, generation: bool) -> str:
        segments = self._template.segments(PROBE_TURNS[:count], add_generation_prompt=generation)
        return "".join(segment.text for segment in segments)

    def _check_template(self) -> None:
        """Raises TokenizerError unless a chat goes on from its prompt and, if made here, begins with its only bos."""
        made = self.examples(PROBE_TURNS)
        ids = made[-1].ids
        bos = self.bos_id
        if self.codec.strict and bos is not None and (ids[0] != bos or ids.count(bos) != 1):
            raise TokenizerError(
                f"the chat template must write {self.codec.pieces[bos]} once, at the start; "
                f"it wrote {self.decode(ids, skip_special=False)!r}"
            )
        ids, mask = made[0]
        prompt, first = self.render_prompt(PROBE_TURNS[:1]), mask.index(True)
        written = ids[first : [*mask, False].index(False, first)]
        header = [i for i in written[:-1] if i in self._specials and not THINKING.fullmatch(self.codec.pieces[i])]
        if prompt != ids[:first] or header:
            raise TokenizerError(
                "with add_generation_prompt the chat template must write what stands before an assistant's "
                f"message; it wrote {self.decode(prompt, skip_special=False)!r}, and a whole chat is "
                f"{self.decode(ids, skip_special=False)!r}"
            )

    def save(self, folder: str | Path, *, reads_chats: bool = False) -> None:
        """Writes a folder that transformers' AutoTokenizer reads: equal ids, equal chats.

        reads_chats: as a reward model's, transformers' `tokenizer(text)` adds no bos, for the text is what the template
        wrote. That holds for tokenizers made here; others keep what their makers put around a text, so there
        `tokenizer(text, add_special_tokens=False)` is needed.

        transformers reads a special's name in plain text as the special itself. The files cannot forbid that,
        or chat templates would lose theirs: give its encode `split_special_tokens=True` for untrusted text,
        its apply_chat_template `sanitize_control_tokens=True`. Of a tokenizer made here it also reads U+2581 as
        a space. A template that writes the date writes today's there (see date.py).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.codec.files(self.chat_template, reads_chats=reads_chats).items():
            (folder / name).write_bytes(content)

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Reads what `save` wrote, or a tokenizer's folder made by others (see folder.py).

        Raises TokenizerError naming the file at fault.
        """
        try:
            codec, template, stop_ids = folders.read(Path(folder))
            try:
                return cls(codec, template, stop_ids)
            except TokenizerError as error:
                raise TokenizerError(f"{folder}: its chat template: {error}") from error
        except UnicodeDecodeError as error:  # sentencepiece hands on the bytes of a damaged piece
            raise TokenizerError(f"{folder}: its tokenizer.model is damaged: {error}") from error


class StreamDecoder:
    """Text of ids that come one at a time; a character is held back until its last byte is there.

    begins: the ids begin a text, so that the space which some tokenizers put before one is dropped as in `decode`;
    False where they go on from another text.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True, *, begins: bool = True) -> None:
        self._codec = tokenizer.codec
        self._skip_special = skip_special
        self._drop_space = begins and tokenizer.codec.leads_with_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that one more id makes certain, often "" inside a character."""
        spelled = self._codec.bytes_of(token_id, self._skip_special)
        if spelled and self._drop_space:
            self._drop_space = False
            spelled = spelled.removeprefix(b" ")
        return self._utf8.decode(spelled)

    def flush(self) -> str:
        """What was held back: U+FFFD if the ids ended inside a character. All texts joined equal `decode`."""
        return self._utf8.decode(b"", final=True)
