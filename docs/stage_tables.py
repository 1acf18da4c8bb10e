"""Writes what the pages of docs/ say of settings, metrics and warnings, from where the code says it.

    python docs/stage_tables.py      # in docs/**/*.md, everything between <!-- made: … --> and <!-- /made -->

Settings are those of conf/stage/<stage>.yaml with their comments, metrics and equations those of docstrings, healthy
ranges those of the charts, warnings the rules of components/training/health_rules.py. A test holds the pages equal.
"""

import ast
import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MADE = re.compile(r"(<!-- made: (\w+)(?: ([\w.]+))? -->\n).*?(<!-- /made -->)", re.DOTALL)
EQUATIONS = ("components.functional.losses", "components.functional.advantages", "components.functional.divergences")
ALIGNED = re.compile(r"^ |\S  +\S")  # a line of a docstring that is part of a table or an equation
LEFT_OUT = re.compile(r"_target_|_partial_|\.(path|context|dtype)$")  # of builders, which every stage sets alike


class Setting(NamedTuple):
    key: str
    value: str
    comment: str


class Metric(NamedTuple):
    name: str
    meaning: str


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def stages() -> list[str]:
    """The stages that train a network, in the order of the pipeline and then of the alphabet."""
    names = sorted(file.stem for file in ROOT.glob("conf/stage/*.yaml") if "components.stages." in file.read_text())
    first = ["pretrain", "sft", "rm", "ppo", "grpo", "rloo", "rejection"]
    return [*first, *(name for name in names if name not in first)]


def settings_of(stage: str) -> list[Setting]:
    """Settings of stage, data, trainer and selection in the stage's YAML, in its order."""
    result, path = [], []
    for line in (ROOT / f"conf/stage/{stage}.yaml").read_text(encoding="utf-8").splitlines():
        matched = re.match(r"( *)(\w+):(?: +([^#]*?))?(?: *# (.*))?$", line)
        if not matched:
            continue
        indent, name, value, comment = matched.groups(default="")
        path[len(indent) // 2 :] = [name]
        key = ".".join(path)
        if value and re.match(r"stage\.|data\.|trainer\.|selection|export", key) and not LEFT_OUT.search(key):
            result.append(Setting(key, value, comment))
    return result


@functools.cache
def common_keys() -> set[str]:
    """Settings that every stage has; the learning rate of each is another."""
    every = [{setting.key for setting in settings_of(stage)} for stage in stages()]
    return set.intersection(*every) - {"stage.optimizer.lr"}


def settings_table(settings: list[Setting]) -> str:
    return table(
        ("setting", "value", "meaning"), [(f"`{key}`", f"`{value}`", markdown(text)) for key, value, text in settings]
    )


def class_of(stage: str) -> type:
    """The stage's LightningModule; or that of a name such as onpolicy.OnPolicy."""
    if "." in stage:
        module, name = stage.split(".")
        return getattr(import_module(f"components.stages.{module}"), name)
    text = (ROOT / f"conf/stage/{stage}.yaml").read_text(encoding="utf-8")
    module, name = re.search(r"_target_: (components\.stages\.\w+)\.(\w+)", text).groups()  # type: ignore[union-attr]
    return getattr(import_module(module), name)


def bases_of(stage: str) -> list[type]:
    """The stage's class and those that it inherits metrics from, nearest first."""
    return [
        c for c in class_of(stage).__mro__ if c.__module__.startswith("components.stages.") and "__doc__" in vars(c)
    ]


def parts_of(doc: str) -> tuple[str, list[tuple[str, list[str]]]]:
    """A docstring's text, and its lists of metrics, each with the sentence before it."""
    text, lists = [], []
    for paragraph in inspect.cleandoc(doc).split("\n\n"):
        lines = paragraph.split("\n")
        at = next((i for i, line in enumerate(lines) if re.match(r"Metrics[ (].*[:.]?|rollout/ \(", line)), None)
        if at is None:
            text.append(paragraph)
            continue
        end = next(i for i in range(at + 1, len(lines)) if ALIGNED.search(lines[i]))
        text += ["\n".join(lines[:at])] if at else []
        lists.append((" ".join(lines[at:end]), lines[end:]))
    return "\n\n".join(text), lists


def metrics_of(cls: type) -> Iterator[Metric]:
    """The metrics that a class's docstring lists, by their logged names."""
    for sentence, lines in parts_of(cls.__doc__ or "")[1]:
        found: list[list[str]] = []
        for line in lines:
            matched = re.match(r"(\S.*?)  +(\S.*)$", line)
            if matched:
                found.append([matched[1], matched[2]])
            elif found:
                found[-1][1] += " " + line.strip()
        for names, meaning in found:
            prefix = "" if "(train/ and val/)" in sentence else "rollout/"
            full = [name if "/" in name else prefix + name for name in re.split(r", ", names)]
            yield Metric(", ".join(full), meaning)


def logged_names(stage: str) -> set[str]:
    """Every name under which one of the stage's metrics is logged."""
    names = {name for cls in bases_of(stage) for metric in metrics_of(cls) for name in metric.name.split(", ")}
    return names | {f"{split}/{name}" for name in names if "/" not in name for split in ("train", "val")}


def tags_of(names: str) -> set[str]:
    """The tags under which a chart can show a row of the table of metrics."""
    return {tag for name in names.split(", ") for tag in (name, f"val/{name}", f"train/{name}")}


def healthy(stage: str, names: str) -> str:
    """The band that the stage's dashboard draws for a metric, "" without one."""
    for chart in class_of(stage).charts:  # type: ignore[attr-defined]
        if chart.low is not None and chart.tags[0] in tags_of(names):
            of = f"{chart.tags[0].split('/')[1]}: " if ", " in names else ""
            return f"{of}{chart.low:g} to {chart.high:g}"
    return ""


def place(stage: str, names: str) -> int:
    """Where the stage's dashboard, which is in reading order, shows a metric; after all charts if nowhere."""
    charts = class_of(stage).charts  # type: ignore[attr-defined]
    return next((i for i, chart in enumerate(charts) if tags_of(names) & set(chart.tags)), len(charts))


def metrics_table(stage: str) -> str:
    metrics: list[Metric] = []
    shown: set[str] = set()
    for metric in chain.from_iterable(map(metrics_of, bases_of(stage))):
        names = [name for name in metric.name.split(", ") if name not in shown]  # the nearest class describes it
        metrics += [metric._replace(name=", ".join(names))] if names else []
        shown.update(names)
    metrics.sort(key=lambda metric: place(stage, metric.name))
    rows = [
        (", ".join(f"`{name}`" for name in names.split(", ")), markdown(meaning), healthy(stage, names))
        for names, meaning in metrics
    ]
    return table(("metric", "meaning", "healthy"), rows)


class Asked(dict[str, Any]):
    """A history without values that remembers which metrics it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def get(self, name: str, default: Any = None) -> Any:
        self.names.append(name)
        return default

    def __contains__(self, name: object) -> bool:
        self.names.append(str(name))
        return False


@functools.cache
def rules() -> dict[str, tuple[list[str], Any]]:
    """Each rule that warns, with the logged metrics that it reads first."""
    result = {}
    for name, rule in import_module("components.training.health_rules").RULES.items():
        asked = Asked()
        rule.check(asked)
        read = [metric for metric in dict.fromkeys(asked.names) if re.match(r"(train|val|rollout)/", metric)]
        result[name] = (read or ["train/ratio_max"], rule)  # "ratio off" reads first/ratio_max, made of it
    return result


def markdown(text: str) -> str:
    """Plain text as Markdown."""
    return re.sub(r"(?<!`)([*<])(?!`)", r"\\\1", text)


def as_markdown(doc: str) -> str:
    """A docstring: sentences as a paragraph, aligned lines as they are."""
    blocks = []
    for aligned, run in groupby(doc.split("\n"), lambda line: bool(ALIGNED.search(line)) if line else None):
        if aligned:
            blocks.append("```\n" + textwrap.dedent("\n".join(run)) + "\n```")
        elif aligned is not None:
            blocks.append("\n".join(markdown(line) for line in run))
    return "\n\n".join(blocks)


def about(stage: str) -> str:
    """The first paragraph of the stage's docstring."""
    return as_markdown(parts_of(class_of(stage).__doc__ or "")[0].split("\n\n")[0])


def parameters(stage: str) -> str:
    """What the stage's docstring says after that, except of metrics."""
    return as_markdown("\n\n".join(parts_of(class_of(stage).__doc__ or "")[0].split("\n\n")[1:]))


def equations(stage: str) -> str:
    """The docstrings of the equations that the modules of the stage's classes import."""
    names = {}
    for cls in bases_of(stage):
        for node in ast.walk(ast.parse(inspect.getsource(sys.modules[cls.__module__]))):
            if isinstance(node, ast.ImportFrom) and node.module in EQUATIONS:
                module = import_module(node.module)
                imported = [alias.name for alias in node.names if inspect.isfunction(getattr(module, alias.name))]
                described = " ".join(inspect.getdoc(getattr(module, name)) or "" for name in imported)
                cited = [name for name in re.findall(r"\b[a-z]+_\w+", described) if hasattr(module, name)]
                names |= {name: getattr(module, name) for name in (*imported, *cited)}
    blocks = []
    for name, function in names.items():
        file = function.__module__.replace(".", "/") + ".py"
        blocks.append(f"[`{name}`](../../{file}):\n\n```\n{inspect.getdoc(function)}\n```")
    return "\n\n".join(blocks)


def settings(stage: str) -> str:
    """The stage's settings, except for common ones with the value that the overview shows."""
    common = {setting.key: setting.value for setting in settings_of("sft") if setting.key in common_keys()}
    return settings_table([one for one in settings_of(stage) if one.value != common.get(one.key)])


def common_settings() -> str:
    common = common_keys()
    return settings_table([setting for setting in settings_of("sft") if setting.key in common])


def warnings(stage: str) -> str:
    """The names of the rules whose metrics the stage logs."""
    logged = logged_names(stage)
    named = [f"[{name}](../monitoring.md#warnings)" for name, (read, _) in rules().items() if logged.issuperset(read)]
    text = f"A run warns, with the likely cause and what to do: {', '.join(named)}."
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def all_warnings() -> str:
    rows = [
        (name, ", ".join(f"`{metric}`" for metric in read), markdown(rule.cause), markdown(rule.remedy))
        for name, (read, rule) in rules().items()
    ]
    return table(("warning", "reads", "likely cause", "what to do"), rows)


def list_of_stages() -> str:
    rows = []
    for stage in stages():
        first = (ROOT / f"conf/stage/{stage}.yaml").read_text(encoding="utf-8").splitlines()[1]
        what, command = re.fullmatch(r"# (.*?)  (python .*)", first).groups()  # type: ignore[union-attr]
        rows.append((f"[{stage}]({stage}.md)", what, f"`{command}`"))
    return table(("stage", "what", "command"), rows)


MAKERS: dict[str, Callable[..., str]] = {
    maker.__name__: maker
    for maker in (
        *(about, parameters, equations, settings, common_settings, metrics_table),
        *(warnings, all_warnings, list_of_stages),
    )
}


def filled(text: str) -> str:
    """The page with everything between its marks rewritten."""

    def made(match: re.Match[str]) -> str:
        begin, maker, argument, end = match.groups()
        return f"{begin}\n{MAKERS[maker](*([argument] if argument else []))}\n\n{end}"

    return MADE.sub(made, text)


if __name__ == "__main__":
    for page in sorted((ROOT / "docs").rglob("*.md")):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
