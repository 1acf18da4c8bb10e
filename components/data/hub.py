"""Data sets from the Hugging Face Hub, with an early and plain answer where there is no network."""

import re
import socket
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime

import datasets
import huggingface_hub.constants

NAME = re.compile(r"(?P<name>[\w-][\w.-]*(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
PATIENCE = 4.0  # seconds for the first contact, name look-up included; the library itself retries for 23


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
    if not huggingface_hub.constants.HF_HUB_OFFLINE and not _reachable():
        raise ConnectionError(f"{_server()[0]} cannot be reached to download this data set. {advice}")
    try:
        return datasets.load_dataset(
            parts["name"], parts["config"], revision=parts["revision"], split=datasets.Split.TRAIN
        )
    except ConnectionError as error:
        raise ConnectionError(f"{error}. {advice}") from None


def _server() -> tuple[str, int]:
    """Host and port that the library will talk to first: the proxy where one is set."""
    endpoint = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    proxy = urllib.request.getproxies().get(endpoint.scheme)
    if proxy and not urllib.request.proxy_bypass(endpoint.hostname or ""):
        endpoint = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return endpoint.hostname or "", endpoint.port or (443 if endpoint.scheme == "https" else 80)


def _reachable() -> bool:
    """Whether a connection opens within PATIENCE; a name look-up may hang, so a thread waits for it."""

    def connect() -> bool:
        with socket.create_connection(_server(), timeout=PATIENCE - 1):
            return True

    pool = ThreadPoolExecutor(max_workers=1)
    try:
        return pool.submit(connect).result(timeout=PATIENCE)
    except (OSError, OutOfTime):
        return False
    finally:
        pool.shutdown(wait=False)
