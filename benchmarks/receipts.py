"""Receipts: what stages were predicted to take, beside what they took, on two small models and on a real one.

    python benchmarks/receipts.py --only tiny
    python benchmarks/receipts.py --only small
    python benchmarks/receipts.py --only smollm2 --model <folder> --text corpus.txt --chat dialogues.jsonl \\
        --preference comparisons.jsonl

Every stage runs for a few steps as `python train.py …` does, with a seed of its own in each repeat. Its card has the
predictions, which it printed before its first step and in its first seconds, and what it took (docs/planning.md).
`tiny` and `small` are models on the built-in world, `smollm2` a folder with SmolLM2-135M-Instruct, trained with
adapters.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import harness

STEPS = {"tiny": 60, "small": 60, "smollm2": 16}
STAGES = ("pretrain", "sft", "rm", "dpo", "ppo", "grpo")
RECORDS, READ = 400, 16_000  # of one's own that are trained on; comparisons that are read, of which each prompt has one
Receipt = dict[str, Any]  # {figure: {"predicted", "actual"}}


def on_world(args: argparse.Namespace, seed: int) -> Iterator[tuple[str, Receipt]]:
    """All stages of the pipeline on the world, each on the model of the one before."""
    common = [f"model={args.only}", f"seed={seed}", "parents=never", "gate.enabled=false"]
    harness.run_train(args, *common, "stage=tokenizer")
    for stage in STAGES:
        yield stage, _receipt(args, stage, *common)


def smollm2(args: argparse.Namespace, seed: int) -> Iterator[tuple[str, Receipt]]:
    """Every stage on the published model, PPO with the reward model of the run."""
    chat, comparisons, prompts = (Path(args.work, f"{name}.jsonl") for name in ("chat", "preference", "prompts"))
    dialogues = harness.records(args.chat, RECORDS)
    _write(chat, dialogues)
    _write(prompts, [{"prompt": record["messages"][:1]} for record in dialogues])
    by_prompt = {json.dumps(record["prompt"]): record for record in harness.records(args.preference, READ)}
    _write(comparisons, list(by_prompt.values())[:RECORDS])
    rollouts = [
        "data=prompts",
        f"data.path={prompts}",
        "data.prompts_per_rollout=8",
        "data.max_prompt=64",
        "stage.sampling.max_new_tokens=24",
        "stage.epochs=1",
        "stage.minibatches=2",
    ]
    data = {
        "pretrain": ["data=text", f"data.path={args.text}", "data.batch_size=2"],
        "sft": ["data=chat", f"data.path={chat}", "data.batch_size=2"],
        "rm": ["data=preference", f"data.path={comparisons}", "data.batch_size=1", "examination=null"],
        "dpo": ["data=preference", f"data.path={comparisons}", "data.batch_size=1"],
        "ppo": [*rollouts, f"artifacts.rm={harness.export(args, 'rm')}", "gate.enabled=false"],
        "grpo": [*rollouts, "stage.samples_per_prompt=4", "reward=function", f"reward.path={REWARD}"],
    }
    model = [f"seed={seed}", "model=hf", f"model.path={args.model}", f"artifacts.sft={args.model}", "lora=default"]
    for stage, settings in data.items():
        yield stage, _receipt(args, stage, *model, "context=256", *settings)


REWARD = f"{harness.ROOT}/examples/rewards.py:valid_json"
MODELS: dict[str, Callable[[argparse.Namespace, int], Iterator[tuple[str, Receipt]]]] = {
    "tiny": on_world,
    "small": on_world,
    "smollm2": smollm2,
}


def _receipt(args: argparse.Namespace, stage: str, *settings: str) -> Receipt:
    limit = f"trainer.max_steps={STEPS[args.only]}"
    return harness.train(args, f"stage={stage}", *settings, limit, "export=last", model=())["receipt"]


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def table(by_stage: dict[str, list[Receipt]]) -> str:
    """A row for each stage, means over the repeats."""
    lines = ["| | seconds | memory, MB | FLOPs, 10¹² |", "|---" * 4 + "|"]
    figures = (("seconds", 1.0, ",.0f"), ("memory", 1e6, ",.0f"), ("flops", 1e12, ",.3g"))
    for stage, receipts in by_stage.items():
        cells = [
            beside([(receipt[name]["predicted"], receipt[name]["actual"]) for receipt in receipts], unit, form)
            for name, unit, form in figures
        ]
        lines.append(f"| {' | '.join([stage, *cells])} |")
    return "\n".join(lines)


def beside(runs: Iterable[tuple[float | None, float | None]], unit: float, form: str) -> str:
    """What runs were predicted to take and took, means over those where both are known, and the lowest and highest
    difference of a run from its own prediction."""
    pairs = [(predicted, actual) for predicted, actual in runs if predicted is not None and actual is not None]
    if not pairs:
        return "–"
    means = [sum(values) / len(pairs) / unit for values in zip(*pairs, strict=True)]
    off = [100 * (actual / predicted - 1) for predicted, actual in pairs]
    low, high = (f"{share:+.0f}".replace("-", "−") for share in (min(off), max(off)))
    return f"{means[0]:{form}} → {means[1]:{form}} ({low} to {high}%)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(MODELS), required=True, help="the model")
    parser.add_argument("--model", help="folder of SmolLM2-135M-Instruct")
    for file in ("text", "chat", "preference"):
        parser.add_argument(f"--{file}", help=harness.FILES[file])
    parser.add_argument("--work", default="/tmp/gradus-receipts", help="folder for models and records")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.only == "smollm2" and not all((args.model, args.text, args.chat, args.preference)):
        parser.error("smollm2 needs --model, --text, --chat and --preference")
    by_stage: dict[str, list[Receipt]] = {}
    for seed in range(args.repeats):
        for stage, receipt in MODELS[args.only](args, seed):
            by_stage.setdefault(stage, []).append(receipt)
            print(f"repeat {seed + 1}/{args.repeats} {stage}: {receipt}", flush=True)
    machine = harness.hardware()
    record = {"machine": machine, "versions": harness.versions(), "steps": STEPS[args.only], "runs": by_stage}
    harness.save(f"receipts_{args.only}", record)
    print(f"\n{table(by_stage)}\n\n{machine}")


if __name__ == "__main__":
    main()
