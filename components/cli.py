"""The `gradus` command: everything that needs only an artifact's folder."""

import atexit
import gc
import secrets
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from components.launch import heap
from components.system import hub, installing

app = typer.Typer(
    name="gradus", help="Chat with or inspect what a run made.", no_args_is_help=True, pretty_exceptions_enable=False
)
Talking = Annotated[
    str,
    typer.Argument(
        help="a run (tiny), a stage's folder (logs/tiny/ppo), an artifact, or a model on the Hub (owner/name)"
    ),
]
LOOPBACK = "127.0.0.1"
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps; auto: CUDA if available")]
WeightType = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(help="of the weights in memory; auto: float32, on CUDA what the model's config.json names"),
]
Logs = Annotated[Path, typer.Option(help="the folder of runs")]
Artifact = Annotated[Path, typer.Argument(help="an artifact (…/export) or a stage's folder, such as logs/tiny/ppo")]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turns errors that a user can cause (ValueError, OSError) into one line on stderr and exit status 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(f"gradus: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"gradus {installing.version()}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


@app.command()
def chat(
    path: Talking,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the most likely token")] = 0.7,
    top_p: Annotated[float, typer.Option(help="sample from the most likely tokens of this share, in (0, 1]")] = 1.0,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="longest answer; default: what fits")] = None,
    seed: Annotated[int | None, typer.Option(help="same seed, same answers; default: random")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="tokens of the longest dialogue; default: all")] = None,
    device: Device = "auto",
    dtype: WeightType = "auto",
    system: Annotated[str | None, typer.Option(help="instructions before the conversation")] = None,
    logs: Logs = Path("logs"),
) -> None:
    """Chat with a language model. Lines from a pipe are answered one by one."""
    with plain_errors():
        from components.artifacts import store
        from components.models.heads import CausalLM
        from components.serving import loading, terminal
        from components.serving.session import ChatSession

        folder = chat_folder(path, logs)
        expect_language_model(folder)
        stage = store.read_card(folder).get("stage")
        model = loading.load(folder, context=context, device=device, dtype=dtype)
        assert isinstance(model, CausalLM)
        session = ChatSession(
            model,
            store.load_tokenizer(folder),
            seed=secrets.randbits(32) if seed is None else seed,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            base=stage == "pretrain",
        )
        session.system = system
        size = f"{model.config.num_parameters():,} parameters, context of {session.context} tokens"
        note = "a base model: it continues your text and does not answer; /base turns the chat template on"
        with loading.enough_memory("a second copy of the weights, which decodes", device, dtype):
            terminal.run(
                session,
                banner=f"{folder}: {f'stage {stage}, ' if stage else ''}{size}",
                note=note if session.base else None,
            )


@app.command()
def serve(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="runs (tiny: all of its models), stages' folders, artifacts, models on the Hub (owner/name)"
        ),
    ],
    host: Annotated[str, typer.Option(help="the address to listen on; only this machine reaches 127.0.0.1")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one")] = 8000,
    api_key: Annotated[
        list[str] | None, typer.Option(envvar="GRADUS_API_KEY", help="clients must send it; can be given several times")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="a name for the server, as of a reverse proxy; can be given several times")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="tokens of prompt and answer; default: the model's")
    ] = None,
    device: Device = "auto",
    dtype: WeightType = "auto",
    max_rows: Annotated[int, typer.Option(min=1, help="samples of a model that decode together")] = 64,
    max_waiting: Annotated[int, typer.Option(min=1, help="requests that wait; more get status 429")] = 256,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="longest answer; default: what fits")] = None,
    max_seconds: Annotated[float, typer.Option(min=0, help="longest time of an answer")] = 600.0,
    max_bytes: Annotated[int, typer.Option(min=1, help="largest request")] = 4 * 2**20,
    log: Annotated[Literal["none", "requests", "texts"], typer.Option(help="texts: all of them too")] = "requests",
    votes: Annotated[Path | None, typer.Option(help="where votes are kept; default: votes.jsonl in --logs")] = None,
    logs: Logs = Path("logs"),
) -> None:
    """Serve models through an OpenAI-compatible API."""
    with plain_errors():
        server = serving_module()
        from components.serving import loading

        if not all(key.strip() for key in api_key or []):
            raise ValueError("--api-key: expected a text that is not empty")
        names = server.names_of(host, allow_host or [])
        opened = server.bound(host, port)  # before the models are loaded, which takes long
    with opened:
        with plain_errors():
            folders = all_to_serve(paths, logs)
            served = server.loaded(folders, context=context, device=device, dtype=dtype)
            limits = server.Limits(body=max_bytes, seconds=max_seconds, tokens=max_tokens)
            kept = votes or logs / "votes.jsonl"
            with loading.enough_memory("a second copy of the weights, which decodes", device, dtype):
                service = server.new_service(served, limits, most_rows=max_rows, most_waiting=max_waiting, votes=kept)
        if not server.is_loopback(host):
            warning = f"warning: {host} can be reached from other machines"
            typer.echo(f"{warning}{'' if api_key else '; anybody there can use the models: give --api-key'}", err=True)
        opened.listen(128)
        shown = f"[{host}]" if ":" in host else host
        typer.echo(server.welcome(service, f"http://{shown}:{opened.getsockname()[1]}", api_key or []))
        server.run(service, opened, hosts=names, keys=api_key or [], shown=log)


def serving_module() -> Any:
    """components.serving.server. Raises ValueError if the packages that it needs are not installed."""
    try:
        from components.serving import server
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise ValueError(installing.missing("gradus serve", error.name, "serve")) from None
    return server


@app.command()
def export(
    path: Artifact,
    format: Annotated[Literal["hf", "gguf"], typer.Option(help="hf: the folder as it is; gguf: one file")],
    out: Annotated[Path | None, typer.Option(help="hf: a folder; gguf: default next to the artifact")] = None,
    dtype: Annotated[Literal["f32", "f16", "bf16", "q8_0"], typer.Option(help="of the matrices, for gguf")] = "f16",
) -> None:
    """Export a model to other programs: a folder for transformers and vLLM, a file for llama.cpp."""
    with plain_errors():
        from components.artifacts import conversion

        folder = artifact_folder(path)
        if format == "hf":
            written = conversion.to_folder(folder, out)
        else:
            written = conversion.to_gguf(folder, out or folder.with_name(f"{folder.name}-{dtype}.gguf"), dtype)
        files = [file for file in (written, *written.rglob("*")) if file.is_file()]
        typer.echo(f"{written}: {sum(file.stat().st_size for file in files):,} bytes")


@app.command()
def show(
    path: Artifact,
    inputs: Annotated[bool, typer.Option("--inputs", help="include every setting it was made from")] = False,
) -> None:
    """Print what an artifact is: stage, size, tokenizer, parents, metrics."""
    with plain_errors():
        folder = artifact_folder(path)
        described = description(folder)
        if not inputs:
            described.pop("inputs", None)
        typer.echo("\n".join(lines({"artifact": str(folder), **described})))


@app.command(name="list")
def list_runs(logs: Annotated[Path, typer.Argument(help="the folder of runs")] = Path("logs")) -> None:
    """List runs and their stages: headline metric, size on disk, age."""
    with plain_errors():
        from rich.console import Console
        from rich.table import Table

        from components.artifacts import listing

        table = Table("run", "stage", "metric", box=None, pad_edge=False)
        table.add_column("size", justify="right")
        table.add_column("age", justify="right")
        for entry in listing.entries(logs):
            size, age = listing.readable_size(entry.size), listing.readable_age(entry.changed)
            table.add_row(entry.run, entry.stage, entry.metric, size, age)
        Console(soft_wrap=True).print(table)


@app.command(context_settings={"ignore_unknown_options": True})
def plan(
    arguments: Annotated[
        list[str],
        typer.Argument(help="those of train.py, and hardware=a100_80 devices=2048 tokens=1.4e12; or budget=1e20"),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON for programs")] = False,
) -> None:
    """Print what a run would take: compute, memory, time and cost, stage by stage."""
    with plain_errors():
        from components.tasks import forecast

        forecast.show(forecast.request_of(arguments), as_json=as_json)


def chat_folder(name: str, logs: Path) -> Path:
    """The artifact to chat with: a folder, the newest language model of a run, or a model fetched from the Hub. Raises
    ValueError naming what is there instead."""
    path = Path(name)
    run = next((folder for folder in (path, logs / name) if folder.is_dir() and any(folder.glob("*/export"))), None)
    if run is not None:
        newest = _newest_tuned(run)
        base = run / "pretrain/export"
        if newest or _can_chat(base):
            return newest or base
    if not path.exists() and not Path(path.parts[0] if path.parts else "").is_dir() and hub.MODEL.fullmatch(name):
        return hub.fetched(name, logs / "cache" / "models")
    return artifact_folder(run or path)


def all_to_serve(paths: Sequence[str], logs: Path) -> dict[str, Path]:
    """The artifacts of several runs or folders by the names that clients use. Raises ValueError if two different ones
    have the same name."""
    folders: dict[str, Path] = {}
    for path in paths:
        for name, folder in folders_to_serve(path, logs).items():
            if folders.setdefault(name, folder).resolve() != folder.resolve():
                raise ValueError(
                    f"{folders[name]} and {folder} would both be served as {name}. Serve them in two processes, or "
                    "give one of the runs another name"
                )
    return folders


def folders_to_serve(name: str, logs: Path) -> dict[str, Path]:
    """Artifacts by the name that clients use: all models of a run (run/stage), or the one that the name says. Raises
    ValueError if there is no model."""
    from components.artifacts import lineage

    path = Path(name)
    for run in (path, logs / name):
        models = lineage.in_order(export for export in run.glob("*/export") if _kind(export))
        if models:
            return {f"{run.resolve().name}/{export.parent.name}": export for export in models}
    folder = chat_folder(name, logs)
    if not _kind(folder):
        raise ValueError(f"{folder} holds no model that can be served: no config.json that describes one")
    if hub.name_of(folder):
        return {hub.name_of(folder): folder}
    whole = folder.resolve()
    return {f"{whole.parents[1].name}/{whole.parent.name}" if whole.name == "export" else whole.name: folder}


def artifact_folder(path: Path) -> Path:
    """The artifact at `path`, or in the stage's folder there. Raises ValueError naming what is there instead."""
    if not path.exists():
        raise ValueError(f"{path} does not exist. Make a run with: python train.py stage=all model=tiny")
    if not path.is_dir():
        raise ValueError(f"{path} is a file; expected an artifact's folder, such as logs/tiny/ppo")
    for folder in (path, path / "export"):
        if any((folder / name).exists() for name in ("card.json", "config.json", "tokenizer.model")):
            return folder
    stages = sorted(str(export.parent) for export in path.glob("*/export"))
    hint = f"stages below it: {', '.join(stages)}" if stages else "a finished stage has an export/ folder"
    raise ValueError(f"{path} holds no artifact (card.json, config.json or tokenizer.model); {hint}")


def expect_language_model(folder: Path) -> None:
    """Raises ValueError for an artifact that cannot chat, naming one that can."""
    from components.artifacts import store

    run = folder.resolve().parent.parent  # logs/<run>/<stage>/export
    latest = _newest_tuned(run)
    try_next = (
        f"gradus chat {shlex.quote(str(latest.parent))}"
        if latest
        else "python train.py stage=ppo, then gradus chat logs/<run>/ppo"
    )
    if not (folder / "config.json").exists():
        raise ValueError(f"{folder} is a tokenizer without a model: there is nothing to chat with. Try: {try_next}")
    if store.load_config(folder, context=1)[1] == "SequenceClassification":
        raise ValueError(
            f"{folder} is a reward model: it scores answers and does not write any. "
            f"Chat with the policy that was trained with it: {try_next}"
        )


def _newest_tuned(run: Path) -> Path | None:
    """The artifact of a run's newest language model other than the base model."""
    talking = [model for model in run.glob("*/export") if model.parent.name != "pretrain" and _can_chat(model)]
    return max(talking, key=lambda model: model.stat().st_mtime, default=None)


def _can_chat(folder: Path) -> bool:
    """Whether the folder contains a language model that is complete enough to suggest."""
    return _kind(folder) == "CausalLM"


def _kind(folder: Path) -> str:
    """CausalLM or SequenceClassification; "" without a model that is complete enough to suggest."""
    from components.artifacts import store

    try:
        return store.load_config(folder, context=1)[1]
    except ValueError:
        return ""


def description(folder: Path) -> dict[str, Any]:
    """What `show` prints about an artifact: its card, and what its files add to that."""
    from components.artifacts import store

    card = store.read_card(folder)
    facts: dict[str, Any] = {"stage": card.pop("stage", "unknown (no card.json: made elsewhere)")}
    if (folder / "config.json").exists():
        config, kind = store.load_config(folder, context=1)  # 1 fits every model
        facts["model"] = "language model" if kind == "CausalLM" else "reward model"
        head = "lm_head" if kind == "CausalLM" else "score"
        facts["parameters"] = f"{config.num_parameters(head):,}"
        facts["context"] = f"{config.max_position_embeddings} tokens"
        facts["shape"] = f"{config.num_hidden_layers} layers of width {config.hidden_size}"
    if (folder / "tokenizer.model").exists():
        tokenizer = store.load_tokenizer(folder)
        facts["tokenizer"] = f"{tokenizer.vocab_size} tokens, fingerprint {tokenizer.fingerprint}"
        if card.get("tokenizer") == tokenizer.fingerprint:
            card.pop("tokenizer")
    return {**facts, **{f"card's {key}" if key in facts else key: value for key, value in card.items()}}


def lines(values: dict[str, Any], indent: int = 0) -> Iterator[str]:
    """`name  value`, nested tables indented below their name."""
    width = max((len(name) for name in values), default=0) + 2
    for name, value in values.items():
        start = f"{' ' * indent}{name:<{width}}"
        if isinstance(value, dict) and value:
            yield start.rstrip()
            yield from lines(value, indent + 2)
        elif isinstance(value, list | tuple | dict):
            yield f"{start}{', '.join(map(str, value)) or 'none'}"
        else:
            yield f"{start}{value:.4g}" if isinstance(value, float) else f"{start}{value}"


def main() -> None:
    """The console script."""
    heap.tune()
    atexit.register(gc.freeze)  # else the interpreter exits with a slow garbage collection
    app()


if __name__ == "__main__":
    main()
