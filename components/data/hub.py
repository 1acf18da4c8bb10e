"""Data sets from the Hugging Face Hub, with an early and plain answer where there is no network."""

import re

import datasets
import huggingface_hub.constants

from components.hub import reachable, server

NAME = re.compile(r"(?P<name>[\w-][\w.-]*(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")


def load(path: str) -> datasets.Dataset:
    """The train split of `name[:config][@revision]`, from the library's cache where it lies there.

    Raises ConnectionError, saying what to do, when the Hub cannot be reached; with HF_HUB_OFFLINE=1 the cache
    alone is asked. Whatever else the library raises is passed on.
    """
    parts = NAME.fullmatch(path)
    assert parts, path
    advice = (
        "Set data.path to a local copy (a file or folder of .txt, .json, .jsonl, .jsonl.gz or .parquet; no "
        "such local path exists now), or HF_HUB_OFFLINE=1 if it is in the cache of Hugging Face already"
    )
    if not huggingface_hub.constants.HF_HUB_OFFLINE and not reachable():
        raise ConnectionError(f"{server()[0]} cannot be reached to download this data set. {advice}")
    try:
        return datasets.load_dataset(
            parts["name"], parts["config"], revision=parts["revision"], split=datasets.Split.TRAIN
        )
    except ConnectionError as error:
        raise ConnectionError(f"{error}. {advice}") from None
