"""Text ↔ ids through a SentencePiece model made here: what is encoded comes back to the byte."""

import json
import re
from collections.abc import Iterable, Sequence

from sentencepiece import SentencePieceProcessor

from components.tokenizer.codec import Codec, Segment, Spans, TokenizerError, check_text

SPACE_MARK = "\u2581"  # how SentencePiece writes a space inside a piece
LONG_TEXT = 4096  # characters; SentencePiece slows down on much longer strings (10 MB in one: 1.5 MB/s)
PROBE = "  two  spaces\n\n\ttab\r\n\u00e9\u4e2d\U0001f600\u3000\ufb01\0 <unk> end "


class InexactError(TokenizerError):
    """A SentencePiece model that cannot give text back, or lacks a special piece."""


class ExactCodec(Codec):
    """The pieces of one SentencePiece model and the way to and from them.

    Special pieces (unknown and control) are never produced from text: only `special_ids` names them.
    Raises TokenizerError for bytes that are no model, InexactError for a model that lacks a pad, bos, eos or the
    256 byte pieces or that changes text (normalises, adds a space in front): such a model cannot give text back.
    """

    strict = True
    leads_with_space = False

    def __init__(self, model_bytes: bytes) -> None:
        self.model_bytes = self.identity = model_bytes
        self._processor = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model_bytes)
            count = self._processor.get_piece_size()
        except RuntimeError as error:
            raise TokenizerError(f"no SentencePiece model in {len(model_bytes)} bytes: {error}") from None
        self.pieces: list[str] = [self._processor.id_to_piece(i) for i in range(count)]
        self.special_ids: dict[str, int] = {p: i for i, p in enumerate(self.pieces) if self._is_special(i)}
        self.byte_ids: dict[int, int] = {
            int(piece[1:-1], 16): i for i, piece in enumerate(self.pieces) if self._processor.is_byte(i)
        }
        self.pad_id = self._named("pad", self._processor.pad_id())
        self.bos_id = self._named("bos", self._processor.bos_id())
        self.eos_id = self._named("eos", self._processor.eos_id())
        self.unknown_id = self._named("unk", self._processor.unk_id())
        ids = {"bos": self.bos_id, "eos": self.eos_id, "pad": self.pad_id, "unk": self.unknown_id}
        self.special_tokens = {f"{name}_token": self.pieces[token_id] for name, token_id in ids.items()}
        if len(self.byte_ids) != 256:
            raise InexactError(f"the model has {len(self.byte_ids)} byte pieces; it needs 256: byte_fallback")
        self.spelling: list[bytes] = [self._spell(i) for i in range(count)]
        self._space_mark_ids = [self.byte_ids[byte] for byte in SPACE_MARK.encode()]
        # Two characters that stand side by side in no piece are never merged: a text cut between them has the
        # ids of the whole.
        self._joined = {
            text[i : i + 2]
            for text in (self._text(i) for i in range(count) if not self._is_special(i))
            for i in range(len(text) - 1)
        }
        self._special_pattern = re.compile(
            "(" + "|".join(map(re.escape, sorted(self.special_ids, key=len, reverse=True))) + ")"
        )
        if self.decode(self.encode(PROBE)) != PROBE:
            raise InexactError(
                "the model does not give text back unchanged (it normalises, or adds a space in front). "
                "Expected normalisation 'identity', add_dummy_prefix false, remove_extra_whitespaces false"
            )

    def __reduce__(self):
        return ExactCodec, (self.model_bytes,)  # so that workers can be given one

    def _is_special(self, token_id: int) -> bool:
        return self._processor.is_control(token_id) or self._processor.is_unknown(token_id)

    def _named(self, name: str, token_id: int) -> int:
        """The id of a special piece, or TokenizerError where the model has none."""
        if token_id < 0 or not self._is_special(token_id):
            raise InexactError(f"the model has no special piece for {name}; it needs pad, bos, eos and unk")
        return token_id

    def _text(self, token_id: int) -> str:
        return self.pieces[token_id].replace(SPACE_MARK, " ")

    def _spell(self, token_id: int) -> bytes:
        """The UTF-8 bytes a piece stands for; a special piece stands for none."""
        if self._is_special(token_id):
            return b""
        if self._processor.is_byte(token_id):
            return bytes([int(self.pieces[token_id][1:-1], 16)])
        return self._text(token_id).encode()

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Raises TokenizerError for what is no Unicode text."""
        if len(check_text(text, "text")) > LONG_TEXT or SPACE_MARK in text:
            return self.encode_batch([text])[0]
        return self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """`encode` of each text, in one call to SentencePiece (50 microseconds, however small)."""
        chunks: list[str] = []
        owners: list[int] = []
        for number, text in enumerate(texts):
            check_text(text, f"text {number}")
            for chunk in self._cut(text) if len(text) > LONG_TEXT or SPACE_MARK in text else (text,):
                chunks.append(chunk)
                owners.append(number)
        ids: list[list[int]] = [[] for _ in texts]
        encoded = self._processor.encode(chunks, num_threads=num_threads)
        for number, chunk, chunk_ids in zip(owners, chunks, encoded, strict=True):
            # SentencePiece reads U+2581 as a space: such a chunk is that character alone, spelled in bytes
            ids[number] += self._space_mark_ids if chunk == SPACE_MARK else chunk_ids
        return ids

    def _cut(self, text: str) -> Iterable[str]:
        """Parts of a text whose ids, joined, are those of the whole; U+2581 is a part of its own."""
        for part in re.split(f"({SPACE_MARK})", text):
            start = 0
            while start < len(part):
                stop = min(start + LONG_TEXT, len(part))
                while stop < len(part) and part[stop - 1 : stop + 1] in self._joined:
                    stop += 1
                yield part[start:stop]
                start = stop

    def encode_segments(self, segments: Sequence[Segment]) -> Spans:
        """Ids of each segment by itself: they are the same whatever stands beside it."""
        ids: list[int] = []
        starts: list[int] = []
        place = 0
        for text, role in segments:
            parts = self._special_pattern.split(text) if role is None else [text]
            for number, part in enumerate(parts):  # odd numbers hold the names of specials
                own = [self.special_ids[part]] if number % 2 else self.encode(part)
                ids += own
                starts += [place] * len(own)
                place += len(part)
        return Spans(ids, starts)

    def files(self, chat_template: str, *, reads_chats: bool = False) -> dict[str, bytes]:
        """tokenizer.model and tokenizer_config.json.

        add_bos_token: transformers' encode(text) gives bos and our ids; chats have the template's bos only. Where it
        reads chats, encode(text) adds none to a text that the template wrote.
        """
        config = {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": False,
            "add_prefix_space": False,
            "add_bos_token": not reads_chats,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            **self.special_tokens,
            "chat_template": chat_template,
        }
        written = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        return {"tokenizer.model": self.model_bytes, "tokenizer_config.json": written.encode()}
