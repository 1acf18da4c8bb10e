"""The report as a page: its blocks in order, with the pictures drawn next to it."""

from collections.abc import Mapping
from pathlib import Path

from components.evaluation.report import card, contents, outcome, page_blocks, pictures, plots
from components.evaluation.report.card import Results
from components.evaluation.report.conclusions import CONCLUSIONS
from components.evaluation.report.curves import Curve
from components.evaluation.report.page_blocks import Block, Drawing, Heading, Page, Picture, Points, Quotes, Text

SAMPLES = 6  # prompts shown on the page


def page(results: Results, curves: Mapping[str, Mapping[str, Curve]], folder: Path) -> Page:
    """The report as a page; its pictures are drawn into the folder."""
    shown: dict[str, list[Block]] = {}
    for name, panels in plots.panels(results, curves).items():
        files = [
            folder / (f"{name}-{number}.png" if number > 1 else f"{name}.png") for number in range(1, 1 + len(panels))
        ]
        drawn = [Drawing(file.name, pictures.save(p, file), p.alt) for file, p in zip(files, panels, strict=True)]
        shown[name] = [Picture(drawn, " ".join(CONCLUSIONS[name](results, curves)))]
    blocks: list[Block] = [Points(outcome.summary(results)), card.models_table(results)]
    blocks += [Text(line) for line in (*card.base_lines(results), card.crowd_line(results)) if line]
    blocks += shown.get("quality", [])
    for table, picture in contents.tables_of(results):
        blocks += [table, *shown.get(picture, [])]
    if "curves" in shown:
        blocks += [Heading("Learning curves"), *shown["curves"]]
    if results.get("minutes"):
        blocks += [Heading("Minutes per stage"), Text(card.minutes_line(results)), *shown.get("minutes", [])]
    blocks += [Heading("Sample answers"), _answers(results)]
    blocks += [Heading("Provenance"), Points(contents.provenance(results))]
    run = results.get("run")
    return page_blocks.explained(
        Page(f"Report card: {run}" if run else "Report card", [block for block in blocks if any(block)])
    )


def _answers(results: Results) -> Quotes:
    """Prompts and every model's answers: the likeliest one, then one sampled at temperature 1."""
    models = card.answering(results)
    rows = []
    prompts = next(iter(models.values()))["samples"][:SAMPLES]
    for i, prompt in enumerate(prompts):
        for kind in ("greedy", "sampled"):
            reference = f" ({prompt['reference']})" if prompt["reference"] else ""
            first = f"{prompt['prompt']}{reference}" if kind == "greedy" else ""
            rows.append([first, *(_answer(metrics["samples"][i], kind) for metrics in models.values())])
    note = (
        "For each prompt, the likeliest answer, then one sampled at temperature 1. … marks an answer that did not end."
    )
    if "greedy_gold" in prompts[0]:
        note += " In parentheses: the gold score of an answer; the true value after a prompt."
    return Quotes(["prompt", *models], rows, note)


def _answer(sample: Results, kind: str) -> str:
    text = sample[kind] + ("" if sample[f"{kind}_finished"] else " …")
    gold = sample.get(f"{kind}_gold")
    return text if gold is None else f"{text} ({card.number(gold)})"
