"""Text ↔ ids through a tokenizer.json, by the `tokenizers` package: byte-level BPE, and SentencePiece converted."""

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
    """The package `tokenizers`. Raises TokenizerError where it is not installed."""
    try:
        import tokenizers
    except ImportError:
        raise TokenizerError(installing.missing("a tokenizer that was not made here", "tokenizers", "hf")) from None
    return tokenizers


class FastCodec(Codec):
    """A tokenizer.json and the names of its special tokens.

    definition: the file's text. special_tokens: {"eos_token": …}, all in the vocabulary; eos is needed, pad may be
    eos again. settings: the rest of tokenizer_config.json. carried: files written again as they are, by name.
    A chat is one text between special pieces, template and content together, as everybody else tokenises it.
    No text produces a special id; a merge that would spell a special's name is left out for that.
    Raises TokenizerError for what is no tokenizer.json, or one whose pieces do not spell bytes.
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
        self.pieces = [""] * (max(ids.values()) + 1)
        for piece, token_id in ids.items():
            self.pieces[token_id] = piece
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
        self._nonce = secrets.token_hex(8)  # decides no id

    def __reduce__(self):
        return FastCodec, (self.definition, self.special_tokens, self._settings, self._carried)

    def _spellings(self, added: Mapping[int, str]) -> list[bytes]:
        """By id, the bytes of a piece, by the decoder that the file names."""
        kinds = {part["type"] for part in _parts(self._json["decoder"])}
        if "ByteLevel" in kinds:
            table = _byte_characters()
            spell = lambda piece: bytes(table[c] for c in piece) if set(piece) <= table.keys() else piece.encode()
        elif kinds & {"Metaspace", "Replace"}:
            self.byte_ids = {int(m[1], 16): i for i, p in enumerate(self.pieces) if (m := BYTE_PIECE.fullmatch(p))}
            of_piece = {self.pieces[i]: bytes([byte]) for byte, i in self.byte_ids.items()}
            spell = lambda piece: of_piece.get(piece, piece.replace(SPACE_MARK, " ").encode())
        else:
            raise TokenizerError(
                f"the decoder is {', '.join(sorted(kinds)) or 'missing'}; expected one that spells bytes: ByteLevel "
                "(GPT-2, Llama 3, Qwen) or Metaspace / Replace ▁ (SentencePiece)"
            )
        special = set(self.special_ids.values())
        return [
            b"" if i in special else added[i].encode() if i in added else spell(piece)
            for i, piece in enumerate(self.pieces)
        ]

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Raises TokenizerError for what is no Unicode text."""
        return self._tokenizer.encode(check_text(text, "text"), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """`encode` of each text; the package chooses its threads itself (TOKENIZERS_PARALLELISM=false: one)."""
        checked = [check_text(text, f"text {number}") for number, text in enumerate(texts)]
        return [made.ids for made in self._tokenizer.encode_batch(checked, add_special_tokens=False)]

    def encode_segments(self, segments: Sequence[Segment]) -> Spans:
        """Ids of the joined text, where a special's name in the template's own text alone is that special."""
        marked: list[str] = []
        real: list[int] = []  # of each marked character, its place in the joined text
        place = 0
        for text, role in segments:
            for number, part in enumerate(self._special_pattern.split(text) if role is None else [text]):
                stands = self._marker(self.special_ids[part]) if number % 2 else part
                marked.append(stands)
                real += [place] * len(stands) if number % 2 else range(place, place + len(part))
                place += len(part)
        tokenizer, ids = self._with_markers
        made = tokenizer.encode("".join(marked), add_special_tokens=False)
        real.append(place)
        return Spans([ids.get(i, i) for i in made.ids], [real[start] for start, _ in made.offsets])

    @cached_property
    def _with_markers(self) -> tuple[Any, dict[int, int]]:
        """The tokenizer that knows the specials by their markers alone, and what its added ids are in truth."""
        renamed = [
            token | {"content": self._marker(token["id"]) if token["special"] else token["content"]}
            for token in self._json["added_tokens"]
        ]
        model = self._json["model"]
        if isinstance(model["vocab"], dict):  # the package gives new tokens the ids from the number of pieces on, so
            taken = set(model["vocab"].values())  # a hole in the ids would let one have the id of another piece
            fill = {self._marker(i): i for i in range(len(self.pieces)) if i not in taken}
            model = model | {"vocab": model["vocab"] | fill}
        tokenizer = _build(self._json | {"added_tokens": renamed, "model": model})
        return tokenizer, {tokenizer.token_to_id(token["content"]): token["id"] for token in renamed}

    def _marker(self, token_id: int) -> str:
        """What stands for a special of the template's own text: no text can spell it, as nobody knows the nonce."""
        return f"{OPEN}{self._nonce}.{token_id}{CLOSE}"

    def files(self, chat_template: str, *, reads_chats: bool = False) -> dict[str, bytes]:
        """tokenizer.json, its tokenizer_config.json, and the other files the tokenizer came with: what it puts around a
        text is its maker's, whatever it reads.

        The class is the one that takes tokenizer.json as it stands, whatever the model beside it.
        """
        config = self._settings | self.special_tokens
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": chat_template}
        written = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        own = {"tokenizer.json": self.definition.encode(), "tokenizer_config.json": written.encode()}
        return self._carried | own


def _build(definition: Mapping[str, Any]) -> Any:
    """The package's Tokenizer; it neither pads, cuts nor adds specials, and offsets tell each token's own text."""
    return parsed(dict(definition) | {"post_processor": None, "padding": None, "truncation": None})


def parsed(definition: Mapping[str, Any]) -> Any:
    """The package's Tokenizer of a definition. Raises TokenizerError for one that it does not read."""
    package = library()
    try:
        return package.Tokenizer.from_str(json.dumps(definition))
    except BaseException as error:  # the package raises bare Exception, and panics, which are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"tokenizer.json is no tokenizer's file: {error}") from None


def _check(definition: Mapping[str, Any]) -> None:
    """Raises TokenizerError for parts by which ids would differ each time, or decoding from what pieces spell."""
    if definition["model"].get("dropout"):
        raise TokenizerError(
            f"tokenizer.json: model.dropout={definition['model']['dropout']} gives a text other ids each time. "
            "Set it to null"
        )
    for part in _parts(definition.get("decoder")):
        known = {
            "Metaspace": part.get("replacement") == SPACE_MARK,
            "Replace": (part.get("pattern"), part.get("content")) == ({"String": SPACE_MARK}, " "),
            "Strip": part.get("content") == " " and not part.get("stop"),
        }
        if not known.get(part["type"], True):
            raise TokenizerError(f"tokenizer.json: decoder {part} is not supported, since it changes what pieces spell")


def _guarded(definition: dict[str, Any]) -> dict[str, Any]:
    """The definition without merges that spell a special's name or a byte piece's: text must not reach those."""
    model = definition["model"]
    if not model.get("merges"):
        return definition
    special = {token["content"] for token in definition["added_tokens"] if token["special"]}
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    kept = [pair for pair in pairs if (whole := "".join(pair)) not in special and not BYTE_PIECE.fullmatch(whole)]
    return definition | {"model": model | {"merges": kept}}


def _parts(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A decoder's parts, however they are nested."""
    if decoder is None:
        return []
    return [one for part in decoder["decoders"] for one in _parts(part)] if "decoders" in decoder else [decoder]


def _strips_first_space(decoder: Mapping[str, Any]) -> bool:
    """Whether decoding drops a text's first space, which the tokenizer had put there."""
    return any(
        (part["type"] == "Strip" and part["start"] > 0)
        or (part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never")
        for part in _parts(decoder)
    )


def _byte_characters() -> dict[str, int]:
    """Byte-level pieces write each byte as one visible character (GPT-2): itself if it has one, else from U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
