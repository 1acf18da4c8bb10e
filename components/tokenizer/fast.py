"""Text ↔ ids with a tokenizer.json, by the `tokenizers` package: byte-level BPE and converted SentencePiece."""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from components.system import installing
from components.tokenizer.codec import Codec, Segment, Spans, TokenizerError, check_text

SPACE_MARK = "\u2581"
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
OPEN, CLOSE = "\uf8fe", "\uf8ff"


def library():
    """The package `tokenizers`. Raises TokenizerError if it is not installed."""
    try:
        import tokenizers
    except ImportError:
        raise TokenizerError(installing.missing("a tokenizer that was not made here", "tokenizers", "hf")) from None
    return tokenizers


class FastCodec(Codec):
    """A tokenizer.json and the names of its special tokens.

    definition: the file's text. special_tokens: {"eos_token": …}, all in the vocabulary; eos is required, pad can equal
    eos. settings: the rest of tokenizer_config.json. carried: files that are saved unchanged, by name.
    Between special tokens, a chat's template and content are tokenized as one text, as in transformers.
    No text produces a special id; merges that would form a special token's name are removed for that.
    Raises TokenizerError for an invalid tokenizer.json, or one whose pieces do not represent bytes.
    """

    strict = False

    def __init__(
        self,
        definition: str,
        special_tokens: Mapping[str, str],
        settings: Mapping[str, Any],
        carried: Mapping[str, bytes],
    ) -> None:
        self.definition, self.special_tokens = definition, dict(special_tokens)
        self._settings, self._carried = dict(settings), dict(carried)
        self.identity = f"{definition}\n{sorted(self.special_tokens.items())}".encode()
        self._json = _guarded(json.loads(definition))
        _check(self._json)
        self._tokenizer = _build(self._json)
        self._tokenizer.encode_special_tokens = True
        added = {token["id"]: token for token in self._json["added_tokens"]}
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.tokens = [""] * (max(ids.values()) + 1)
        for piece, token_id in ids.items():
            self.tokens[token_id] = piece
        self.special_ids = {token["content"]: i for i, token in added.items() if token["special"]}
        self.byte_ids = {}
        self.spelling = self._spellings({i: token["content"] for i, token in added.items()})
        self.leads_with_space = _strips_first_space(self._json["decoder"])
        self.bos_id, eos_id, pad_id, self.unknown_id = (
            ids.get(self.special_tokens.get(f"{name}_token")) for name in ("bos", "eos", "pad", "unk")
        )
        assert eos_id is not None and pad_id is not None
        self.eos_id, self.pad_id = eos_id, pad_id
        self._special_pattern = re.compile(
            "(" + "|".join(map(re.escape, sorted(self.special_ids, key=len, reverse=True))) + ")"
        )
        self._nonce = secrets.token_hex(8)  # does not affect ids

    def __reduce__(self):
        return FastCodec, (self.definition, self.special_tokens, self._settings, self._carried)

    def _spellings(self, added: Mapping[int, str]) -> list[bytes]:
        """By id, the bytes of a piece, according to the file's decoder."""
        kinds = {part["type"] for part in _parts(self._json["decoder"])}
        if "ByteLevel" in kinds:
            table = _byte_characters()
            spell = lambda piece: bytes(table[c] for c in piece) if set(piece) <= table.keys() else piece.encode()
        elif kinds & {"Metaspace", "Replace"}:
            self.byte_ids = {int(m[1], 16): i for i, p in enumerate(self.tokens) if (m := BYTE_PIECE.fullmatch(p))}
            of_piece = {self.tokens[i]: bytes([byte]) for byte, i in self.byte_ids.items()}
            spell = lambda piece: of_piece.get(piece, piece.replace(SPACE_MARK, " ").encode())
        else:
            raise TokenizerError(
                f"the decoder is {', '.join(sorted(kinds)) or 'missing'}, expected one that yields bytes: ByteLevel "
                "(GPT-2, Llama 3, Qwen) or Metaspace / Replace ▁ (SentencePiece)"
            )
        special = set(self.special_ids.values())
        return [
            b"" if i in special else added[i].encode() if i in added else spell(piece)
            for i, piece in enumerate(self.tokens)
        ]

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Raises TokenizerError if it is not valid Unicode."""
        return self._tokenizer.encode(check_text(text, "text"), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """`encode` of each text; the package chooses its number of threads (TOKENIZERS_PARALLELISM=false: one)."""
        checked = [check_text(text, f"text {number}") for number, text in enumerate(texts)]
        return [made.ids for made in self._tokenizer.encode_batch(checked, add_special_tokens=False)]

    def encode_segments(self, segments: Sequence[Segment]) -> Spans:
        """Ids of the joined text; a special token's name is that token only in the template's own text."""
        marked: list[str] = []
        real: list[int] = []  # for each marked character, its position in the joined text
        position = 0
        for text, role in segments:
            for number, part in enumerate(self._special_pattern.split(text) if role is None else [text]):
                written = self._marker(self.special_ids[part]) if number % 2 else part
                marked.append(written)
                real += [position] * len(written) if number % 2 else range(position, position + len(part))
                position += len(part)
        tokenizer, ids = self._with_markers
        made = tokenizer.encode("".join(marked), add_special_tokens=False)
        real.append(position)
        return Spans([ids.get(i, i) for i in made.ids], [real[start] for start, _ in made.offsets])

    @cached_property
    def _with_markers(self) -> tuple[Any, dict[int, int]]:
        """A tokenizer that knows special tokens only by their markers, and a map from its added ids to real ones."""
        renamed = [
            token | {"content": self._marker(token["id"]) if token["special"] else token["content"]}
            for token in self._json["added_tokens"]
        ]
        model = self._json["model"]
        if isinstance(model["vocab"], dict):  # the package numbers new tokens from the number of pieces, so with a gap
            taken = set(model["vocab"].values())  # in the ids, one would get the id of another piece
            fill = {self._marker(i): i for i in range(len(self.tokens)) if i not in taken}
            model = model | {"vocab": model["vocab"] | fill}
        tokenizer = _build(self._json | {"added_tokens": renamed, "model": model})
        return tokenizer, {tokenizer.token_to_id(token["content"]): token["id"] for token in renamed}

    def _marker(self, token_id: int) -> str:
        """Placeholder for a special token in the template's own text; the random nonce keeps it out of other text."""
        return f"{OPEN}{self._nonce}.{token_id}{CLOSE}"

    def files(self, chat_template: str, *, reads_chats: bool = False) -> dict[str, bytes]:
        """tokenizer.json, tokenizer_config.json, and the other files of the tokenizer. What it adds around a text is up
        to its authors, so reads_chats changes nothing.

        The class is the one that reads tokenizer.json unchanged, independent of the model in the folder.
        """
        config = self._settings | self.special_tokens
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": chat_template}
        written = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        own = {"tokenizer.json": self.definition.encode(), "tokenizer_config.json": written.encode()}
        return self._carried | own


def _build(definition: Mapping[str, Any]) -> Any:
    """The package's Tokenizer, without padding, truncation and added special tokens; offsets are each token's own."""
    return parsed(dict(definition) | {"post_processor": None, "padding": None, "truncation": None})


def parsed(definition: Mapping[str, Any]) -> Any:
    """The package's Tokenizer from a definition. Raises TokenizerError if it cannot read it."""
    package = library()
    try:
        return package.Tokenizer.from_str(json.dumps(definition))
    except BaseException as error:  # the package raises bare Exception, and panics, which are not Exceptions
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"tokenizer.json is not a valid tokenizer: {error}") from None


def _check(definition: Mapping[str, Any]) -> None:
    """Raises TokenizerError for parts that make ids random, or make decoding differ from the text of the pieces."""
    if definition["model"].get("dropout"):
        raise TokenizerError(
            f"tokenizer.json: model.dropout={definition['model']['dropout']} gives a text different ids each time. "
            "Set it to null"
        )
    for part in _parts(definition.get("decoder")):
        supported = {
            "Metaspace": part.get("replacement") == SPACE_MARK,
            "Replace": (part.get("pattern"), part.get("content")) == ({"String": SPACE_MARK}, " "),
            "Strip": part.get("content") == " " and not part.get("stop"),
        }
        if not supported.get(part["type"], True):
            raise TokenizerError(f"tokenizer.json: decoder {part} is not supported, since it changes the decoded text")


def _guarded(definition: dict[str, Any]) -> dict[str, Any]:
    """The definition without merges that form the name of a special or byte piece, which text must not produce."""
    model = definition["model"]
    if not model.get("merges"):
        return definition
    special = {token["content"] for token in definition["added_tokens"] if token["special"]}
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    kept = [pair for pair in pairs if (whole := "".join(pair)) not in special and not BYTE_PIECE.fullmatch(whole)]
    return definition | {"model": model | {"merges": kept}}


def _parts(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A decoder's parts at any depth."""
    if decoder is None:
        return []
    return [leaf for part in decoder["decoders"] for leaf in _parts(part)] if "decoders" in decoder else [decoder]


def _strips_first_space(decoder: Mapping[str, Any]) -> bool:
    """Whether decoding drops a text's first space, which the tokenizer added."""
    return any(
        (part["type"] == "Strip" and part["start"] > 0)
        or (part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never")
        for part in _parts(decoder)
    )


def _byte_characters() -> dict[str, int]:
    """Byte-level pieces write each byte as one visible character (GPT-2): its own if visible, else from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
