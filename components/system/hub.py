"""The Hugging Face Hub: whether it is reachable, and downloads of models."""

import re
import socket
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime
from pathlib import Path
from typing import Any

MODEL = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
FOLDER = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)")  # a model's folder in the library's cache
PATIENCE = 4.0  # seconds for the first contact, name lookup included; the library itself retries for 23
NEEDED = ("*.safetensors", "*.json", "tokenizer.model", "*.jinja", "merges.txt", "vocab.txt")
DOUBLES = ("consolidated*", "*/*")  # the same weights in the author's own format, and all subfolders
INSTEAD = ("pytorch_model*.bin", *NEEDED[1:])  # for a model without safetensors


class HubError(ValueError):
    """A model cannot be downloaded from the Hub; the message says what to do."""


def fetched(name: str, cache: str | Path) -> Path:
    """The folder of the model `owner/name[@revision]`, downloaded below `cache` unless it is there already.

    Downloads weights, configuration and tokenizer only. With HF_HUB_OFFLINE=1, looks in the cache only. Raises HubError
    within PATIENCE if the Hub is unreachable, and for a model that it does not have.
    """
    parts = MODEL.fullmatch(name)
    assert parts, name
    advice = f"{name} is not a local folder. Give a local folder with config.json, weights and tokenizer"
    import huggingface_hub  # takes a third of a second, so only when a name needs it

    offline = huggingface_hub.constants.HF_HUB_OFFLINE
    if not offline and not reachable():
        raise HubError(
            f"{server()[0]} cannot be reached to download a model. {advice}, or set HF_HUB_OFFLINE=1 "
            f"if {cache} already has it"
        )
    place: dict[str, Any] = {"repo_id": parts["name"], "revision": parts["revision"], "cache_dir": str(cache)}
    try:
        if offline:
            return Path(huggingface_hub.snapshot_download(**place, local_files_only=True))
        files = huggingface_hub.HfApi().list_repo_files(parts["name"], revision=parts["revision"])
        wanted = NEEDED if any(file.endswith(".safetensors") for file in files) else INSTEAD
        return Path(huggingface_hub.snapshot_download(**place, allow_patterns=[*wanted], ignore_patterns=[*DOUBLES]))
    except (OSError, ValueError) as error:  # the library raises one of the two
        reason = " ".join(str(error).split())[:300]
        raise HubError(f"cannot download the model {name} from the Hub: {reason}. {advice}") from error


def name_of(folder: str | Path) -> str:
    """The Hub name of a folder that `fetched` returned, "" for any other."""
    parts = Path(folder).parts
    if len(parts) < 3 or parts[-2] != "snapshots":
        return ""
    match = FOLDER.fullmatch(parts[-3])
    return f"{match['owner']}/{match['name']}" if match else ""


def server() -> tuple[str, int]:
    """Host and port that the library connects to first: the proxy if one is set."""
    import urllib.request

    import huggingface_hub

    endpoint = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    proxy = urllib.request.getproxies().get(endpoint.scheme)
    if proxy and not urllib.request.proxy_bypass(endpoint.hostname or ""):
        endpoint = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return endpoint.hostname or "", endpoint.port or (443 if endpoint.scheme == "https" else 80)


def reachable() -> bool:
    """Whether a connection opens within PATIENCE; a name lookup can hang, so a thread waits for it."""

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
