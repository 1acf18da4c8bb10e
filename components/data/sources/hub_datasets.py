"""Data sets from the Hugging Face Hub, with an early and clear error if there is no network."""

import re
from typing import TYPE_CHECKING

import huggingface_hub.constants

from components.system.hub import reachable, server

if TYPE_CHECKING:
    import datasets

NAME = re.compile(r"(?P<name>[\w-][\w.-]*(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")


LOCAL_COPY = "Set data.path=<file or folder> to a local copy"


def load(path: str, split: str, *, subset: str | None, files: str | None, remedy: str) -> "datasets.Dataset":
    """One split of `name[:config][@revision]`, from the library's cache if it is there.

    subset: the configuration if the path names none; files: a glob pattern of files that make up the split.
    Raises ConnectionError with advice (remedy: how to name a local copy) if the Hub cannot be reached; with
    HF_HUB_OFFLINE=1, looks in the cache only. Passes on the library's other errors.
    """
    import datasets  # takes seconds, so only for data from the Hub

    parts = NAME.fullmatch(path)
    assert parts, path
    advice = (
        f"{remedy} (with the Hub's folder structure and supported file types; no such local path exists "
        "now), or set HF_HUB_OFFLINE=1 if it is in the Hugging Face cache already"
    )
    if not huggingface_hub.constants.HF_HUB_OFFLINE and not reachable():
        raise ConnectionError(f"{server()[0]} cannot be reached to download this data set. {advice}")
    try:
        return datasets.load_dataset(
            parts["name"],
            parts["config"] or subset,
            revision=parts["revision"],
            split=split,
            **({} if files is None else {"data_files": {split: files}}),
        )
    except ConnectionError as error:
        raise ConnectionError(f"{error}. {advice}") from None
