"""The interface of all codecs, text ↔ ids, as the rest of the tokenizer uses it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol


class TokenizerError(ValueError):
    """A tokenizer's file, template, text or messages are invalid."""


class TemplateError(TokenizerError):
    """A chat template cannot be used with any messages."""


class Segment(NamedTuple):
    """A part of a rendered conversation: a message's content, or (role None) the template's own text."""

    text: str
    role: str | None


class Spans(NamedTuple):
    """Ids of joined segments; starts: for each id, the character of the joined text at which its token starts."""

    ids: list[int]
    starts: list[int]


def check_text(text: object, what: str) -> str:
    """Returns the text. Raises TokenizerError if it is not a string or contains a lone surrogate."""
    if not isinstance(text, str):
        raise TokenizerError(f"{what}: expected a string, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"{what}: character {error.start} is {text[error.start]!a}, half of a surrogate pair, so this is not "
            "valid Unicode. Read it again as UTF-8, or replace it: text.encode('utf-8', 'replace').decode()"
        ) from None
    return text


class Codec(Protocol):
    """Text ↔ ids. Text never produces a special id, whatever it contains; a template's own text can.

    tokens           by id, as in the vocabulary; "" for an unused id
    special_ids      of each special piece
    byte_ids         for each byte, the id of its fallback piece; empty for byte-level pieces
    spelling         by id, the UTF-8 bytes it adds to a text; empty for a special one
    pad_id, bos_id, eos_id, unknown_id; bos and unknown can be None
    special_tokens   bos_token and the like, by the name that templates use
    strict           made here: its chats start with their only bos, and a template that violates a requirement is
                     rejected at once instead of when a chat is rendered
    leads_with_space a text's first token includes a space that is not in the text: decode drops it
    identity         everything that determines ids, as bytes
    """

    tokens: list[str]
    special_ids: dict[str, int]
    byte_ids: dict[int, int]
    spelling: list[bytes]
    pad_id: int
    bos_id: int | None
    eos_id: int
    unknown_id: int | None
    special_tokens: Mapping[str, str]
    strict: bool
    leads_with_space: bool
    identity: bytes

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Raises TokenizerError if it is not valid Unicode."""

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """`encode` of each text, in one call."""

    def encode_segments(self, segments: Sequence[Segment]) -> Spans:
        """Ids of a rendered conversation; a special token's name becomes its id only in the template's own text."""

    def files(self, chat_template: str, *, reads_chats: bool = False) -> dict[str, bytes]:
        """The files from which transformers' AutoTokenizer reads the same tokenizer, by name.

        reads_chats: it will read texts that the template wrote, which must not get a second bos.
        """

    def bytes_of(self, token_id: int, skip_special: bool) -> bytes:
        """UTF-8 bytes of one id; empty for an id without a piece, as in a padded vocabulary. Raises TokenizerError if
        it is negative."""
        if token_id < 0:
            raise TokenizerError(f"id {token_id} is outside the vocabulary (0 to {len(self.tokens) - 1})")
        if token_id >= len(self.tokens):
            return b""
        if not skip_special and self.tokens[token_id] in self.special_ids:
            return self.tokens[token_id].encode()
        return self.spelling[token_id]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 (a model can sample them) become U+FFFD."""
        text = b"".join(self.bytes_of(i, skip_special) for i in ids)
        return (text.removeprefix(b" ") if self.leads_with_space else text).decode("utf-8", "replace")
