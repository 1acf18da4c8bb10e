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
    """A conversation as ids; mask is True on the assistant's tokens, including its end of turn."""

    ids: list[int]
    mask: list[bool]


class Tokenizer:
    """A codec and a chat template, made here or elsewhere.

    vocab_size    highest id + 1
    pad_id, bos_id; bos_id can be None, in which case a document has no beginning
    eos_id        end of a document
    end_id        end of a turn: the first special token that the template writes after an assistant's message
    prefill       the start of the answer that the template's prompts include, such as "<think>\n"; "" for most
    stop_ids      ids that end a sampled text: end_id, eos_id, and others that the model's folder names
    byte_lengths  per id, the number of UTF-8 bytes it stands for (special tokens 0); over a text's ids they sum to its
                  bytes, or to one more if the tokenizer puts a space before a text (Llama 2)
    fingerprint   SHA-256 of what determines the ids of texts and chats, in hex
    Raises TokenizerError for a codec or a template that cannot meet this contract. A template from elsewhere is
    rejected only when a chat is rendered, so that its tokenizer can still encode and decode text.
    """

    def __init__(self, codec: Codec, chat_template: str = DEFAULT_TEMPLATE, more_stop_ids: Sequence[int] = ()) -> None:
        self.codec = codec
        self.chat_template = chat_template
        self.vocab_size = len(codec.tokens)
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
        return Tokenizer, (self.codec, self.chat_template, self._more_stop_ids)  # pickled for workers

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens, whatever the text contains.

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
        """The ids before every text: bos, or nothing if the tokenizer has none."""
        return [] if self.bos_id is None else [self.bos_id]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids; special tokens are skipped, or shown by name. Bytes that are not UTF-8 become U+FFFD; an id
        without a piece adds nothing.

        Raises TokenizerError for a negative id.
        """
        return self.codec.decode(ids, skip_special)

    def unused_ids(self, size: int) -> tuple[int, ...]:
        """The ids below `size`, a model's number of rows, that have no piece."""
        pieces = self.codec.tokens
        return tuple(i for i in range(size) if i >= len(pieces) or not pieces[i])

    def render(self, messages: Sequence[Mapping], tools: Sequence[Mapping] | None = None) -> Rendered:
        """A conversation by the chat template: the last of its `examples`, which contains all of it."""
        return self._rendered(messages) if self._is_plain(messages, tools) else self._unrolled(messages, tools)[-1]

    def examples(self, messages: Sequence[Mapping], tools: Sequence[Mapping] | None = None) -> list[Rendered]:
        """A conversation by the chat template, in the smallest number of examples such that each answer appears once,
        after its exact prompt: one, unless the template rewrites earlier answers (drops their thinking).

        messages: {"role", "content"}: at most one system message, first, then user and assistant in turns, with "tool"
        messages between two of the assistant's; optionally tool_calls and reasoning_content, and weight 0 for an answer
        that is not a target. tools: the functions that the assistant can call.
        The assistant's tokens are all those after the end of its prompt, up to the end of turn: they include the
        template's text around the content (a space, " </s>"), which the model has to generate too. A token that starts
        in the prompt belongs to the prompt; if it extends into the content by more than white space (as "\n" + "\nyes"
        does not), the mask would lose a word, which is an error.
        Raises TokenizerError for other messages, or if the template rejects, changes or omits something.
        """
        return [self.render(messages)] if self._is_plain(messages, tools) else self._unrolled(messages, tools)

    def _is_plain(self, messages: Sequence[Mapping], tools: Sequence[Mapping] | None) -> bool:
        """Whether the messages are only contents without thinking, and the template rewrites none of them."""
        return self._is_content(messages, tools) and not has_thinking(messages)

    def _is_content(self, messages: Sequence[Mapping], tools: Sequence[Mapping] | None) -> bool:
        if self._refusal is not None:
            raise TemplateError(
                f"{self._refusal}. Put another template into the tokenizer's folder, as {folders.TEMPLATE_FILE}"
            )
        self._template.check(messages)
        more = any("tool_calls" in message or "reasoning_content" in message for message in messages)
        return not (self._rewrites or tools or more or any(message["role"] == "tool" for message in messages))

    def _unrolled(self, messages: Sequence[Mapping], tools: Sequence[Mapping] | None) -> list[Rendered]:
        if self._is_content(messages, tools):
            with suppress(TokenizerError):  # if the template does not change the thinking
                return [self._rendered(messages)]
        return [self._masked(*example) for example in self._writer.examples(messages, tools)]

    def _rendered(self, messages: Sequence[Mapping]) -> Rendered:
        segments = self._template.segments(messages, add_generation_prompt=False)
        ids, starts = self.codec.encode_segments(segments)
        mask = [False] * len(ids)
        position = 0
        weights = iter([message.get("weight", 1) for message in messages if message["role"] == "assistant"])
        for number, (text, role) in enumerate(segments):
            if role == "assistant":
                header, after = segments[number - 1].text, segments[number + 1].text
                begin = position - len(header) + self._length_of_prompt(header)
                first = bisect_left(starts, begin)
                self._check_border(starts, first, begin, "".join(segment.text for segment in segments))
                stop = bisect_left(starts, position + len(text) + len(after))
                ends = (t for t in range(first, stop) if starts[t] >= position + len(text) and ids[t] in self._specials)
                end = next(ends, None)
                if end is None or ids[end] != self.end_id:
                    raise TokenizerError("the chat template must end every assistant's message the same way")
                mask[first : end + 1] = [next(weights) != 0] * (end + 1 - first)
            position += len(text)
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
        """Raises TokenizerError if the token before `first` extends past `begin` over more than white space."""
        reached = text[begin : starts[first] if first < len(starts) else len(text)]
        if reached.strip():
            raise TokenizerError(
                "with add_generation_prompt the chat template must write the text before an assistant's message, and "
                f"end at a token boundary; one token contains the end of the prompt and {reached!r} of the answer, so "
                "it can belong to neither. Let the prompt end without a space, or with a special token"
            )

    def render_prompt(self, messages: Sequence[Mapping], tools: Sequence[Mapping] | None = None) -> list[int]:
        """Ids of a conversation up to the assistant's turn: it ends with the assistant's header, and with the start of
        the answer that the template writes (`prefill`).

        Raises TokenizerError as `examples` does, and if the last message is not the user's or a tool's.
        """
        segments = None
        if self._is_content(messages, tools):
            try:
                segments = self._template.segments(messages, add_generation_prompt=True)
            except TokenizerError:
                if not has_thinking(messages):
                    raise
        if messages[-1]["role"] not in ("user", "tool"):
            raise TokenizerError("a prompt must end with the user's message, but the last one is the assistant's")
        return self.codec.encode_segments(segments or self._writer.prompt(messages, tools)).ids

    def answer(self, text: str | Mapping, tools: Sequence[Mapping] | None = None) -> list[int]:
        """Ids that the assistant generates after a prompt for a text (or a message), including its end of turn.

        Raises TokenizerError as `examples` does.
        """
        message = {"role": "assistant", "content": text} if isinstance(text, str) else text
        ids, mask = self.render([PROBE_TURNS[0], message], tools)
        return [token for token, is_answer in zip(ids, mask, strict=True) if is_answer]

    def _length_of_prompt(self, text: str) -> int:
        """Number of characters of the template's text before an assistant's message that a prompt also has."""
        if not text.startswith(self._prompt_text):
            raise TokenizerError(
                "with add_generation_prompt the chat template must write the text before an assistant's "
                f"message; that is {text!r} here, but it wrote {self._prompt_text!r}"
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
            "the chat template must write a special token after an assistant's message, to end its turn; it "
            f"writes {after.text!r}"
        )

    def _make_writer(self) -> Writer:
        """Also determines whether the template rewrites earlier turns, and sets `prefill`."""
        first, second, whole = (self._probed(*turns) for turns in ((1, True), (3, True), (4, False)))
        segments = self._template.segments(PROBE_TURNS[:2], add_generation_prompt=False)
        answered = "".join(segment.text for segment in segments[:-1])
        header = answered.removesuffix(segments[-2].text)
        if first.startswith(header) and THINKING.match(first[len(header) :]):
            self.prefill = first.removeprefix(header)
        continues = answered.startswith(first)
        self._rewrites = bool(self.prefill) or (
            continues and not (second.startswith(answered) and whole.startswith(second))
        )
        end = self.codec.tokens[self.end_id]
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
        """Raises TokenizerError unless a chat continues its prompt and, if made here, starts with its only bos."""
        made = self.examples(PROBE_TURNS)
        ids = made[-1].ids
        bos = self.bos_id
        if self.codec.strict and bos is not None and (ids[0] != bos or ids.count(bos) != 1):
            raise TokenizerError(
                f"the chat template must write {self.codec.tokens[bos]} once, at the start; "
                f"it wrote {self.decode(ids, skip_special=False)!r}"
            )
        ids, mask = made[0]
        prompt, first = self.render_prompt(PROBE_TURNS[:1]), mask.index(True)
        written = ids[first : [*mask, False].index(False, first)]
        header = [i for i in written[:-1] if i in self._specials and not THINKING.fullmatch(self.codec.tokens[i])]
        if prompt != ids[:first] or header:
            raise TokenizerError(
                "with add_generation_prompt the chat template must write the text before an assistant's "
                f"message; it wrote {self.decode(prompt, skip_special=False)!r}, but a whole chat is "
                f"{self.decode(ids, skip_special=False)!r}"
            )

    def save(self, folder: str | Path, *, reads_chats: bool = False) -> None:
        """Writes a folder that transformers' AutoTokenizer reads, with equal ids and equal chats.

        reads_chats: for a reward model, transformers' `tokenizer(text)` adds no bos, since the template wrote the text.
        This applies to tokenizers made here; others keep what their authors add around a text, so they need
        `tokenizer(text, add_special_tokens=False)`.

        transformers reads a special token's name in plain text as that token. The files cannot prevent this, or chat
        templates would lose theirs: for untrusted text, pass `split_special_tokens=True` to its encode and
        `sanitize_control_tokens=True` to its apply_chat_template. With a tokenizer made here, it also reads U+2581 as a
        space. A template that writes the date writes today's there (see date.py).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.codec.files(self.chat_template, reads_chats=reads_chats).items():
            (folder / name).write_bytes(content)

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Reads what `save` wrote, or a tokenizer's folder from elsewhere (see folder.py).

        Raises TokenizerError naming the faulty file.
        """
        try:
            codec, template, stop_ids = folders.read(Path(folder))
            try:
                return cls(codec, template, stop_ids)
            except TokenizerError as error:
                raise TokenizerError(f"{folder}: its chat template: {error}") from error
        except UnicodeDecodeError as error:  # sentencepiece does not check the bytes of a damaged piece
            raise TokenizerError(f"{folder}: its tokenizer.model is damaged: {error}") from error


class StreamDecoder:
    """Text of ids that arrive one at a time; a character is held back until its last byte arrives.

    begins: whether the ids start a text, in which case the space that some tokenizers put before it is dropped, as in
    `decode`; False if they continue another text.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True, *, begins: bool = True) -> None:
        self._codec = tokenizer.codec
        self._skip_special = skip_special
        self._drop_space = begins and tokenizer.codec.leads_with_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that one more id completes, often "" inside a character."""
        spelled = self._codec.bytes_of(token_id, self._skip_special)
        if spelled and self._drop_space:
            self._drop_space = False
            spelled = spelled.removeprefix(b" ")
        return self._utf8.decode(spelled)

    def flush(self) -> str:
        """The text held back: U+FFFD if the ids ended inside a character. All texts concatenated equal `decode`."""
        return self._utf8.decode(b"", final=True)
