"""A run's folder as training leaves it, with cards, curves and a report, but without models."""

import json

from components.loggers.recorder import METRICS


def write_card(export, stage, *, content, parents=(), data="", **fields):
    """A card; parents: exports, whose cards are read."""
    export.mkdir(parents=True)
    named = {}
    for parent in parents:
        card = json.loads((parent / "card.json").read_text())
        named[card["stage"]] = {"path": str(parent), "stage": card["stage"], "content": card["content"]}
    card = {"stage": stage, "run": export.parents[1].name, "content": content, "data": data, "parents": named, **fields}
    (export / "card.json").write_text(json.dumps(card))
    return export


def write_run(run):
    """tokenizer → pretrain → sft → rm, and ppo from sft and rm."""
    world = {"data._target_": "TextData", "data.world.kind": "facts"}
    file = {"data._target_": "ChatData", "data.path": "/home/anna/texts/<b>mine.jsonl"}
    counted = {"data/records": 2000, "data/tokens": 50000, "val/loss": 1.25, "seconds": 90}
    tokenizer = write_card(run / "tokenizer/export", "tokenizer", content="t", data="text", inputs=world)
    base = write_card(
        run / "pretrain/export",
        "pretrain",
        content="p",
        parents=[tokenizer],
        data="text",
        inputs=world,
        metrics=counted,
        learning={"verdict": "learned"},
        seed=3,
        commit="abc",
    )
    sft = write_card(run / "sft/export", "sft", content="s", parents=[base], data="chat", inputs=file)
    rm = write_card(run / "rm/export", "rm", content="r", parents=[sft], metrics={"val/accuracy": 0.75})
    write_card(run / "ppo/export", "ppo", content="o", parents=[sft, rm])
    rows = ["train/loss,1,3.0", "train/loss,2,2.0", "val/loss,2,nan", "train/lr,1,0.1"]
    logged = run / "pretrain" / METRICS
    logged.parent.mkdir()
    logged.write_text("\n".join(["name,step,value", *rows, ""]))
    return run
