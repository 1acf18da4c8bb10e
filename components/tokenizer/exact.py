"""Text ↔ ids with a SentencePiece model made here; decoding restores encoded text exactly."""

import json
import re
from collections.abc import Iterable, Sequence

from sentencepiece import SentencePieceProcessor

from components.tokenizer.codec import Codec, Segment, Spans, TokenizerError, check_text

SPACE_MARK = "\u2581"  # a space in a SentencePiece piece
LONG_TEXT = 4096  # characters; SentencePiece slows down on much longer strings (10 MB in one: 1.5 MB/s)
PROBE = "  two  spaces\n\n\ttab\r\n\u00e9\u4e2d\U0001f600\u3000\ufb01\0 <unk> end "


class InexactError(TokenizerError):
    """A SentencePiece model that cannot restore text, or lacks a special piece."""


class ExactCodec(Codec):
    """Encodes and decodes with the pieces of a SentencePiece model.

    Special pieces (unknown and control) are never produced from text, only through `special_ids`.
    Raises TokenizerError for bytes that are not a model, InexactError for a model that lacks a pad, bos, eos or the
    256 byte pieces or that changes text (normalizes, adds a leading space), because it could not restore text.
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
            raise TokenizerError(f"{len(model_bytes)} bytes are not a SentencePiece model: {error}") from None
        self.tokens: list[str] = [self._processor.id_to_piece(i) for i in range(count)]
        self.special_ids: dict[str, int] = {p: i for i, p in enumerate(self.tokens) if self._is_special(i)}
        self.byte_ids: dict[int, int] = {
            int(piece[1:-1], 16): i for i, piece in enumerate(self.tokens) if self._processor.is_byte(i)
        }
        self.pad_id = self._named("pad", self._processor.pad_id())
        self.bos_id = self._named("bos", self._processor.bos_id())
        self.eos_id = self._named("eos", self._processor.eos_id())
        self.unknown_id = self._named("unk", self._processor.unk_id())
        ids = {"bos": self.bos_id, "eos": self.eos_id, "pad": self.pad_id, "unk": self.unknown_id}
        self.special_tokens = {f"{name}_token": self.tokens[token_id] for name, token_id in ids.items()}
        if len(self.byte_ids) != 256:
            raise InexactError(f"the model has {len(self.byte_ids)} byte pieces, expected 256 (byte_fallback)")
        self.spelling: list[bytes] = [self._spell(i) for i in range(count)]
        self._space_mark_ids = [self.byte_ids[byte] for byte in SPACE_MARK.encode()]
        # Two characters that are not adjacent in any piece are never merged: cutting a text between them does not
        # change its ids.
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
                "the model does not restore text unchanged (it normalizes, or adds a leading space). "
                "Expected normalization 'identity', add_dummy_prefix false, remove_extra_whitespaces false"
            )

    def __reduce__(self):
        return ExactCodec, (self.model_bytes,)  # pickled for workers

    def _is_special(self, token_id: int) -> bool:
        return self._processor.is_control(token_id) or self._processor.is_unknown(token_id)

    def _named(self, name: str, token_id: int) -> int:
        """The id of a special piece. Raises InexactError if the model has none."""
        if token_id < 0 or not self._is_special(token_id):
            raise InexactError(f"the model has no special piece for {name}, expected pad, bos, eos and unk")
        return token_id

    def _text(self, token_id: int) -> str:
        return self.tokens[token_id].replace(SPACE_MARK, " ")

    def _spell(self, token_id: int) -> bytes:
        """The UTF-8 bytes of a piece; empty for a special piece."""
        if self._is_special(token_id):
            return b""
        if self._processor.is_byte(token_id):
            return bytes([int(self.tokens[token_id][1:-1], 16)])
        return self._text(token_id).encode()

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Raises TokenizerError if it is not valid Unicode."""
        if len(check_text(text, "text")) > LONG_TEXT or SPACE_MARK in text:
            return self.encode_batch([text])[0]
        return self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """`encode` of each text, in one call to SentencePiece (50 microseconds each, however small)."""
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
            # SentencePiece reads U+2581 as a space, so that character is a separate chunk, encoded as bytes
            ids[number] += self._space_mark_ids if chunk == SPACE_MARK else chunk_ids
        return ids

    def _cut(self, text: str) -> Iterable[str]:
        """Parts of a text whose concatenated ids are those of the whole; U+2581 is a separate part."""
        for part in re.split(f"({SPACE_MARK})", text):
            start = 0
            while start < len(part):
                stop = min(start + LONG_TEXT, len(part))
                while stop < len(part) and part[stop - 1 : stop + 1] in self._joined:
                    stop += 1
                yield part[start:stop]
                start = stop

    def encode_segments(self, segments: Sequence[Segment]) -> Spans:
        """Ids of each segment by itself; they do not depend on its neighbors."""
        ids: list[int] = []
        starts: list[int] = []
        position = 0
        for text, role in segments:
            parts = self._special_pattern.split(text) if role is None else [text]
            for number, part in enumerate(parts):  # the odd ones are names of special tokens
                part_ids = [self.special_ids[part]] if number % 2 else self.encode(part)
                ids += part_ids
                starts += [position] * len(part_ids)
                position += len(part)
        return Spans(ids, starts)

    def files(self, chat_template: str, *, reads_chats: bool = False) -> dict[str, bytes]:
        """tokenizer.model and tokenizer_config.json.

        add_bos_token: transformers' encode(text) returns bos and our ids; chats have only the template's bos. With
        reads_chats, encode(text) adds no bos to a text that the template wrote.
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
