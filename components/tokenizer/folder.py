"""A tokenizer's folder, from any source → its codec, chat template and stop ids, as transformers reads it.

tokenizer.json takes precedence; a tokenizer.model made here is read exactly, any other like transformers'
LlamaTokenizer.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from components.system.disk import read_json, read_json_if_any
from components.tokenizer.codec import Codec, TokenizerError, check_text
from components.tokenizer.exact import ExactCodec, InexactError
from components.tokenizer.fast import FastCodec, library, parsed
from components.tokenizer.folder_fields import NAMES, check_generation, check_settings, check_specials, extra
from components.tokenizer.llama import as_llama, from_sentencepiece
from components.tokenizer.template import CHATML_TEMPLATE, PLAIN_TEMPLATE

GENERATION_FILE = "generation_config.json"
FAST_FILE = "tokenizer.json"
MODEL_FILE = "tokenizer.model"
CONFIG_FILE = "tokenizer_config.json"
SPECIALS_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
TEMPLATE_FILE = "chat_template.jinja"  # where transformers saves the template
MORE_TEMPLATES = "additional_chat_templates"
CLASS_OF_MODEL = {"gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"}
END_OF_TEXT = "<|endoftext|>"
DEFAULTS = {  # special tokens of a class, if the folder names none
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), END_OF_TEXT),
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
}

log = logging.getLogger(__name__)


class Contents(NamedTuple):
    """What a folder says of its tokenizer. stop_ids: the ids that end a text according to generation_config.json."""

    codec: Codec
    chat_template: str
    stop_ids: tuple[int, ...]


def is_present(folder: Path) -> bool:
    """Whether the folder contains a tokenizer."""
    return any((folder / name).exists() for name in (FAST_FILE, MODEL_FILE))


def content(folder: Path) -> str:
    """sha256 of everything that determines the folder's tokenizer; equal ones need to be read only once."""
    names = (FAST_FILE, MODEL_FILE, CONFIG_FILE, SPECIALS_FILE, ADDED_FILE, TEMPLATE_FILE)
    files = [folder / name for name in (*names, "config.json", GENERATION_FILE)]
    digest = hashlib.sha256()
    for file in [*files, *sorted((folder / MORE_TEMPLATES).glob("*"))]:
        if file.is_file():
            digest.update(f"{file.name} {file.stat().st_size} ".encode() + file.read_bytes())
    return digest.hexdigest()


def read(folder: Path) -> Contents:
    """Reads a tokenizer's folder. Raises TokenizerError naming the faulty file."""
    if not (folder / FAST_FILE).exists():
        model, _ = read_bytes(folder / MODEL_FILE), read_bytes(folder / CONFIG_FILE)  # both must be there
        settings = read_json(folder / CONFIG_FILE, TokenizerError)
        check_settings(folder / CONFIG_FILE, settings)
        try:
            codec: Codec = ExactCodec(model)
        except InexactError:
            codec = _foreign(folder, settings, from_sentencepiece(model))
        except TokenizerError as error:
            raise TokenizerError(f"{folder / MODEL_FILE}: {error}") from error
    else:
        settings = _optional(folder / CONFIG_FILE)
        check_settings(folder / CONFIG_FILE, settings)
        codec = _foreign(folder, settings, read_json(folder / FAST_FILE, TokenizerError))
    template = _chat_template(folder, settings)
    if template is None and codec.strict:
        raise TokenizerError(f"{folder / CONFIG_FILE} has no chat_template, and there is no {TEMPLATE_FILE}")
    return Contents(codec, template or _default_template(folder, codec), _stop_ids(folder, codec))


def _foreign(folder: Path, settings: dict[str, Any], definition: dict[str, Any]) -> FastCodec:
    """The codec of a folder from elsewhere: its definition, with the additions in the other files."""
    if not isinstance(definition.get("model"), dict) or not definition["model"].get("vocab"):
        raise TokenizerError(f"{folder / FAST_FILE}: expected a tokenizer with model.vocab, got other JSON")
    model_type = _optional(folder / "config.json").get("model_type")
    named_class = settings.get("tokenizer_class") or CLASS_OF_MODEL.get(str(model_type), "")
    if not (folder / FAST_FILE).exists():
        named_class = "LlamaTokenizer"
    named_class = named_class.removesuffix("Fast")
    if named_class in ("LlamaTokenizer", "CodeLlamaTokenizer") and model_type in (None, "llama"):
        definition = as_llama(definition, settings)
    if named_class in ("GPT2Tokenizer", "Qwen2Tokenizer"):
        _set_prefix_space(definition.get("pre_tokenizer") or {}, settings.get("add_prefix_space") or False)
    named = DEFAULTS.get(named_class, {}) | settings
    check_specials(folder / SPECIALS_FILE, mapped := _optional(folder / SPECIALS_FILE))
    if "added_tokens_decoder" not in settings:
        named |= mapped
    whole = _with_added(folder, definition, settings, named)
    special = {name: _content(named[name]) for name in NAMES if named.get(name)}
    if "eos_token" not in special:
        raise TokenizerError(
            f"{folder}: no eos_token in {CONFIG_FILE} or {SPECIALS_FILE}; without one, no text ends. "
            f'Add it to {CONFIG_FILE}: "eos_token": "…"'
        )
    if "pad_token" not in special:
        log.warning("%s has no pad token: eos (%s) pads rows too", folder, special["eos_token"])
        special["pad_token"] = special["eos_token"]
    carried = {name: (folder / name).read_bytes() for name in (MODEL_FILE,) if (folder / name).exists()}
    # auto_map names code for transformers to download and run; only data is written here
    settings = {name: value for name, value in settings.items() if name not in (*NAMES, "auto_map")}
    try:
        return FastCodec(whole, special, settings, carried)
    except TokenizerError as error:
        raise TokenizerError(f"{folder}: {error}") from error


def _set_prefix_space(pre_tokenizer: dict[str, Any], prefix_space: bool) -> None:
    """These classes split text into words by their own setting, which overrides tokenizer.json."""
    for part in [pre_tokenizer, *pre_tokenizer.get("pretokenizers", [])]:
        if part.get("type") == "ByteLevel":
            part["add_prefix_space"] = prefix_space


def _with_added(folder: Path, definition: dict[str, Any], settings: Mapping[str, Any], named: Mapping[str, Any]) -> str:
    """The definition with the added and special tokens that the other files name, in transformers' order."""
    package = library()
    try:
        tokenizer = parsed(definition)
    except TokenizerError as error:
        raise TokenizerError(f"{folder}/{error}") from None
    known = tokenizer.get_added_tokens_decoder()
    listed = sorted((int(i), token) for i, token in settings.get("added_tokens_decoder", {}).items())
    tokens = [made for _, token in listed if repr(made := _token(package, token)) not in map(repr, known.values())]
    special = {_content(named[name]) for name in NAMES if named.get(name)}
    special |= {_content(token) for token in extra(named)}
    if "added_tokens_decoder" not in settings:
        for content in _optional(folder / ADDED_FILE):
            if tokenizer.token_to_id(content) is None:
                alone = content in special
                tokens.append(package.AddedToken(content, normalized=not alone, special=alone))
    tokenizer.add_tokens(tokens)
    flags = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    values = [named[name] for name in NAMES if named.get(name)] + extra(named)
    tokenizer.add_special_tokens([flags.get(_content(value)) or _token(package, value) for value in values])
    if not (folder / FAST_FILE).exists():
        tokenizer.post_processor = _bos_and_eos(package, tokenizer, settings, named)
    return tokenizer.to_str()


def _bos_and_eos(package: Any, tokenizer: Any, settings: Mapping[str, Any], named: Mapping[str, Any]) -> Any:
    """What transformers' encode adds around a text; `Tokenizer.encode` adds nothing."""
    bos, eos = (
        [_content(named[f"{name}_token"])] if settings.get(f"add_{name}_token") and named.get(f"{name}_token") else []
        for name in ("bos", "eos")
    )
    single, other = [*bos, "$A", *eos], [f"{part}:1" for part in (*bos, "$B", *eos)]
    known = [(token, tokenizer.token_to_id(token)) for token in (*bos, *eos)]
    return package.processors.TemplateProcessing(single=single, pair=single + other, special_tokens=known)


def _content(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else token


def _token(package: Any, token: Any) -> Any:
    """An AddedToken from its form in a JSON file: its name, or its content with flags."""
    if isinstance(token, str):
        return package.AddedToken(token, special=True, normalized=False)
    known = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return package.AddedToken(**{name: token[name] for name in known if name in token})


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The template for plain chats: chat_template.jinja before the config's, "default" if there are several."""
    file, more = folder / TEMPLATE_FILE, sorted((folder / MORE_TEMPLATES).glob("*.jinja"))
    if not file.exists():
        file = folder / MORE_TEMPLATES / "default.jinja"
    if file.exists():
        _log_ignored(folder, [other.stem for other in more if other.stem != "default"])
        try:
            return read_bytes(file).decode()
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{file} is not UTF-8: {error}") from None
    template = settings.get("chat_template")
    if isinstance(template, list) and all(_is_named(entry) for entry in template):
        template = {entry["name"]: entry["template"] for entry in template}
    several = template if isinstance(template, dict) else {}
    names = [*several, *(other.stem for other in more)]
    if several or more:
        template = several.get("default") if several else template
        if template is None:
            raise TokenizerError(f"{folder / CONFIG_FILE}: chat_template has {sorted(names)}, none named default")
        _log_ignored(folder, [name for name in names if name != "default"])
    if not isinstance(template, str | None):
        raise TokenizerError(f"{folder / CONFIG_FILE}: expected chat_template to be a string or named strings")
    return None if template is None else check_text(template, f"{folder / CONFIG_FILE}: chat_template")


def _is_named(entry: Any) -> bool:
    """Whether an entry is a named template: its name and its text."""
    return isinstance(entry, dict) and isinstance(entry.get("name"), str) and "template" in entry


def _log_ignored(folder: Path, names: list[str]) -> None:
    if names:
        log.info("%s: using the default chat template; ignoring: %s", folder, ", ".join(sorted(names)))


def _default_template(folder: Path, codec: Codec) -> str:
    """A template for a base model's folder that has none: ChatML if its tokens exist, else plain text and eos."""
    chatml = {"<|im_start|>", "<|im_end|>"} <= codec.special_ids.keys()
    log.warning(
        "%s has no chat template: using %s. To use another, put %s into the folder",
        folder,
        "ChatML (<|im_start|>user …)" if chatml else f"USER: … ASSISTANT: …{codec.special_tokens['eos_token']}",
        TEMPLATE_FILE,
    )
    return CHATML_TEMPLATE if chatml else PLAIN_TEMPLATE


def _stop_ids(folder: Path, codec: Codec) -> tuple[int, ...]:
    fields = _optional(folder / GENERATION_FILE)
    check_generation(folder / GENERATION_FILE, fields, codec)
    named = fields.get("eos_token_id")
    ids = named if isinstance(named, list) else [] if named is None else [named]
    for token_id in ids:
        if not isinstance(token_id, int) or not 0 <= token_id < len(codec.tokens):
            raise TokenizerError(f"{folder / GENERATION_FILE}: eos_token_id {token_id!r} is not an id of the tokenizer")
    return tuple(ids)


def _optional(file: Path) -> dict[str, Any]:
    return read_json_if_any(file, TokenizerError) or {}


def read_bytes(file: Path) -> bytes:
    """A file's bytes. Raises TokenizerError naming it."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"cannot read {file}: {error.strerror}. Make a tokenizer with: python train.py stage=tokenizer"
        ) from None
