"""The summary of a run's sweep: its jobs' results as means with intervals over seeds, as tables and pictures."""

import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from components.artifacts import store
from components.evaluation.report import output, page_blocks
from components.evaluation.report.card import Table
from components.evaluation.seeds import seeds_plots
from components.evaluation.seeds.seeds_summary import Job, summarize
from components.evaluation.seeds.seeds_tables import fitting, tables
from components.system.disk import read_json_if_any, write_json

DATA, PAGE = "summary.json", "summary.md"
RESULTS = {  # where each kind is in a job's folder
    "report": "report/report.json",
    "rewards": "report/rewards.json",
    "optimum": "optimum/optimum.json",
    "overoptimization": "overoptimization/overoptimization.json",
}
SCALING = "rm/comparisons=*/export"


def summary(cfg: DictConfig) -> None:
    """Writes summary.json, summary.md and pictures from the sweep folders of the run, and prints the tables.

    A sweep folder is named after what its job varied, for instance seed=3 or seed=3,stage.beta=0.2. Jobs that differ
    only in the seed form a group, whose metrics are combined. Raises ValueError if there is no such folder.
    """
    run = Path(cfg.paths.logs, cfg.run)
    groups = jobs_by_group(run)
    if not groups:
        raise ValueError(
            f"no sweep in {run}: expected folders such as {run / 'seed=3'}. "
            f"Make it with: python train.py -m stage=all {shlex.quote(f'run={cfg.run}')} seed=3,4,5,6,7"
        )
    summaries = {group: summarize(jobs) for group, jobs in groups.items()}
    summaries = {group: content for group, content in summaries.items() if len(content) > 1}
    if not summaries:
        print(f"nothing to summarize in {run}: no job has a report, rewards, optimum, overoptimization or scaling yet")
        return
    folder = Path(cfg.paths.stage)
    pictures = {group: seeds_plots.draw(content, folder, _prefix(group)) for group, content in summaries.items()}
    results = {"run": cfg.run, **origin(run, groups), "groups": summaries}
    (folder / PAGE).write_text(page(results, pictures), encoding="utf-8")
    write_json(folder / DATA, results)
    console = output.wide_console()
    for group, content in summaries.items():
        for table in tables(content):
            for part in fitting(_titled(table, group), console.width):
                console.print()
                console.print(output.rich_table(part))
    print(f"\nsummary    {folder / PAGE}\nfigures    {folder / DATA}", flush=True)


def jobs_by_group(run: Path) -> dict[str, list[Job]]:
    """{what else was varied: jobs by seed} of the sweep folders of a run; "" if nothing else was."""
    groups: dict[str, list[Job]] = defaultdict(list)
    for folder in _jobs(run):
        parts = re.split(r",(?=[\w.@/+~]+=)", folder.name)
        seed = next((part.removeprefix("seed=") for part in parts if part.startswith("seed=")), "")
        others = ",".join(part for part in parts if not part.startswith("seed="))
        groups[others].append(read_job(folder, seed))
    return dict(groups)


def _jobs(run: Path) -> list[Path]:
    """The sweep folders of a run, in order."""
    return [folder for folder in sorted(run.glob("*=*"), key=_in_order) if folder.is_dir()]


def read_job(folder: Path, seed: str) -> Job:
    """The results in the folder of one job."""
    results = {kind: read_json_if_any(folder / name) for kind, name in RESULTS.items()}
    cards = [store.read_card(export) for export in folder.glob(SCALING)]
    return Job(seed, **results, scaling={card["inputs"]["data.comparisons"]: card for card in cards})


def origin(run: Path, groups: Mapping[str, Sequence[Job]]) -> dict[str, Any]:
    """What made a sweep's jobs, from the cards of their artifacts and from the jobs' results: commits, hardware and
    versions, each sorted and without repetitions, and the minutes of training per job, all stages together."""
    cards = {folder: [store.read_card(export) for export in folder.rglob("export")] for folder in _jobs(run)}
    results = [result for jobs in groups.values() for job in jobs for result in job.results]
    made = [*(card for job in cards.values() for card in job), *results]
    return {
        "commits": sorted({one["commit"] for one in made if one.get("commit")}),
        "hardware": sorted({one["hardware"] for one in made if one.get("hardware")}),
        "versions": sorted({_listed(one["versions"]) for one in made if one.get("versions")}),
        "minutes": {
            folder.name: round(sum(card.get("metrics", {}).get("seconds", 0) for card in job) / 60, 1)
            for folder, job in cards.items()
        },
    }


def page(results: dict[str, Any], pictures: dict[str, dict[str, str]]) -> str:
    """The summary as Markdown."""
    parts = [f"# Summary of {results['run']}"]
    for group, content in results["groups"].items():
        parts.append(f"Seeds {', '.join(content['seeds'])}" + (f", {group}" if group else "") + ".")
        parts += [page_blocks.block_as_markdown(_titled(table, group)) for table in tables(content)]
        parts += [f"![{caption}]({name})" for name, caption in pictures[group].items()]
    parts.append(made_by(results))
    return "\n\n".join(parts) + "\n"


def made_by(results: dict[str, Any]) -> str:
    """What made the figures, as a sentence."""
    minutes = sorted(results["minutes"].values())
    took = f"{minutes[0]:.0f} to {minutes[-1]:.0f} minutes of training per job" if minutes and minutes[-1] else ""
    parts = [f"commit {', '.join(results['commits'])}" if results["commits"] else "", *results["hardware"]]
    made = "; ".join(part for part in (*parts, *results["versions"], took) if part)
    return f"Made by {made}." if made else ""


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _titled(table: Table, group: str) -> Table:
    return table._replace(title=f"{table.title} ({group})") if group else table


def _prefix(group: str) -> str:
    """The prefix of a group's picture files, safe in a file name and a link."""
    return f"{re.sub(r'[^A-Za-z0-9=.,-]', '_', group)}_" if group else ""


def _in_order(folder: Path) -> list[Any]:
    """Folder names with their numbers compared as numbers: seed=3 before seed=10."""
    return [(0, float(part), "") if part.isdecimal() else (1, 0.0, part) for part in re.split(r"(\d+)", folder.name)]
