"""A SentencePiece model from elsewhere → the tokenizer.json that transformers' LlamaTokenizer makes from it."""

import json
from collections.abc import Mapping
from typing import Any

from components.tokenizer.codec import TokenizerError

BPE, CONTROL, USER_DEFINED = 2, 3, 4  # SentencePiece's numbers for types of models and of pieces


def from_sentencepiece(model_bytes: bytes) -> dict[str, Any]:
    """Vocabulary, merges and added tokens of a model; `as_llama` adds how text is split into pieces.

    Two pieces merge if their concatenation is a piece, the lowest id first. Control pieces are special, user-defined
    ones are ordinary added tokens. Raises TokenizerError for a model that is not BPE, which needs a tokenizer.json.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

    model = ModelProto.FromString(model_bytes)
    if model.trainer_spec.model_type != BPE:
        raise TokenizerError("tokenizer.model is not BPE, which LlamaTokenizer requires; expected a tokenizer.json")
    ids = {piece.piece: number for number, piece in enumerate(model.pieces)}
    splits = [
        (number, cut, piece[:cut], piece[cut:])
        for piece, number in ids.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": number, "content": piece.piece, **flags, "special": piece.type == CONTROL}
        for number, piece in enumerate(model.pieces)
        if piece.type in (CONTROL, USER_DEFINED)
    ]
    merges = [[left, right] for *_, left, right in sorted(splits)]
    return {"version": "1.0", "added_tokens": added, "model": {"type": "BPE", "vocab": ids, "merges": merges}}


def as_llama(definition: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The definition with LlamaTokenizer's own way of splitting text into pieces, which overrides the file's.

    settings: tokenizer_config.json; add_prefix_space (default true) puts a space before a text, legacy (default false)
    also one after every special token. A byte-level or Unigram file has only the name of the class, and is unchanged.
    """
    steps = json.dumps([definition.get("pre_tokenizer"), definition.get("decoder")])
    if '"ByteLevel"' in steps or definition["model"].get("type", "BPE") != "BPE":
        return definition
    spaced = settings.get("add_prefix_space") is not False
    scheme = ("always" if settings.get("legacy", False) else "first") if spaced else "never"
    decoders = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}]
    decoders.append({"type": "Fuse"})
    if spaced:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": True, "byte_fallback": True}
    model |= {"vocab": definition["model"]["vocab"], "merges": definition["model"].get("merges", [])}
    pre_tokenizer = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}
    decoder = {"type": "Sequence", "decoders": decoders}
    return definition | {
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "decoder": decoder,
        "model": model,
    }
