"""The Hugging Face Hub: whether it can be reached, and a model's folder from it."""

import re
import socket
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime
from pathlib import Path
from typing import Any

MODEL = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
FOLDER = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)")  # how the library's cache calls a model's folder
PATIENCE = 4.0  # seconds for the first contact, name look-up included; the library itself retries for 23
NEEDED = ("*.safetensors", "*.json", "tokenizer.model", "*.jinja", "merges.txt", "vocab.txt")
DOUBLES = ("consolidated*", "*/*")  # the same weights in the maker's own form, and whatever lies in folders
INSTEAD = ("pytorch_model*.bin", *NEEDED[1:])  # of a model that has no safetensors


class HubError(ValueError):
    """A model cannot be had from the Hub; the message says what to do."""


def fetched(name: str, cache: str | Path) -> Path:
    """The folder of the model `owner/name[@revision]`, downloaded below `cache` unless it lies there.

    Only weights, configuration and tokenizer are fetched. With HF_HUB_OFFLINE=1 the cache alone is asked. Raises
    HubError within PATIENCE where the Hub cannot be reached, and for a model that it does not have.
    """
    parts = MODEL.fullmatch(name)
    assert parts, name
    advice = f"{name} is no folder here. Give a local folder with config.json, weights and tokenizer"
    import huggingface_hub  # a third of a second, for a name alone

    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    if not offline and not reachable():
        raise HubError(
            f"{server()[0]} cannot be reached to download a model. {advice}, or set HF_HUB_OFFLINE=1 if it "
            f"was downloaded to {cache} before"
        )
    place: dict[str, Any] = {"repo_id": parts["name"], "revision": parts["revision"], "cache_dir": str(cache)}
    try:
        if offline:
            return Path(huggingface_hub.snapshot_download(**place, local_files_only=True))
        files = huggingface_hub.HfApi().list_repo_files(parts["name"], revision=parts["revision"])
        wanted = NEEDED if any(file.endswith(".safetensors") for file in files) else INSTEAD
        return Path(huggingface_hub.snapshot_download(**place, allow_patterns=[*wanted], ignore_patterns=[*DOUBLES]))
    except (OSError, ValueError) as error:  # what the library raises is one of the two
        raise HubError(f"the Hub gave no model {name}: {' '.join(str(error).split())[:300]}. {advice}") from error


def name_of(folder: str | Path) -> str:
    """The Hub's name of a folder that `fetched` gave, "" for any other."""
    parts = Path(folder).parts
    if len(parts) < 3 or parts[-2] != "snapshots":
        return ""
    found = FOLDER.fullmatch(parts[-3])
    return f"{found['owner']}/{found['name']}" if found else ""


def server() -> tuple[str, int]:
    """Host and port that the library will talk to first: the proxy where one is set."""
    import urllib.request

    import huggingface_hub

    endpoint = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    proxy = urllib.request.getproxies().get(endpoint.scheme)
    if proxy and not urllib.request.proxy_bypass(endpoint.hostname or ""):
        endpoint = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return endpoint.hostname or "", endpoint.port or (443 if endpoint.scheme == "https" else 80)


def reachable() -> bool:
    """Whether a connection opens within PATIENCE; a name look-up may hang, so a thread waits for it."""

    def connect() -> bool:
        with socket.create_connection(server(), timeout=PATIENCE - 1):
            return True

    pool = ThreadPoolExecutor(max_workers=1)
    try:
        return pool.submit(connect).result(timeout=PATIENCE)
    except (OSError, OutOfTime):
        return False
    finally:
        pool.shutdown(wait=False)
