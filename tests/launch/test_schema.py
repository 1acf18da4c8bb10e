"""A config against the signatures of what it names: what passes, what is rejected, and with which message."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic import Field
from torch import nn

from components.launch import schema
from components.launch.schema import AT_RUN_TIME, ConfigError, Passed, check, nearest_key, required_of, schema_of
from components.stages.onpolicy import OnPolicy
from components.stages.rejection import Rejection
from tests.kit.composed_configs import compose_config


class Base:
    def __init__(self, depth: int = 1) -> None:
        self.depth = depth


class Thing(Base):
    """What the configs below name. Its annotations are of the kinds that constructors here use."""

    def __init__(
        self,
        lr: float = 0.1,
        steps: int = 1,
        name: str = "",
        fused: bool = False,
        betas: tuple[float, float] = (0.9, 0.95),
        kind: Literal["linear", "cosine"] = "linear",
        limit: int | float | None = None,
        share: Annotated[float, Field(ge=0, le=1)] = 0.5,
        folder: str | Path = ".",
        build: Callable[[], nn.Module] | None = None,
        widen: Callable[[int], nn.Module] | None = None,
        wrap: Callable[..., nn.Module] | None = None,
        module: nn.Module | None = None,
        parts: "Sequence[Base]" = (),
        weights: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)


class Point(NamedTuple):
    x: int
    y: float = 0.0


def takes_anything(first: int, **kwargs: Any) -> None: ...


HERE = "tests.launch.test_schema"
Thing.__module__ = "components.checked"  # counts as ours: its **kwargs are its base's arguments


def problems(**values: Any) -> list[str]:
    """The lines that `check` reports for a Thing with these values under the key `stage`."""
    cfg = OmegaConf.create({"stage": {"_target_": f"{HERE}.Thing", **values}})
    try:
        check(cfg)
    except ConfigError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize(
    "values",
    [
        {"lr": 3},
        {"lr": float("inf")},
        {"steps": 0, "name": "a", "fused": True},
        {"betas": [0.9, 0.99]},
        {"kind": "cosine"},
        {"limit": None},
        {"limit": 0.5},
        {"share": 1},
        {"folder": "logs/x"},
        {"build": {"_target_": "torch.nn.Linear", "_partial_": True, "in_features": 2, "out_features": 1}},
        {"wrap": {"_target_": "torch.nn.Linear", "_partial_": True, "in_features": 2}},
        {"module": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 1}},
        {"parts": [{"_target_": f"{HERE}.Base", "depth": 2}]},
        {"weights": {"a": 0.5, "b": 1}},
        {"depth": 3},
    ],
)
def test_values_of_the_annotated_types_pass(values):
    assert problems(**values) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": "abc"}, "stage.lr: expected float, got 'abc'"),
        ({"lr": "0.1"}, "stage.lr: expected float, got '0.1'"),
        ({"lr": None}, "stage.lr: expected float, got null"),
        ({"steps": 1.5}, "stage.steps: expected int, got 1.5"),
        ({"steps": True}, "stage.steps: expected int, got True"),
        ({"fused": "yes"}, "stage.fused: expected bool, got 'yes'"),
        ({"fused": 1}, "stage.fused: expected bool, got 1"),
        ({"name": 3}, "stage.name: expected str, got 3"),
        ({"betas": [0.9]}, "stage.betas: expected tuple[float, float], got [0.9]"),
        ({"kind": "cosin"}, "stage.kind: expected one of linear, cosine, got 'cosin'. Did you mean cosine?"),
        ({"limit": "all"}, "stage.limit: expected int or float or null, got 'all'"),
        ({"module": 3}, "stage.module: expected Module or null, got 3"),
        ({"lr": {"_target_": f"{HERE}.Base"}}, f"stage.lr: expected float, got an object of {HERE}.Base"),
        ({"weights": {"a": "b"}}, "stage.weights: expected dict[str, float] or null, got {'a': 'b'}"),
        ({"lr": "???"}, "stage.lr: needs a value; set stage.lr=…"),
        ({"depth": "x"}, "stage.depth: expected int, got 'x'"),
        ({"parts": [{"_target_": f"{HERE}.Base", "depth": "x"}]}, "stage.parts[0].depth: expected int, got 'x'"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_in_full(values, message):
    assert problems(**values) == [message]


def test_a_bound_of_the_annotation_is_reported():
    assert problems(share=1.5) == ["stage.share: expected float, got 1.5 (Input should be less than or equal to 1)"]


def test_an_unknown_key_names_the_closest_argument():
    assert problems(lrr=1e-3) == [f"stage.lrr: {HERE}.Thing has no argument 'lrr'. Did you mean lr?"]


def test_the_earlier_name_of_a_setting_is_answered_with_its_present_one(monkeypatch):
    monkeypatch.setitem(schema.RENAMED, "stage.rate", "stage.lr")
    assert problems(rate=1e-3) == [f"stage.rate: {HERE}.Thing has no argument 'rate'. It is now called stage.lr."]


def test_an_unknown_key_close_to_none_lists_the_arguments():
    assert problems(module={"_target_": f"{HERE}.Point", "x": 1, "zzz": 1}) == [
        f"stage.module.zzz: {HERE}.Point has no argument 'zzz'. It has: x, y."
    ]


def test_all_mistakes_are_reported_at_once():
    assert len(problems(lr="a", steps="b", nmae="c")) == 3


def missing(key: str, target: str, expected: str) -> str:
    return f"{key}: missing, and {target} has no default for it; add +{key}=…, expected {expected}"


def test_a_missing_argument_is_named_in_full_with_how_to_add_it():
    with pytest.raises(ConfigError) as error:
        check(OmegaConf.create({"point": {"_target_": f"{HERE}.Point", "y": 1.0}}))
    assert str(error.value) == missing("point.x", f"{HERE}.Point", "int")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"module": {"_target_": f"{HERE}.Point"}}, missing("stage.module.x", f"{HERE}.Point", "int")),
        ({"parts": [{"_target_": f"{HERE}.Point"}]}, missing("stage.parts[0].x", f"{HERE}.Point", "int")),
        (
            {"build": {"_target_": "torch.nn.Linear", "_partial_": True, "in_features": 1}},
            missing("stage.build.out_features", "torch.nn.Linear", "int"),
        ),
        (
            {"widen": {"_target_": "torch.nn.Linear", "_partial_": True}},  # which is called with one argument
            missing("stage.widen.out_features", "torch.nn.Linear", "int"),
        ),
    ],
)
def test_wherever_something_is_built_its_missing_arguments_are_named(values, message):
    assert problems(**values) == [message]


def test_what_a_call_will_pass_is_not_missing():
    """Unless the annotation says what the call passes, it can pass anything."""
    assert problems(widen={"_target_": "torch.nn.Linear", "_partial_": True, "out_features": 2}) == []
    assert problems(wrap={"_target_": "torch.nn.Linear", "_partial_": True}) == []
    assert problems(module={"_target_": "torch.nn.Linear", "_args_": [2], "out_features": 1}) == []


class Deep:
    def __init__(self, width: int, depth: int, name: str = "") -> None: ...


class Square(Deep):
    """Passes one argument to its base itself and leaves the other to the caller."""

    def __init__(self, side: int, **kwargs: Any) -> None:
        super().__init__(width=side, **kwargs)


def test_what_a_class_passes_to_its_base_is_not_required(monkeypatch):
    monkeypatch.setattr(Square, "__module__", "components.checked")
    assert required_of(Square) == ["side", "depth"]
    assert required_of(Rejection) == [name for name in required_of(OnPolicy) if name != "beta"]


PLACES = {
    **{name: ["stage=sft"] for name in ("data", "stage.optimizer", "stage.schedule")},
    "data.pretraining": ["stage=ppo", "data=world_prompts_ptx"],
    "comparisons": ["stage=eval"],
    "text": ["stage=eval"],
    "stage": ["stage=ppo"],
    "tokenizer": ["stage=tokenizer"],
    "examination": ["stage=rm"],
    "judge": ["stage=compare"],
}


@pytest.mark.parametrize("place", AT_RUN_TIME)
def test_every_target_with_run_time_arguments_would_lack_them_without(place, monkeypatch):
    cfg = compose_config(PLACES[place])
    monkeypatch.setitem(AT_RUN_TIME, place, Passed())
    with pytest.raises(ConfigError, match=rf"^{place}\.\w+: missing"):
        check(cfg)


@pytest.mark.parametrize("stage", ["pretrain", "rm", "ppo"])
def test_muon_replaces_adamw_as_the_docs_say(stage):
    page = (Path(__file__).resolve().parents[2] / "docs/extending.md").read_text()
    override = "stage.optimizer._target_=components.training.optimizers.muon"
    assert f"`{override}`" in page
    check(compose_config([f"stage={stage}", override]))


def test_a_target_that_cannot_be_imported_is_named():
    with pytest.raises(ConfigError, match=r"^stage\._target_: cannot import 'components\.stages\.nothing\.Stage'"):
        check(OmegaConf.create({"stage": {"_target_": "components.stages.nothing.Stage"}}))


def test_interpolated_values_are_checked_where_they_arrive():
    with pytest.raises(ConfigError) as error:
        check(OmegaConf.create({"rate": "fast", "stage": {"_target_": f"{HERE}.Thing", "lr": "${rate}"}}))
    assert str(error.value) == "stage.lr: expected float, got 'fast'"


def test_kwargs_of_another_packages_class_take_anything():
    assert schema_of(takes_anything) == ({"first": int}, True)
    check(OmegaConf.create({"f": {"_target_": f"{HERE}.takes_anything", "first": 1, "whatever": "x"}}))


def test_a_named_tuple_and_a_class_without_constructor_have_schemas_too():
    assert schema_of(Point) == ({"x": int, "y": float}, False)
    assert set(schema_of(Thing).types) == {*inspect.signature(Thing).parameters, "depth"} - {"kwargs"}


@pytest.mark.parametrize(("key", "value"), [("seed", "abc"), ("seed", 1.5), ("force", "yes"), ("resume", None)])
def test_keys_that_no_constructor_takes_have_types_too(key, value):
    with pytest.raises(ConfigError, match=f"^{key}: expected"):
        check(OmegaConf.create({key: value}))


def test_precision_names_its_choices_and_auto_is_one():
    check(OmegaConf.create({"trainer": {"_target_": "lightning.Trainer", "precision": "auto"}}))
    with pytest.raises(ConfigError, match=r"trainer\.precision: expected one of .*16-mixed, .*32-true.*, got 'fp12'"):
        check(OmegaConf.create({"trainer": {"_target_": "lightning.Trainer", "precision": "fp12"}}))


def test_scientific_notation_in_yaml_and_on_the_command_line_is_a_number(tmp_path):
    (tmp_path / "c.yaml").write_text(f"# c\nstage: {{_target_: {HERE}.Thing, lr: 1e-4, limit: 1}}\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        cfg = compose("c", ["stage.limit=3e-4"])
    check(cfg)
    assert (cfg.stage.lr, cfg.stage.limit) == (0.0001, 0.0003)


VALUES = {
    "seed": 0,
    "trainer": {"_target_": "lightning.Trainer", "max_steps": 5},
    "stage": {"optimizer": {"lr": 0.1}, "lr_value": 0.2},
}


@pytest.mark.parametrize(
    ("unknown", "hint"),
    [
        ("trainer.max_step", "trainer.max_steps"),
        ("max_steps", "trainer.max_steps"),
        ("sede", "seed"),
        ("lr", "stage.optimizer.lr"),
        (
            "trainer.deterministic",
            "deterministic is an argument of lightning.Trainer, left at its default: write +trainer.deterministic=…",
        ),
        ("trainer.plugh", "It has: max_steps."),
        ("trainer.lr", "stage.optimizer.lr"),
        (
            "xyzzy.plugh",
            "It has: seed, trainer, trainer.max_steps, stage, stage.optimizer, stage.optimizer.lr, stage.lr_value.",
        ),
    ],
)
def test_an_override_of_an_unknown_key_suggests_the_closest(unknown, hint):
    arguments = ["stage=rm", f"{unknown}=1", "seed=3"]
    composed = []

    def compose(overrides):
        composed.append(overrides)
        return OmegaConf.create(VALUES)

    assert nearest_key(unknown, arguments, compose) == hint
    assert composed == [["stage=rm", "seed=3"]]


def test_a_hint_for_a_sweep_looks_at_its_first_job():
    def compose(overrides):
        assert overrides == ["stage=rm", "seed=1"]
        return OmegaConf.create(VALUES)

    arguments = ["-m", "stage=rm,ppo", "seed=choice(1,2)", "trainer.max_step=5,6"]
    assert nearest_key("trainer.max_step", arguments, compose) == "trainer.max_steps"


def test_a_users_class_derived_from_ours_takes_what_its_base_takes():
    class Theirs(Thing):
        pass

    assert Theirs.__module__ == __name__
    assert schema_of(Theirs) == schema_of(Thing)


@pytest.mark.parametrize(
    ("name", "fine", "wrong"),
    [
        ("max_steps", [1, -1], [0, -2, None]),
        ("max_epochs", [1, -1, None], [0, -2]),
        ("limit_train_batches", [1, 10, 0.5, 1.0, None], [0, 0.0, -1, 1.5]),
        ("limit_val_batches", [0, 0.0, 10, 0.5, None], [-1, -0.5, 1.5]),
        ("val_check_interval", [1, 10, 0.5, None, "00:00:15:00"], [0, 0.0, -3, 1.5]),
        ("check_val_every_n_epoch", [1, None], [0, -1]),
        ("num_sanity_val_steps", [-1, 0, 2, None], [-2]),
    ],
)
def test_a_number_that_lightning_accepts_but_fails_or_trains_nothing_with_is_rejected(name, fine, wrong):
    def refused(value: Any) -> bool:
        try:
            check(OmegaConf.create({"trainer": {"_target_": "lightning.Trainer", name: value}}))
        except ConfigError as error:
            assert str(error).startswith(f"trainer.{name}: expected ") and "\n" not in str(error)
            return True
        return False

    assert [value for value in fine if refused(value)] == []
    assert [value for value in wrong if not refused(value)] == []


@pytest.mark.parametrize("value", [0, -3])
def test_a_context_of_zero_tokens_and_zero_tokens_at_once_are_rejected(value):
    with pytest.raises(ConfigError, match=f"context: expected int or null, got {value} "):
        check(OmegaConf.create({"context": value}))
    with pytest.raises(ConfigError, match=f"tokens_at_once: expected int, got {value} "):
        check(OmegaConf.create({"tokens_at_once": value}))
