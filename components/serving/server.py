"""Runs the HTTP server: loads models, takes a port, and ends within a second of Ctrl-C."""

import ipaddress
import logging
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
import uvicorn

from components.artifacts import store
from components.models.heads import CausalLM
from components.serving.api import new_app
from components.serving.engine import Engine
from components.serving.loading import AskedDType, load
from components.serving.served import Served
from components.serving.service import Limits, Service
from components.serving.votes import Votes
from components.system.memory import available

Shown = Literal["none", "requests", "texts"]
CACHES = 0.5  # of the free memory is for the caches of running rows
LOCAL = ("localhost", "127.0.0.1", "[::1]")


def loaded(folders: Mapping[str, Path], *, context: int | None, device: str, dtype: AskedDType) -> list[Served]:
    """The models in artifacts' folders, by name. Raises ValueError as `loading.load` does, and for a tokenizer that
    does not fit its model."""
    served = []
    for name, folder in folders.items():
        model = load(folder, context=context, device=device, dtype=dtype)
        tokenizer, stage = store.load_tokenizer(folder), store.read_card(folder).get("stage", "")
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model only "
                f"{model.config.vocab_size}: they do not belong together"
            )
        served.append(Served(name, model, tokenizer, folder, stage, int(folder.stat().st_mtime)))
    return served


def new_service(served: Sequence[Served], limits: Limits, *, most_rows: int, most_waiting: int, votes: Path) -> Service:
    """The service of loaded models, with its engine running. votes: the file that keeps them."""
    models = {one.name: one.model for one in served if isinstance(one.model, CausalLM)}
    engine = Engine(models, most_rows=most_rows, most_waiting=most_waiting, cache_bytes=CACHES * _free(models.values()))
    return Service(served, engine, limits, Votes(votes))


def _free(models: Iterable[CausalLM]) -> float:
    """Bytes of memory that are free where the models are: on their device, or in the machine."""
    device = next((next(model.parameters()).device for model in models), torch.device("cpu"))
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def names_of(host: str, more: Sequence[str]) -> list[str]:
    """The Host headers to allow, without ports; []: any. more: those of --allow-host.

    Any is allowed on an address that others can reach, unless some are named. Raises ValueError for what is no name.
    """
    if not more and not is_loopback(host):
        return []
    return [*LOCAL, *(_as_header(name) for name in (host, *more))]


def _as_header(name: str) -> str:
    name = name.strip().lower()
    address = name.removeprefix("[").removesuffix("]")
    if not name or "/" in name or ":" in address and not _is_address(address):
        raise ValueError(
            f"--allow-host: expected a name without scheme and port, such as chat.example.com, got {name!r}"
        )
    return f"[{address}]" if ":" in address else name


def _is_address(text: str) -> bool:
    with suppress(ValueError):
        return bool(ipaddress.ip_address(text))
    return False


def bound(host: str, port: int) -> socket.socket:
    """A socket on the address; port 0: a free one. Raises ValueError if the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        raise ValueError(
            f"cannot listen on {host}:{port}: {error.strerror}. Try --port 0, which takes a free one"
        ) from None
    return taken


class _Server(uvicorn.Server):
    """Also ends answers in progress when it is asked to exit."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.engine.stop()
        super().handle_exit(sig, frame)


def run(
    service: Service,
    taken: socket.socket,
    *,
    hosts: Sequence[str],
    keys: Sequence[str],
    shown: Literal["none", "requests", "texts"],
) -> None:
    """Serves on a bound socket until Ctrl-C or a signal to end. hosts, keys: of new_app; shown: what the log on stderr
    has of requests."""
    service.logs_texts = shown == "texts"
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    own = logging.getLogger("components.serving")
    own.addHandler(handler)
    own.setLevel(logging.WARNING if shown == "none" else logging.INFO)
    app = new_app(service, keys=keys, hosts=hosts)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=1,
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        with suppress(KeyboardInterrupt):
            _Server(config, service).run(sockets=[taken])
    finally:
        service.close()


def _dtype(model: torch.nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def welcome(service: Service, address: str, keys: Sequence[str]) -> str:
    """The first lines: what is served, where, and how to call it."""
    lines = [
        f"  {served.name}  {'language model' if served.generates else 'reward model'}, "
        f"{served.model.config.num_parameters():,} parameters in {_dtype(served.model)}, "
        f"context of {served.room} tokens"
        for served in service.served.values()
    ]
    first = next((one for one in service.served.values() if one.generates), None)
    key = " -H 'Authorization: Bearer KEY'" if keys else ""
    body = '{"model": "%s", "messages": [{"role": "user", "content": "Hello"}]}' % (first.name if first else "")
    call = f"curl {address}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
    where = f"address {address}/v1; page {address}/ (Ctrl-C ends)"
    return "\n".join(["models", *lines, where, *([call] if first else [])])
