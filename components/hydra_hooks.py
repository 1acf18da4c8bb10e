"""What Hydra is taught beyond its defaults: folders of sweeps, one process per job, exit codes, quiet logs.

Imports nothing heavy, so that `python train.py --help` and shell completion answer at once.
"""

import errno
import functools
import hashlib
import itertools
import logging
import os
import re
import signal
import subprocess
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from components import forking, parse_cache, processes, resolvers
from components.overrides import as_typed, quoted

log = logging.getLogger(__name__)
parse_cache.install()
# oneDNN, which multiplies matrices on a processor, keeps a kernel for every shape that it has met, .6 MB each, 1024 of
# them. It reads this before its first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

ROOT = Path(__file__).resolve().parents[1]
STOPPED = (124, 130, 138, 143)  # out of time, SIGINT, SIGUSR1, SIGTERM
ENDED_ELSEWHERE = ("Connection closed by peer", "Connection reset by peer", "remote process exited")  # gloo's, NCCL's
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
NAME_BYTES, VALUE_BYTES = 200, 60  # of a sweep's folder, where file systems end at 255, and of one value in its name
SWEPT = "GRADUS_SWEPT_KEYS"  # an environment variable, so that jobs in other processes know it too
CHECKED = "GRADUS_OVERRIDES_CHECKED"  # another: the process that started this one has said which overrides are not used


class Job(NamedTuple):
    """One job of a sweep that has ended: its overrides, folder, exit status, and the metric it is compared by."""

    overrides: list[str]
    folder: str
    code: int
    metric: str | None


JOBS: list[Job] = []  # of this process's sweep so far
INTERPOLATIONS: dict[str, str] = {}  # key → value as it was written, of what refers to other keys in this job's config


class Sweep(Callback):
    """Notes which keys a sweep varies, for `sweep_folder`, since a job itself sees only its own values; and when all
    jobs are done runs the one that config.after_sweep describes by overrides, if any: a summary of them."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        os.environ[SWEPT] = ",".join(_swept(config.hydra))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints the table of the jobs, and runs after_sweep once per run that the sweep wrote to.

        Ends with the exit status of the first job, or summary, that failed; not reached where that ended the sweep.
        """
        os.environ.pop(SWEPT, None)
        jobs, failed = list(JOBS), [job for job in JOBS if job.code]
        JOBS.clear()
        if any(Path(job.folder, "export/card.json").exists() for job in jobs):
            from components.evaluation import sweep_table  # torch comes with it

            print("\n".join(sweep_table.lines(jobs)), flush=True)
        for job in failed:
            log.error(f"failed with exit status {job.code}: {' '.join(job.overrides)} (see {job.folder})")
        if config.get("after_sweep") and len(failed) < max(len(jobs), 1):
            self._after(config)
        if failed:
            log.error(f"{len(failed)} of {len(jobs)} jobs failed. The same command makes them again, and only them")
            raise SystemExit(failed[0].code)

    def _after(self, config: DictConfig) -> None:
        given, swept = _parsed(config.hydra.overrides.task), _swept(config.hydra)
        others = {"stage", "stages", *swept}
        kept = [o for o in given if o.key_or_group not in others and not o.key_or_group.startswith("stage.")]
        common = [str(o.input_line) for o in kept]
        naming = [o for key, o in swept.items() if key in _naming(given) and o.is_sweep_override()]
        runs = [[f"{o.key_or_group}={value}" for value in o.sweep_string_iterator()] for o in naming]
        for run in itertools.product(*runs):
            with overrides_checked():  # they were given for the jobs
                code = launch([*hydra_arguments(config.hydra), *common, *run, *config.after_sweep])
            if code:
                raise SystemExit(code)


def sweep_folder(folder: str) -> str:
    """Where a job of a sweep writes, below its run: `folder`-sweep/<key>=<value>,… of the swept overrides, beside what
    a single run writes; `folder` where the overrides already name it. Of a pipeline, whose folder is the run itself,
    <key>=<value>,….

    stage and run name a folder; model does as long as run keeps its default, the model's name.
    """
    overrides = _parsed(HydraConfig.get().overrides.task)
    swept = set(os.environ.get(SWEPT, "").split(",")) - {"stage", *_naming(overrides)}
    name = folder_name([o for o in overrides if o.key_or_group in swept])
    return f"{'.' if folder == '.' else f'{folder}-sweep'}/{name}" if name else folder


def folder_name(overrides: Sequence[Override]) -> str:
    """'<key>=<value>,…', '' without overrides. Different values give different names on every file system, of at most
    NAME_BYTES."""
    name = ",".join(f"{o.key_or_group.replace('/', '_')}={_in_name(o)}" for o in overrides)
    if len(name.encode()) > NAME_BYTES:
        name = f"{name.encode()[: NAME_BYTES - 9].decode(errors='ignore')}-{_digest(name)}"
    return name


def _in_name(override: Override) -> str:
    """A swept value as part of a folder's name: itself where it is short and of lower-case letters, digits and . + @ -
    alone; else what is readable of it and a digest, since others may look alike or differ in case only."""
    value = override.value()
    text = value if isinstance(value, str) else override.get_value_element_as_str()
    readable = re.sub(r"[^\w.+@-]+", "_", unicodedata.normalize("NFC", text)).strip("_")
    bare = text == text.lower() and _reads_back(text, value) if isinstance(value, str) else True
    if bare and readable == text and len(text.encode()) <= VALUE_BYTES:
        return text
    short = readable.encode()[:VALUE_BYTES].decode(errors="ignore")
    return f"{short}-{_digest(f'{type(value).__name__} {text}')}".removeprefix("-")


def _reads_back(text: str, value: str) -> bool:
    """Whether Hydra takes the bare text for the string, as it does not for "1"."""
    try:
        return bool(text) and _parsed([f"x={text}"])[0].value() == value
    except HydraException:
        return False


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


resolvers.register()
OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True)


def resolve(cfg: DictConfig) -> None:
    """Resolves a config's interpolations in place; INTERPOLATIONS keeps how they were written.

    Raises ValueError for a section that is null although others refer to what is in it.
    """
    INTERPOLATIONS.clear()
    INTERPOLATIONS.update(_interpolations(OmegaConf.to_container(cfg, resolve=False), ""))
    for name in re.findall(r"\$\{([\w.]+)\}", " ".join(INTERPOLATIONS.values())):
        section = name.partition(".")[0]
        if section != name and section in cfg and cfg._get_node(section)._is_none():  # type: ignore[union-attr]
            raise ValueError(f"{section}: expected settings, since others refer to {name}; got null")
    OmegaConf.resolve(cfg)


def _interpolations(value: Any, path: str) -> Iterator[tuple[str, str]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _interpolations(inner, f"{path}.{key}" if path else str(key))
    if isinstance(value, str) and "${" in value:
        yield path, value


def compose_config(overrides: Sequence[str] = ()) -> DictConfig:
    """The config, all interpolations resolved, that `python train.py <overrides>` would run with.

    For tests and scripts; raises Hydra's and OmegaConf's own errors.
    """
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3", job_name="train"):
        cfg = compose("train", as_typed(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    resolve(cfg)
    return cfg


class Composed(NamedTuple):
    """A config that was composed, Hydra's own part of it, and INTERPOLATIONS as they were for it."""

    cfg: DictConfig
    hydra: DictConfig
    interpolations: dict[str, str]


@contextmanager
def composed(arguments: Sequence[str]) -> Iterator[DictConfig]:
    """The config that train.py would run with on these arguments, composed once in this process. Within, HydraConfig
    and INTERPOLATIONS are its own.

    Raises ValueError naming the fault of arguments that do not compose.
    """
    own, interpolations, running = HydraConfig.instance().cfg, dict(INTERPOLATIONS), GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()  # Hydra composes nothing beside a job that it runs
    try:
        made = _composed(tuple(arguments))
        HydraConfig.instance().cfg = made.hydra  # type: ignore[assignment]
        INTERPOLATIONS.clear()
        INTERPOLATIONS.update(made.interpolations)
        yield made.cfg
    except HydraException as error:
        raise ValueError(f"{' '.join(arguments)}: {error}") from error
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = running, own
        INTERPOLATIONS.clear()
        INTERPOLATIONS.update(interpolations)


@functools.cache
def _composed(arguments: tuple[str, ...]) -> Composed:
    folders = [f"file://{one.partition('=')[2]}" for one in arguments if one.startswith("--config-dir=")]
    search = [f"hydra.searchpath=[{','.join(map(quoted, folders))}]"] if folders else []
    cfg = compose_config([*search, *(one for one in arguments if not one.startswith("--"))])
    hydra: Any = HydraConfig.instance().cfg
    return Composed(cfg, hydra, dict(INTERPOLATIONS))


@contextmanager
def overrides_checked() -> Iterator[None]:
    """Processes started within do not look for overrides that they do not use."""
    os.environ[CHECKED] = "1"
    try:
        yield
    finally:
        os.environ.pop(CHECKED, None)


def is_sweep_job() -> bool:
    """Whether this job belongs to a multirun, and so must be handed to a process of its own."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def run_sweep_job(cfg: DictConfig) -> None:
    """Hands a multirun job to a process of its own, and notes how it ended.

    A failure ends the sweep at once where that varies the stage, since later ones need the earlier, or where somebody
    stopped it; jobs that a scheduler runs must fail themselves. Otherwise the other jobs still run.
    """
    hydra = HydraConfig.get()
    code = launch(sweep_job_arguments())
    metric = OmegaConf.select(cfg, "callbacks.hparams.metric")
    JOBS.append(Job(list(hydra.overrides.task), hydra.runtime.output_dir, code, metric))
    stages_in_order = "stage" in os.environ.get(SWEPT, "").split(",")
    if code and (stages_in_order or not is_launched_here() or code in STOPPED):
        raise SystemExit(code)


def is_launched_here() -> bool:
    """Whether a sweep's jobs run one after the other in this process, and not where another launcher put them."""
    return HydraConfig.get().launcher.get("_target_", "").endswith(".BasicLauncher")


def sweep_job_arguments() -> list[str]:
    """train.py's arguments that repeat this multirun job as a single run in the same folder."""
    hydra = HydraConfig.get()
    return [*hydra_arguments(hydra), *hydra.overrides.task, f"hydra.run.dir={quoted(hydra.runtime.output_dir)}"]


def stage_arguments(cfg: DictConfig, entry: str) -> list[str]:
    """train.py's arguments for another stage with this job's overrides, but those of this job's own stage.

    entry: the stage, or stage/label for a variant of it in a folder of its own. In a parameter sweep, the stages of
    one job are kept apart from the other jobs' in a run named after its folder.
    """
    arguments = [o for o in HydraConfig.get().overrides.task if not o.startswith(("stage=", "stage.", "stages="))]
    stage, _, label = entry.partition("/")
    arguments += [f"stage={stage}"] + ([f"paths.folder={quoted(entry)}"] if label else [])
    usual = os.path.join(cfg.paths.logs, cfg.run, cfg.paths.folder)
    if os.path.abspath(cfg.paths.stage) != os.path.abspath(usual):
        arguments.append(f"run={quoted(os.path.relpath(cfg.paths.stage, cfg.paths.logs))}")
    return [*hydra_arguments(HydraConfig.get()), *arguments]


def launch(arguments: Sequence[str], *, forked: bool = False) -> int:
    """Runs train.py with `arguments` in a process of its own and returns its exit status, 128 + n for signal n.

    forked: from this one, see `forking`, in the place of a fresh one.

    SIGTERM is passed on. SIGINT from a terminal reaches the process by itself: then this waits for its end and
    raises KeyboardInterrupt.
    """
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    process = forking.Child(arguments) if forked else subprocess.Popen(command)
    before = signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return code if code >= 0 else 128 - code


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turns what a job raises into an exit status, which (unlike an exception) also stops a sweep.

    ValueError and Lightning's MisconfigurationException: a user's mistake, told in one line (HYDRA_FULL_ERROR=1
    for all of it), 1. So are a disk that is full or not to be written to, and that another process of the run has
    ended, whose own message is the one to read. Other exceptions: traceback, 1. KeyboardInterrupt: 130.
    SystemExit passes.
    """
    try:
        yield
    except KeyboardInterrupt:
        log.error("Interrupted.")
        raise SystemExit(130) from None
    except Exception as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        # by its name: this file must not import Lightning
        unwritable = isinstance(cause, OSError) and cause.errno in UNWRITABLE
        mistake = isinstance(cause, ValueError) or unwritable or type(cause).__name__ == "MisconfigurationException"
        aftermath = isinstance(cause, RuntimeError) and any(words in str(cause) for words in ENDED_ELSEWHERE)
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not (mistake or aftermath):
            log.error(traceback.format_exc())
        elif mistake:
            log.error(f"{type(cause).__name__}: {cause}")
        else:
            log.error(f"process {processes.rank()}: another process of this run has ended; its own message says why")
        raise SystemExit(1) from None


def quiet_lightning() -> None:
    """Removes known noise of Lightning and torch, each by its words: doubled lines, advertisements, a deprecation.

    Of several processes only the first one keeps talking; all write their own log file.
    """
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()  # Hydra's handlers print already
        logging.getLogger(name).setLevel(logging.WARNING)  # its notes are about itself, not about the run
        logging.getLogger(name).propagate = True
    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it tells of every event file that it reads
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*does not have many workers", category=UserWarning)
    # about one epoch; we count steps across epochs, and `tasks` sees to it that a short run logs too
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval", category=UserWarning)
    warnings.filterwarnings("ignore", message=".*across ranks is zero", category=UserWarning)  # nothing held out
    warnings.filterwarnings("ignore", message=r".*Found \d+ module\(s\) in eval mode", category=UserWarning)  # frozen
    # nothing changes what a sharded model returns in place
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
    if processes.rank():
        for handler in logging.getLogger().handlers:
            if type(handler) is logging.StreamHandler:
                handler.setLevel(logging.ERROR)


def hydra_arguments(hydra: Any) -> list[str]:
    """The flags and hydra.… overrides that another process needs to compose as this one did, but one job."""
    folders = [f"--config-dir={s.path}" for s in hydra.runtime.config_sources if s.provider == "command-line"]
    own = ("hydra.mode=", "hydra.sweep", "hydra.run.dir=")  # what makes this job the one it is
    return [
        f"--config-name={hydra.job.config_name}",
        *folders,
        *(o for o in hydra.overrides.hydra if not o.startswith(own)),
        "hydra.mode=RUN",
    ]


def _parsed(overrides: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(overrides))


def _swept(hydra: DictConfig) -> dict[str, Override]:
    """What a sweep varies, by key: on its command line and in hydra.sweeper.params, of which the former may replace
    the latter by a single value."""
    params = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
    given = {o.key_or_group: o for o in _parsed([*params, *hydra.overrides.task])}
    known = {o.key_or_group for o in _parsed(params)}
    return {key: o for key, o in given.items() if o.is_sweep_override() or key in known}


def _naming(overrides: Sequence[Override]) -> set[str]:
    """The keys whose values name a run's folder: run, and without it model."""
    return {"run"} if any(o.key_or_group == "run" for o in overrides) else {"run", "model"}
