"""The folder that a job of a sweep writes to, named after the overrides that the sweep varies."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from components.launch.overrides import written

NAME_BYTES, VALUE_BYTES = 200, 60  # limits of a sweep folder's name (file systems allow 255) and of a value in it
SWEPT = "GRADUS_SWEPT_KEYS"  # an environment variable, for jobs in other processes


def sweep_folder(folder: str, *, _root_: DictConfig) -> str:
    """The folder that a job of a sweep writes to, below its run: `folder`-sweep/<key>=<value>,… of the swept overrides,
    next to what a single run writes; just `folder` if those overrides already name it. For a pipeline, whose folder is
    the run itself, <key>=<value>,….

    run names a folder; so do model and stage if the run and the folder, as written, follow from them.
    """
    config: Any = OmegaConf.to_container(_root_, resolve=False)
    swept = set(os.environ.get(SWEPT, "").split(",")) - naming_keys(config["run"])
    if "stage" in swept and _follows_from_stage(config["paths"]["folder"]):
        swept.remove("stage")
    name = folder_name([o for o in parsed(written(HydraConfig.get())) if o.key_or_group in swept])
    return f"{'.' if folder == '.' else f'{folder}-sweep'}/{name}" if name else folder


def folder_name(overrides: Sequence[Override]) -> str:
    """'<key>=<value>,…', '' without overrides, at most NAME_BYTES long. Different values give different names on every
    file system."""
    name = ",".join(f"{o.key_or_group.replace('/', '_')}={_in_name(o)}" for o in overrides)
    if len(name.encode()) > NAME_BYTES:
        name = f"{name.encode()[: NAME_BYTES - 9].decode(errors='ignore')}-{_digest(name)}"
    return name


def _in_name(override: Override) -> str:
    """A swept value as part of a folder's name: the value itself if it is short and consists of lower-case letters,
    digits and . + @ - only; else its readable part and a digest, since others may look alike or differ only in case."""
    value = override.value()
    text = value if isinstance(value, str) else override.get_value_element_as_str()
    readable = re.sub(r"[^\w.+@-]+", "_", unicodedata.normalize("NFC", text)).strip("_")
    bare = text == text.lower() and _reads_back(text, value) if isinstance(value, str) else True
    if bare and readable == text and len(text.encode()) <= VALUE_BYTES:
        return text
    short = readable.encode()[:VALUE_BYTES].decode(errors="ignore")
    return f"{short}-{_digest(f'{type(value).__name__} {text}')}".removeprefix("-")


def _reads_back(text: str, value: str) -> bool:
    """Whether Hydra parses the bare text as the string, unlike "1"."""
    try:
        return bool(text) and parsed([f"x={text}"])[0].value() == value
    except HydraException:
        return False


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def parsed(overrides: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them. Raises HydraException for a text that is no override."""
    return OverridesParser.create().parse_overrides(list(overrides))


def naming_keys(run: str) -> set[str]:
    """The keys whose values name a run's folder: run and, if `run` as written refers to its choice, model."""
    return {"run", "model"} if _refers(run, "model") else {"run"}


def _follows_from_stage(folder: str) -> bool:
    """Whether paths.folder, as written, refers to the choice of the stage or is what the stage's own file says."""
    runtime: Any = HydraConfig.get().runtime
    files = [Path(source.path, "stage", f"{runtime.choices.stage}.yaml") for source in runtime.config_sources]
    own: Any = next((OmegaConf.load(file) for file in files if file.is_file()), {})
    return _refers(folder, "stage") or folder == own.get("paths", {}).get("folder")


def _refers(text: str, group: str) -> bool:
    """Whether an interpolation in the text refers to the choice of a config group."""
    return re.search(rf"\$\{{hydra[:.]runtime\.choices\.{group}\}}", text) is not None
