"""Canaries: what the program uses of its libraries that they do not document still exists and means what it did.

Each use names, in a comment, the version that it holds for. A new use fails here until it has such a comment and a
canary.
"""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import yaml
from lightning import Callback
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import _TunerExitException
from omegaconf import OmegaConf

from tests.kit.tiny_run import Stream, Tiny, Validated, trainer
from tests.kit.tiny_stages import ListLogger

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*ROOT.glob("components/**/*.py"), ROOT / "train.py"])
DOCUMENTED = {"_replace", "_asdict", "_fields", "_make", "_target_", "_exit"}  # of NamedTuple, Hydra's configs, os
# attributes of a library's class that one of ours sets or overrides, so that they look like its own
SET_HERE = {"_data_parallel_size": "fsdp.py", "_experiment": "wandb_log.py", "_run_id": "mlflow_log.py"}
SET_HERE |= {"_device_mesh": "fsdp.py", "_parse": "sandbox.py", "get_mode": "train.py"}
NOTE = re.compile(r"[Hh]olds for (Lightning|torch|Hydra|OmegaConf|Jinja|datasets|Python) \d+\.\d+")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


def named_here(trees: list[ast.AST]) -> set[str]:
    """The names that the program itself defines: functions, classes, variables, attributes of self."""
    names: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names |= {node.attr} if ast.unparse(node.value) == "self" else set()
    return names


def foreign(file: Path, tree: ast.AST, ours: set[str]) -> Iterator[tuple[str, int]]:
    """Private names of other people's in a file, and the lines where they are used."""
    set_here = {name for name, where in SET_HERE.items() if where == file.name}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            replaced = node.attr in set_here and isinstance(node.ctx, ast.Store)
            if replaced or (is_private(node.attr) and node.attr not in ours):
                yield node.attr, node.lineno
        elif isinstance(node, ast.FunctionDef) and node.name in set_here:
            yield node.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("components"):
            for name in (*(node.module or "").split("."), *(alias.name for alias in node.names)):
                if is_private(name):
                    yield name, node.lineno


def uses() -> dict[str, list[str]]:
    """Private name → where it is used, as file:line."""
    trees = {file: ast.parse(file.read_text()) for file in FILES}
    ours, found = named_here(list(trees.values())), {}
    for file, tree in trees.items():
        for name, line in foreign(file, tree, ours):
            found.setdefault(name, []).append(f"{file.relative_to(ROOT)}:{line}")
    return found


USES = uses()
CANARIES: dict[str, Callable[[], None]] = {}


def canary(*names: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def register(function: Callable[[], None]) -> Callable[[], None]:
        CANARIES.update(dict.fromkeys(names, function))
        return function

    return register


@contextmanager
def still(name: str) -> Iterator[None]:
    """Fails in one sentence if what is checked inside no longer holds."""
    try:
        yield
    except (AssertionError, AttributeError, ImportError, KeyError, TypeError) as error:
        pytest.fail(f"{name} is gone or means something else now ({error!r}); see {', '.join(USES[name])}")


def test_every_private_name_of_a_library_has_a_canary():
    assert set(USES) == set(CANARIES), {name: USES.get(name) for name in set(USES) ^ set(CANARIES)}


@pytest.mark.parametrize("name", USES)
def test_every_use_names_the_version_that_it_holds_for(name):
    for place in USES[name]:
        file, line = place.split(":")
        nearby = (ROOT / file).read_text().splitlines()[max(0, int(line) - 4) : int(line)]
        assert NOTE.search("\n".join(nearby)), f"{place}: add a comment such as: holds for Lightning 2.6"


@pytest.mark.parametrize("name", CANARIES)
def test_a_private_name_means_what_it_did(name):
    with still(name):
        CANARIES[name]()


def test_a_name_that_is_gone_is_one_sentence_with_the_places_that_use_it(monkeypatch):
    monkeypatch.setitem(USES, "_gone", ["components/callbacks/signals.py:14"])
    said = "_gone is gone or means something else now .* see .*signals.py:14"
    with pytest.raises(pytest.fail.Exception, match=said), still("_gone"):
        torch._gone  # noqa: B018


class Watch(Callback):
    """Calls `look` at the end of each training batch and remembers the hooks that followed."""

    def __init__(self, look: Callable) -> None:
        self.look, self.seen, self.validated, self.ended = look, [], [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append(self.look(trainer))

    def on_validation_start(self, trainer, pl_module):
        self.validated.append(len(self.seen))

    def on_train_end(self, trainer, pl_module):
        self.ended.append("on_train_end")

    def on_fit_end(self, trainer, pl_module):
        self.ended.append("on_fit_end")

    def teardown(self, trainer, pl_module, stage):
        self.ended.append("teardown")


@canary("_linear_pointwise", "_reorder_linear_weight")
def multiplies_by_a_matrix_in_onednns_layout():
    rows, matrix, bias = torch.randn(3, 16), torch.randn(8, 16), torch.randn(8)
    packed = torch.ops.mkldnn._reorder_linear_weight(matrix, 3)
    assert packed.is_mkldnn and packed.shape == matrix.shape
    product = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    torch.testing.assert_close(product, torch.nn.functional.linear(rows, matrix, bias))


@canary("_should_accumulate")
def tells_whether_a_micro_batch_was_not_the_last_of_its_step():
    watch = Watch(lambda run: run.fit_loop.epoch_loop._should_accumulate())
    trainer([watch], max_steps=2, accumulate_grad_batches=3).fit(Tiny(), Stream())
    assert watch.seen == [True, True, False] * 2


@canary("_should_check_val_fx", "_data_fetcher")
def tells_whether_a_validation_follows_the_batch():
    watch = Watch(lambda run: run.fit_loop.epoch_loop._should_check_val_fx(run.fit_loop._data_fetcher))
    run = trainer([watch], max_steps=6, val_check_interval=2, num_sanity_val_steps=0)
    run.fit(Validated(), Stream(), Stream(2))
    assert [number for number, follows in enumerate(watch.seen, 1) if follows] == watch.validated == [2, 4, 6]


@canary("_TunerExitException")
def ends_fit_with_no_hook_but_teardown():
    def leave(run):
        raise _TunerExitException

    watch = Watch(leave)
    trainer([watch], max_steps=3).fit(Tiny(), Stream())
    assert watch.ended == ["teardown"]


@canary("_logger_connector")
def tells_before_a_step_whether_its_metrics_will_be_logged():
    class Asking(Tiny):
        def configure_gradient_clipping(self, *_, **__):
            due.append(self.trainer._logger_connector.should_update_logs)

    due, logger = [], ListLogger()
    trainer([], max_steps=6, log_every_n_steps=3, logger=logger).fit(Asking(), Stream())
    assert due == [False, False, True] * 2
    assert [step for step, _ in logger.logged["train/loss"]] == [2, 5]


@canary("_save_distributed_checkpoint", "_data_parallel_size")
def are_the_arguments_of_the_sharding_strategy():
    strategy = ModelParallelStrategy(data_parallel_size=3, save_distributed_checkpoint=False)
    assert (strategy._data_parallel_size, strategy._save_distributed_checkpoint) == (3, False)
    assert "_data_parallel_size" in names_in(ModelParallelStrategy.setup_environment)


@canary("_device_mesh")
def is_the_mesh_that_a_strategy_gives_to_its_module():
    module = Tiny()
    module._device_mesh = "mesh"
    assert module.device_mesh == "mesh"
    assert "_device_mesh" in names_in(ModelParallelStrategy.setup_environment)


@canary("_subclasses", "_python_dispatch")
def are_the_modules_of_tensors_without_contents_and_of_modes_that_see_every_operation():
    """And gloo's "fake" sibling is a backend of torch."""
    from torch._subclasses import FakeTensor, FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append((func.namespace, func.overloadpacket.__name__))
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(allow_non_fake_inputs=True) as fake, Watch():
        made = torch.ones(3) + torch.ones(3)
    assert isinstance(made, FakeTensor) and made.fake_mode is fake and made.untyped_storage().nbytes() == 12
    assert seen == [("aten", "ones"), ("aten", "ones"), ("aten", "add")]


def names_in(function: Callable) -> tuple[str, ...]:
    """The attributes and globals that a function uses."""
    return inspect.unwrap(function).__code__.co_names


@canary("_wandb_init", "_experiment")
def hold_the_arguments_and_the_run_of_a_wandb_logger():
    assert {"_wandb_init", "_experiment"} <= set(names_in(WandbLogger.__init__))
    assert {"_wandb_init", "_experiment"} <= set(names_in(WandbLogger.experiment.fget))


@canary("_initialized", "_run_id")
def hold_whether_an_mlflow_logger_has_a_run_and_which():
    assert {"_initialized", "_run_id"} <= set(names_in(MLFlowLogger.__init__))
    assert {"_initialized", "_run_id"} <= set(names_in(MLFlowLogger.experiment.fget))


@canary("_get_file_writer")
def gives_the_event_file_of_a_tensorboard_writer():
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    with TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        writer._get_file_writer().add_summary(hparams({"lr": 0.1}, {})[1])
        writer.flush()
        [file] = Path(folder).iterdir()
        assert b"lr" in file.read_bytes()


@canary("_softmax_backward_data")
def is_the_gradient_of_softmax():
    p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    slope = torch.tensor([[1.0, -2.0, 4.0]], dtype=torch.float64)
    expected = p * (slope - (p * slope).sum(1, keepdim=True))
    torch.testing.assert_close(torch._softmax_backward_data(slope, p, 1, p.dtype), expected)


@canary("_step_supports_amp_scaling")
def leaves_unscaling_to_the_scaler_if_it_is_false():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    assert optimizer._step_supports_amp_scaling is True
    optimizer._step_supports_amp_scaling = False
    optimizer.param_groups[0]["fused"] = False
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(weight.sum()).backward()
    assert weight.grad.tolist() == [8, 8]
    scaler.step(optimizer)
    assert weight.grad.tolist() == [1, 1]


@canary("_get_node", "_is_none")
def tell_whether_a_section_of_a_config_is_null():
    cfg = OmegaConf.create({"given": {"x": 1}, "null": None})
    assert [cfg._get_node(name)._is_none() for name in cfg] == [False, True]


@canary("_internal", "_actions")
def has_hydras_own_command_line():
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import get_args_parser

    flags = {text for action in get_args_parser()._actions for text in action.option_strings}
    assert {"--config-dir", "-cd", "--multirun", "-m", "--cfg", "--help"} <= flags
    assert list(inspect.signature(Hydra.get_mode).parameters) == ["self", "config_name", "overrides"]


@canary("_utils")
def is_where_omegaconf_gets_its_loader_of_yaml():
    from components.launch import parse_cache

    assert "get_yaml_loader" in names_in(parse_cache._load)
    assert issubclass(parse_cache.usual_loader(), yaml.SafeLoader)


@canary("get_mode")
def is_what_hydra_asks_for_the_mode_of_a_run():
    from hydra._internal.utils import _run_hydra

    assert "get_mode" in names_in(_run_hydra)


@canary("_parse")
def is_what_jinja_calls_with_the_source_of_a_template():
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Noting(ImmutableSandboxedEnvironment):
        def _parse(self, source, name, filename):
            seen.append(source)
            return super()._parse(source, name, filename)

    seen: list[str] = []
    assert Noting().from_string("{{ 1 + 1 }}").render() == "2"
    assert seen == ["{{ 1 + 1 }}"]


def test_a_checkpoint_has_the_progress_of_the_loops_under_the_names_that_resuming_changes(tmp_path):
    """callbacks.checkpoints rewrites them if a file is written during or after a validation."""
    run = trainer([], max_steps=2, val_check_interval=2)
    run.fit(Validated(), Stream(), Stream(2))
    run.save_checkpoint(tmp_path / "last.ckpt")
    loops = torch.load(tmp_path / "last.ckpt", weights_only=True)["loops"]["fit_loop"]
    for name, batches in (("epoch_loop.batch_progress", 2), ("epoch_loop.val_loop.batch_progress", 2)):
        for counts in ("total", "current"):
            assert loops[name][counts]["completed"] >= 1, f"{name} does not count {batches} batches"
