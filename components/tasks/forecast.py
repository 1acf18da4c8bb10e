"""`gradus plan`: what a run would take, before it is started, by train.py's arguments."""

import json
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig

from components.launch import composing, schema, settings
from components.launch.overrides import as_typed
from components.planning import hardware as machines
from components.planning import plan_report
from components.planning.compute_optimal import CHINCHILLA
from components.planning.estimate import Estimate, estimate
from components.planning.hardware import Hardware
from components.system import processes
from components.tasks import plan, this_machine, workload
from components.tasks.workload import Machine

LIKE = "llama_7b"  # whose proportions and vocabulary a model for a budget gets
NUMBER = re.compile(r"\d[\d_]*(\.\d*)?([eE][-+]?\d+)?")
OWN = re.compile(r"(hardware(?:\.\w+)?|devices|tokens(?:\.[\w/]+)?|budget|mfu)=(.*)", re.S)


class Forecast(NamedTuple):
    """What a run would take. estimates: of the stages that train a model, in order; untrained: names of the others."""

    hardware: Hardware
    estimates: tuple[Estimate, ...]
    untrained: tuple[str, ...] = ()


class Request(NamedTuple):
    """gradus plan's own settings, and the others, which are train.py's."""

    hardware: str
    changes: dict[str, object]
    devices: int | None
    tokens: dict[str, float]  # by stage; "" without one
    budget: float | None
    overrides: list[str]


def request_of(arguments: Sequence[str]) -> Request:
    """The request of a command line. Raises ValueError for a value that is not a number above 0."""
    own = {match[1]: match[2] for match in map(OWN.fullmatch, arguments) if match}
    numbers = {key: _number(key, value) for key, value in own.items() if key not in ("hardware", "hardware.name")}
    changes: dict[str, object] = {key.partition(".")[2]: own[key] for key in own if key == "hardware.name"}
    changes |= {key.partition(".")[2]: value for key, value in numbers.items() if key.startswith("hardware.")}
    changes |= {"mfu": numbers["mfu"]} if "mfu" in numbers else {}
    if numbers.get("devices", 1) % 1:
        raise ValueError(f"devices={own['devices']}: expected a whole number")
    return Request(
        own.get("hardware", "here"),
        changes,
        int(numbers["devices"]) if "devices" in numbers else None,
        {key.partition(".")[2]: value for key, value in numbers.items() if key.partition(".")[0] == "tokens"},
        numbers.get("budget"),
        [argument for argument in arguments if not OWN.fullmatch(argument)],
    )


def show(request: Request, *, as_json: bool) -> None:
    """Prints the plan, as tables or as JSON."""
    if request.budget is not None:
        _show_budget(request, as_json)
        return
    if any(override.lstrip("+").startswith("trainer.dry_run=") for override in request.overrides):
        _show_dry_run(request, as_json)
        return
    planned = forecast(request)
    if as_json:
        print(json.dumps(plan_report.as_json(planned.hardware, planned.estimates), indent=2))
        return
    from components.evaluation.report import output  # rich is slow to import
    from components.evaluation.report.card import Table

    console = output.wide_console()
    for sheet in (plan_report.compute_table, plan_report.memory_table):
        console.print(output.rich_table(Table(*sheet(planned.hardware, planned.estimates))), "")
    lines = plan_report.lines(planned.hardware, planned.estimates)
    if planned.untrained:
        lines.append(f"not counted, since they train no model: {', '.join(planned.untrained)}")
    print("\n".join(lines))


def _show_budget(request: Request, as_json: bool) -> None:
    if request != Request("here", {}, None, {}, request.budget, []):
        raise ValueError("budget= asks which model to train; leave out all other settings")
    parameters, tokens = CHINCHILLA.optimal(request.budget or 0.0)
    if as_json:
        print(json.dumps({"flops": request.budget, "parameters": parameters, "tokens": tokens}, indent=2))
    else:
        print("\n".join(plan_report.budget_lines(request.budget or 0.0, workload.model_named(LIKE), LIKE)))


def _show_dry_run(request: Request, as_json: bool) -> None:
    if request != Request("here", {}, None, {}, None, request.overrides):
        raise ValueError("trainer.dry_run counts what torch does; leave out hardware=, mfu=, devices= and tokens=")
    from components.tasks import dry_run  # imports torch and Lightning, which a plan does without

    with composing.composed([*as_typed(request.overrides), "hydra.mode=RUN"]) as cfg:
        schema.check(cfg)
        dry_run.show(cfg, as_json=as_json)


def forecast(request: Request) -> Forecast:
    """The estimates of a request's stages. Raises ValueError for settings that do not compose, or do not say how much
    is trained on."""
    named = None if request.hardware == "here" else machines.load(request.hardware, request.changes)
    estimates: list[Estimate] = []
    untrained: list[str] = []
    stages = dict(_stages(request.overrides))
    for entry, arguments in stages.items():
        with composing.composed(arguments) as cfg:
            schema.check(cfg)
            if settings.last_name(cfg.task) != "fit":
                untrained.append(entry)
                continue
            place = Machine(named.devices_per_node, True, "cuda") if named else this_machine.place_of(cfg)
            work = workload.work_of(cfg, place, devices=request.devices, tokens=_tokens(request, entry, stages))
        work = work._replace(entry=entry)
        hardware = named or this_machine.measured(work, place.kind, request.changes)
        estimates.append(estimate(work, hardware))
    if not estimates:
        raise ValueError(f"{' '.join(request.overrides)}: no stage of it trains a model, so there is nothing to plan")
    return Forecast(hardware, tuple(estimates), tuple(untrained))


def _stages(overrides: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Stages by name, with train.py's arguments for each: those of a pipeline, or a single one."""
    arguments = [*as_typed(overrides), "hydra.mode=RUN"]
    with composing.composed(arguments) as cfg:
        if cfg.task != processes.STARTS_OTHERS:
            return [(HydraConfig.get().runtime.choices["stage"], arguments)]
        steps = plan.steps_of(cfg)
    composing.compose_ahead([step.arguments for step in steps])
    return [(step.entry, step.arguments) for step in steps]


def _tokens(request: Request, entry: str, stages: Collection[str]) -> float | None:
    """tokens.<stage>, else tokens, which is for pretraining if there are several stages. Raises ValueError for those of
    a stage that the run does not have."""
    unknown = [name for name in request.tokens if name and name not in stages]
    if unknown:
        raise ValueError(f"tokens.{unknown[0]}: expected a stage of this run: {', '.join(stages)}")
    return request.tokens.get(entry, request.tokens.get("") if len(stages) == 1 or entry == "pretrain" else None)


def _number(key: str, text: str) -> float:
    if not NUMBER.fullmatch(text) or float(text) <= 0 and key != "hardware.price":
        raise ValueError(f"{key}={text}: expected a number above 0")
    return float(text)
