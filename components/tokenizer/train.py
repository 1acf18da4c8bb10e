"""Trains a tokenizer on text, and measures one."""

import io
import itertools
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

from components.tokenizer.codec import TokenizerError, check_text
from components.tokenizer.exact import SPACE_MARK, ExactCodec
from components.tokenizer.template import DEFAULT_TEMPLATE
from components.tokenizer.tokenizer import Tokenizer

SPECIAL_PIECES = ("<pad>", "<unk>", "<bos>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
# SentencePiece learns nothing from a special piece's name in the text, not even its characters (WikiText is full of
# "<unk>", each then six bytes); so it trains with stand-in names, which are replaced by the real ones afterwards.
STAND_INS = tuple(f"\ue000{number}" for number in range(len(SPECIAL_PIECES)))
SENTENCE = 1000  # characters, at most 4000 bytes: SentencePiece drops what is longer than 4192 bytes
# Line ends are never part of a longer piece: each is a separate byte piece that does not join adjacent words.
# SentencePiece takes U+2581 for a space, and drops sentences with U+2585 or NUL.
BREAKS = re.compile("[\r\n\0\u2581\u2585]+")
PARTS = re.compile(f".{{1,{SENTENCE}}}(?= |$)|.{{1,{SENTENCE}}}", re.DOTALL)

SETTINGS: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "allow_whitespace_only_pieces": True,  # runs of spaces: indented code
    "split_digits": True,
    "required_chars": SPACE_MARK,  # without it, a corpus without spaces (Chinese) gives no piece for one
    "hard_vocab_limit": False,
    **{f"{name}_id": number for number, name in enumerate(("pad", "unk", "bos", "eos"))},
    **{f"{name}_piece": STAND_INS[number] for number, name in enumerate(("pad", "unk", "bos", "eos"))},
    "control_symbols": list(STAND_INS[4:]),  # user_defined_symbols could be produced by text
    "minloglevel": 2,
}

log = logging.getLogger(__name__)


def train(
    texts: Iterable[str],
    *,
    vocab_size: int,
    num_threads: int = 1,
    character_coverage: float = 0.9995,
    chat_template: str = DEFAULT_TEMPLATE,
) -> Tokenizer:
    """Trains a byte-pair encoding with byte fallback on the texts; equal texts give an equal model, byte for byte.

    vocab_size: total number of pieces: 8 special, 256 bytes, the characters, and merges, most frequent first. A corpus
        too small for this many merges gives a smaller vocabulary, which is logged.
    character_coverage: share of the text whose characters get a piece; the rarest are encoded as bytes.
    All the text is kept in memory while training.
    Raises TokenizerError if there is no text, for a lone surrogate, and for a vocab_size that is too small, naming the
    smallest possible.
    """
    if isinstance(texts, str):
        raise TokenizerError("texts: expected several texts, got one string; put it in a list")
    sentences = _sentences(texts)
    first = next(sentences, None)
    if first is None:
        raise TokenizerError("texts: there is no text to train a tokenizer on, except possibly line ends")
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], sentences),
            model_writer=written,
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            num_threads=num_threads,
            **SETTINGS,
        )
    except RuntimeError as error:
        smallest = re.search(r"required_chars\. \d+ vs (\d+)", str(error))
        if smallest is None:
            raise TokenizerError(f"SentencePiece cannot train on these texts: {error}") from error
        raise TokenizerError(
            f"vocab_size {vocab_size} is too small for these texts: 8 special pieces, 256 bytes and their "
            f"characters need at least {smallest[1]}. Set vocab_size to that, or lower character_coverage "
            f"({character_coverage})"
        ) from None
    tokenizer = Tokenizer(ExactCodec(_finish(written.getvalue())), chat_template)
    if tokenizer.vocab_size < vocab_size:
        log.info("the texts yield %d pieces, fewer than vocab_size %d", tokenizer.vocab_size, vocab_size)
    return tokenizer


def _finish(model_bytes: bytes) -> bytes:
    """The model with the special pieces' real names, and a fixed number of threads."""
    model = ModelProto.FromString(model_bytes)
    for piece, name in zip(model.pieces, SPECIAL_PIECES, strict=False):
        piece.piece = name
    spec = model.trainer_spec
    spec.pad_piece, spec.unk_piece, spec.bos_piece, spec.eos_piece = SPECIAL_PIECES[:4]
    spec.control_symbols[:] = SPECIAL_PIECES[4:]
    spec.num_threads = 1
    return model.SerializeToString(deterministic=True)


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """The texts in parts of at most SENTENCE characters, cut at line ends, then before spaces if possible."""
    for number, text in enumerate(texts):
        for line in BREAKS.split(check_text(text, f"training text {number}")):
            yield from PARTS.findall(line)


def measure(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, float]:
    """How well a tokenizer fits texts.

    bytes_per_token      UTF-8 bytes / tokens; higher means shorter sequences. Comparable across tokenizers.
    fertility            tokens / words, with words split at white space (not meaningful for Chinese or Thai)
    byte_fallback_share  byte pieces except line ends (which are always bytes) / tokens
    unknown_share        unknown pieces / tokens; 0 with byte fallback
    Raises TokenizerError if the texts have no tokens.
    """
    texts = list(texts)
    counts = [0] * tokenizer.vocab_size
    for ids in tokenizer.encode_batch(texts):
        for i in ids:
            counts[i] += 1
    tokens = sum(counts)
    if not tokens:
        raise TokenizerError("texts: there is no text to measure a tokenizer on")
    codec = tokenizer.codec
    fallback = sum(counts[i] for byte, i in codec.byte_ids.items() if byte not in b"\r\n")
    return {
        "bytes_per_token": sum(len(text.encode()) for text in texts) / tokens,
        "fertility": tokens / max(1, sum(len(text.split()) for text in texts)),
        "byte_fallback_share": fallback / tokens,
        "unknown_share": 0.0 if codec.unknown_id is None else counts[codec.unknown_id] / tokens,
    }
