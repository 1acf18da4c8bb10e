"""What every kind of codec is: text ↔ ids, and what a tokenizer's rest asks of it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol


class TokenizerError(ValueError):
    """A tokenizer's file, template, text or messages are not what they must be."""


class TemplateError(TokenizerError):
    """A chat template cannot be used at all, whatever the messages."""


class Segment(NamedTuple):
    """A run of a rendered conversation: a message's content, or (role None) the template's own text."""

    text: str
    role: str | None


class Spans(NamedTuple):
    """Ids of joined segments; starts: of each id, the character of the joined text at which its token begins."""

    ids: list[int]
    starts: list[int]


def check_text(text: object, what: str) -> str:
    """Returns the text. Raises TokenizerError where it is no string or holds a lone surrogate."""
    if not isinstance(text, str):
        raise TokenizerError(f"{what}: expected a string, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"{what}: character {error.start} is {text[error.start]!a}, half of a surrogate pair, so this is "
            "no Unicode text. Read it again as UTF-8, or replace it: text.encode('utf-8', 'replace').decode()"
        ) from None
    return text


class Codec(Protocol):
    """Text ↔ ids. Text never produces a special id, whatever it spells; a template's own text may.

    pieces           by id, as the vocabulary writes them; "" for an id that is not used
    special_ids      of each special piece
    byte_ids         of each byte, the piece that spells it where no other piece does; none for byte-level pieces
    spelling         by id, the UTF-8 bytes it adds to a text; none for a special one
    pad_id, bos_id, eos_id, unknown_id; bos and unknown may be None
    special_tokens   bos_token and the like, by the name that templates use
    strict           made here: its chats begin with their only bos, and a template that breaks a promise is
                     refused at once instead of when a chat is rendered
    leads_with_space a text's first token spells a space that is not there: decode drops it
    identity         all that decides an id, as bytes
    """

    pieces: list[str]
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
        """Ids of a text. Raises TokenizerError for what is no Unicode text."""

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """`encode` of each text, in one call."""

    def encode_segments(self, segments: Sequence[Segment]) -> Spans:
        """Ids of a rendered conversation; only in the template's own text is a special's name its id."""

    def files(self, chat_template: str, *, reads_chats: bool = False) -> dict[str, bytes]:
        """What transformers' AutoTokenizer reads the same tokenizer from, by file name.

        reads_chats: it is to read texts that the template wrote, whose bos must not come twice.
        """

    def bytes_of(self, token_id: int, skip_special: bool) -> bytes:
        """UTF-8 bytes of one id: none for an id without a piece, as a padded vocabulary has. Raises TokenizerError for
        a negative one."""
        if token_id < 0:
            raise TokenizerError(f"id {token_id} is outside the vocabulary (0 to {len(self.pieces) - 1})")
        if token_id >= len(self.pieces):
            return b""
        if not skip_special and self.pieces[token_id] in self.special_ids:
            return self.pieces[token_id].encode()
        return self.spelling[token_id]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids; bytes that are no UTF-8 (a model may sample them) become U+FFFD."""
        text = b"".join(self.bytes_of(i, skip_special) for i in ids)
        return (text.removeprefix(b" ") if self.leads_with_space else text).decode("utf-8", "replace")
