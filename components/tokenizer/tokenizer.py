"""The tokenizer a model is trained with: text, documents and conversations ↔ ids."""

import codecs
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from components.tokenizer.codec import Codec, TokenizerError
from components.tokenizer.template import DEFAULT_TEMPLATE, ChatTemplate

MODEL_FILE = "tokenizer.model"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"  # where transformers writes the template when it saves a folder again
PROBE_TURNS = tuple(
    {"role": role, "content": f" Probe {n} <&> \n"} for n, role in enumerate(("user", "assistant") * 2)
)


class Rendered(NamedTuple):
    """A conversation as ids; mask is True where the assistant speaks, its end of turn included."""

    ids: list[int]
    mask: list[bool]


class Tokenizer:
    """A SentencePiece model and a chat template.

    vocab_size, pad_id, bos_id
    eos_id        end of a document
    end_id        end of a turn: the special piece that the template writes after an assistant's message
    stop_ids      what ends a sampled text: end_id, eos_id
    byte_lengths  per id, the UTF-8 bytes it stands for (specials 0); over a text's ids they sum to its bytes
    fingerprint   SHA-256 of the model's bytes and the template, in hexadecimal
    Raises TokenizerError for a model or a template that cannot keep these promises.
    """

    def __init__(self, model_bytes: bytes, chat_template: str = DEFAULT_TEMPLATE) -> None:
        self.codec = Codec(model_bytes)
        self.chat_template = chat_template
        self.vocab_size = len(self.codec.pieces)
        self.pad_id, self.bos_id, self.eos_id = self.codec.pad_id, self.codec.bos_id, self.codec.eos_id
        self.byte_lengths = [len(spelling) for spelling in self.codec.spelling]
        self.fingerprint = hashlib.sha256(model_bytes + chat_template.encode()).hexdigest()
        self._template = ChatTemplate(chat_template, self._special_tokens())
        self.end_id = self._find_end_of_turn()
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((self.end_id, self.eos_id)))
        self._check_template()

    def __reduce__(self):
        return Tokenizer, (self.codec.model_bytes, self.chat_template)  # so that workers can be given one

    def _special_tokens(self) -> dict[str, str]:
        """The specials by the names that transformers and chat templates use."""
        ids = {"bos": self.bos_id, "eos": self.eos_id, "pad": self.pad_id, "unk": self.codec.unknown_id}
        return {f"{name}_token": self.codec.pieces[token_id] for name, token_id in ids.items()}

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
        return [self.bos_id, *self.encode(text), self.eos_id]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids; specials are left out, or shown by name. Bytes that are no UTF-8 become U+FFFD.

        Raises TokenizerError for an id outside the vocabulary.
        """
        return self.codec.decode(ids, skip_special)

    def render(self, messages: Sequence[Mapping]) -> Rendered:
        """A conversation by the chat template; each segment's ids are the same whatever stands beside it.

        messages: {"role", "content"}: at most one system message, first, then user and assistant in turns.
        Raises TokenizerError for other messages, or where the template refuses or alters them.
        """
        ids: list[int] = []
        mask: list[bool] = []
        after_assistant = False
        for text, role in self._template.segments(messages, add_generation_prompt=False):
            encoded = self.codec.encode_template(text) if role is None else self.encode(text)
            ids += encoded
            mask += [role == "assistant"] * len(encoded)
            if after_assistant:
                if encoded[:1] != [self.end_id]:
                    raise TokenizerError("the chat template must end every assistant's message the same way")
                mask[len(ids) - len(encoded)] = True
            after_assistant = role == "assistant"
        return Rendered(ids, mask)

    def render_prompt(self, messages: Sequence[Mapping]) -> list[int]:
        """Ids of a conversation that waits for the assistant: it ends with the assistant's header.

        Raises TokenizerError as `render` does, and where the last message is not the user's.
        """
        segments = self._template.segments(messages, add_generation_prompt=True)
        if messages[-1]["role"] != "user":
            raise TokenizerError("a prompt ends with the user's message; the last is the assistant's")
        ids: list[int] = []
        for text, role in segments:
            ids += self.codec.encode_template(text) if role is None else self.encode(text)
        return ids

    def _find_end_of_turn(self) -> int:
        segments = self._template.segments(PROBE_TURNS[:2], add_generation_prompt=False)
        end = self.codec.encode_template(segments[-1].text)[:1]
        if not end or end[0] not in self.codec.special_ids.values():
            raise TokenizerError(
                "the chat template must write a special piece right after an assistant's message, to end its "
                f"turn; it writes {segments[-1].text!r}"
            )
        return end[0]

    def _check_template(self) -> None:
        """Raises TokenizerError unless a chat begins with its only bos and goes on from its prompt."""
        ids, mask = self.render(PROBE_TURNS)
        if ids[0] != self.bos_id or ids.count(self.bos_id) != 1:
            raise TokenizerError(
                f"the chat template must write {self.codec.pieces[self.bos_id]} once, at the start; "
                f"it wrote {self.decode(ids, skip_special=False)!r}"
            )
        prompt = self.render_prompt(PROBE_TURNS[:1])
        if prompt != ids[: mask.index(True)]:
            raise TokenizerError(
                "with add_generation_prompt the chat template must write what stands before an assistant's "
                f"message; it wrote {self.decode(prompt, skip_special=False)!r}"
            )

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.model and tokenizer_config.json, a folder that transformers' AutoTokenizer reads.

        add_bos_token: transformers' encode(text) gives bos and our ids; chats have the template's bos only.
        transformers reads a special's name in plain text as the special itself. The file cannot forbid that,
        or chat templates would lose theirs: give its encode `split_special_tokens=True` for untrusted text,
        its apply_chat_template `sanitize_control_tokens=True`. It also reads U+2581 as a space.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": False,
            "add_prefix_space": False,
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            **self._special_tokens(),
            "chat_template": self.chat_template,
        }
        (folder / MODEL_FILE).write_bytes(self.codec.model_bytes)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Reads what `save` wrote, or such a folder made by others.

        Raises TokenizerError naming the file at fault.
        """
        folder = Path(folder)
        model, config = (_read(folder / name) for name in (MODEL_FILE, CONFIG_FILE))
        try:
            settings = json.loads(config)
        except ValueError as error:
            raise TokenizerError(f"{folder / CONFIG_FILE} is no JSON: {error}") from None
        template = settings.get("chat_template") if isinstance(settings, dict) else None
        if template is None and (folder / TEMPLATE_FILE).exists():
            template = _read(folder / TEMPLATE_FILE).decode()
        if not isinstance(template, str):
            raise TokenizerError(f"{folder / CONFIG_FILE} has no chat_template; nor is there {TEMPLATE_FILE}")
        try:
            return cls(model, template)
        except TokenizerError as error:
            raise TokenizerError(f"{folder}: {MODEL_FILE} or its chat template: {error}") from error


def _read(path: Path) -> bytes:
    """A file's bytes, or TokenizerError naming it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"cannot read {path}: {error.strerror}. Make a tokenizer with: python train.py stage=tokenizer"
        ) from None


class StreamDecoder:
    """Text of ids that come one at a time; a character is held back until its last byte is there."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._codec = tokenizer.codec
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that one more id makes certain, often "" inside a character."""
        return self._utf8.decode(self._codec.bytes_of(token_id, self._skip_special))

    def flush(self) -> str:
        """What was held back: U+FFFD if the ids ended inside a character. All texts joined equal `decode`."""
        return self._utf8.decode(b"", final=True)
