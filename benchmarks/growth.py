"""How time grows: pretraining at 4 × the batch, the context, the vocabulary; PPO against samples a rollout.

    python benchmarks/growth.py --text corpus.txt --chat dialogues.jsonl.gz --preference pairs.jsonl.gz

Writes results/growth.json and growth.png. At constant time a token the bars are as high as the first.
"""

import json
import statistics
from pathlib import Path

import harness
import rl

BASE = {"batch": 8, "context": 256, "vocabulary": 4096}
FOUR_TIMES = {
    "base": {},
    "4 × batch": {"batch": 32},
    "4 × context": {"context": 1024},
    "4 × vocabulary": {"vocabulary": 16384},
}
SAMPLES = (16, 64, 256)


def pretraining(args, batch: int, context: int, vocabulary: int) -> float:
    """Microseconds a token."""
    card = harness.train(
        args,
        "stage=pretrain",
        "data=text",
        f"data.path={args.text}",
        f"data.batch_size={batch}",
        f"model.max_position_embeddings={context}",
        f"model.vocab_size={vocabulary}",
        *harness.timed(12, 3),
    )
    return 1e6 / card["metrics"]["train/tokens_per_second"]


def ppo(args, samples: int) -> float:
    """Milliseconds a sample."""
    updates = rl.EPOCHS
    card = harness.train(
        args,
        "stage=ppo",
        "data=prompts",
        f"data.path={args.work}/prompts.jsonl",
        "data.val_fraction=0",
        f"stage.sampling.max_new_tokens={rl.NEW}",
        "gate.enabled=false",
        f"data.prompts_per_rollout={samples}",
        f"stage.epochs={rl.EPOCHS}",
        "stage.minibatches=1",
        *harness.timed(3 * updates, updates),
    )
    return 1e3 * card["metrics"]["train/step_seconds"] * updates / samples


def main() -> None:
    parser = harness.arguments(__doc__, "text", "chat", "preference")
    args = parser.parse_args()
    rl.prepare(args)
    tokens: dict[str, list[float]] = {name: [] for name in FOUR_TIMES}
    samples: dict[str, list[float]] = {str(n): [] for n in SAMPLES}
    for _ in range(args.repeats):
        for name, change in FOUR_TIMES.items():
            tokens[name].append(pretraining(args, **(BASE | change)))
        for n in SAMPLES:
            samples[str(n)].append(ppo(args, n))
    report("pretraining, µs a token", tokens)
    report("PPO, ms a sample, by samples a rollout", samples)
    record = {"machine": harness.hardware(), "versions": harness.versions()}
    record |= {"us_per_token": tokens, "ms_per_sample": samples}
    harness.RESULTS.mkdir(exist_ok=True)
    (harness.RESULTS / "growth.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(tokens, samples, harness.RESULTS / "growth.png")


def report(title: str, found: dict[str, list[float]]) -> None:
    first = statistics.median(next(iter(found.values())))
    print(f"\n| {title} | median (min – max) | of the first |\n|---|---|---|")
    for name, values in found.items():
        median = statistics.median(values)
        print(f"| {name} | {median:.3g} ({min(values):.3g} – {max(values):.3g}) | {median / first:.2f} |")


def draw(tokens: dict[str, list[float]], samples: dict[str, list[float]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = zip(figure.subplots(1, 2), (tokens, samples), ("pretraining, µs a token", "PPO, ms a sample"), strict=True)
    for axes, found, title in panels:
        axes.bar(range(len(found)), [statistics.median(v) for v in found.values()], color="#4878a8", width=0.6)
        for place, values in enumerate(found.values()):
            axes.plot([place] * len(values), values, "k.", markersize=4)
        axes.set_xticks(range(len(found)), list(found))
        axes.set_title(title, loc="left", fontweight="bold")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("samples a rollout" if found is samples else "")
    figure.savefig(file, dpi=120, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    main()
