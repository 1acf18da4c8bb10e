"""Metadata of an artifact: its card, the shape of its model, its tokenizer. Read without torch."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts.renamed import as_named_now
from components.models.config import GPTConfig
from components.models.hf_values import check_shape
from components.system.disk import hash_of, present, read_json, read_json_if_any

if TYPE_CHECKING:  # whose import takes longer than reading all the rest
    from components.tokenizer.tokenizer import Tokenizer

CARD = "card.json"
README = "README.md"
KINDS = {"CausalLM": "a language model", "SequenceClassification": "a reward model"}
PLACE = re.compile(r"(data|comparisons|text)(\.pretraining)?\.(path|root|mixture\.\d+\.path)")  # inputs: where data is
RESUMED = "checkpoint (content)"  # the input that names a checkpoint with other settings that training started from
TOKENIZERS_KEPT = 2  # the models' tokenizer, and one that differs from it in a file
_tokenizers: "dict[str, Tokenizer]" = {}  # by content


class ArtifactError(ValueError):
    """An artifact is missing, damaged, or not what the reader needs."""


def read_card(path: str | Path) -> dict[str, Any]:
    """The artifact's card.json, with the current names of its inputs; {} for a folder without one.

    Raises ArtifactError if it is not JSON.
    """
    file = Path(path) / CARD
    card = read_json_if_any(file, ArtifactError) or {}
    return card | {"inputs": as_named_now(card["inputs"])} if isinstance(card.get("inputs"), dict) else card


def content_hash(path: str | Path) -> str:
    """sha256 over the names and bytes of an artifact's files, except card.json and README.md, which repeats it."""
    return hash_of(path, but=(CARD, README))


def load_tokenizer(path: str | Path) -> "Tokenizer":
    """The tokenizer in an artifact of any stage. All models of a run contain the same one, so it is cached."""
    from components.tokenizer import folder as tokenizer_folder
    from components.tokenizer.tokenizer import Tokenizer

    _expect_folder(path)
    content = tokenizer_folder.content(Path(path))
    if content not in _tokenizers:
        tokenizer = Tokenizer.load(path)
        while len(_tokenizers) >= TOKENIZERS_KEPT:
            _tokenizers.pop(next(iter(_tokenizers)))
        _tokenizers[content] = tokenizer
    return _tokenizers[content]


def load_config(path: str | Path, *, context: int | None = None) -> tuple[GPTConfig, str]:
    """(shape, kind) of the model in a folder; kind is "CausalLM" or "SequenceClassification".

    context: length in tokens of the longest sequence that the model must handle; None: its number of positions.
    Raises ArtifactError for a folder without config.json, another architecture, an unsupported feature, and a context
    that is too long.
    """
    _expect_folder(path)
    file = Path(path) / "config.json"
    if not file.exists():
        # imports torch, which only a folder of adapters needs
        from components.artifacts.peft import base_of, read_adapters

        base = base_of(path)
        if base is not None:
            return load_config(base, context=context)[0], read_adapters(path)[2]
        raise ArtifactError(f"{path} has no config.json: expected a model's folder, found {_listing(path)}")
    fields = read_json(file, ArtifactError)
    architectures = fields.get("architectures") or ["?"]
    architecture = str(architectures[0] if isinstance(architectures, list) else architectures)
    endings = {f"For{kind}": kind for kind in KINDS} | {"GPT2LMHeadModel": "CausalLM"}
    kind = next((kind for ending, kind in endings.items() if architecture.endswith(ending)), None)
    if kind is None:
        raise ArtifactError(f"{file}: architecture {architecture!r} is neither a CausalLM nor a SequenceClassification")
    try:
        check_shape(fields)
        return GPTConfig.from_hf(fields, context), kind
    except KeyError as error:
        raise ArtifactError(f"{file} lacks the field {error}") from error
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: {error}") from error


def _expect_folder(path: str | Path) -> None:
    if not present(path):
        raise ArtifactError(f"no artifact at {path}: expected a folder with config.json or tokenizer.model")


def _listing(path: str | Path) -> str:
    return ", ".join(sorted(p.name for p in Path(path).iterdir())[:6]) or "nothing"


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Sorted names of the inputs that differ. RESUMED counts only if it is among the new inputs: the command that
    resumes a run does not have to repeat what the run started from. Where data is read does not count, since its
    content is an input."""
    names = before.keys() | now.keys() if RESUMED in now else (before.keys() | now.keys()) - {RESUMED}
    return sorted(name for name in names if before.get(name) != now.get(name) and not PLACE.fullmatch(name))
