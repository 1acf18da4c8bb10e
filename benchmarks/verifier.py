"""GRPO with a reward function on a real model: samples per second, and the accuracy that it reaches, beside TRL.

    python benchmarks/verifier.py --model <folder of SmolLM2-135M-Instruct> --hf <python> --rollouts 12

As in conf/experiment/rlvr.yaml: sums, of which a function checks the answers, after a short SFT for the format;
adapters of rank 16; 16 prompts × 8 responses of at most 6 tokens a rollout, and 2 updates with each. Contestants start
from one SFT model, read the same prompts, each once, call the same function, and use the same loss, optimizer and
schedule. After the last repeat one program measures the accuracy of all, on problems that nothing was trained on.
"""

import argparse
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
import sums
from harness import Contestant, Load, Stopwatch, peak_mb

PROMPTS, GROUP, UPDATES = 16, 8, 2  # of a rollout
SAMPLES = PROMPTS * GROUP
NEW, CONTEXT = 6, 128  # tokens
SFT_STEPS, SFT_BATCH = 8, 16
HELD_OUT, SFT = 200, SFT_STEPS * SFT_BATCH  # problems; those for GRPO come after them
RATE, WARMUP, CLIP, BETAS, EPS = 3e-4, 10, 1.0, (0.9, 0.95), 1e-5
RANK, ALPHA = 16, 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PRECISION = ("trainer.accelerator=cpu", "trainer.precision=bf16-mixed")
REWARD = f"{sums.__file__}:exact"
CPU_RATE = "samples per CPU second"


def prepare(args: argparse.Namespace) -> None:
    """The files of problems, and the SFT model that all contestants start from."""
    if args.rollouts < 2:
        raise SystemExit(f"--rollouts: got {args.rollouts}, expected at least 2: the first is not timed")
    problems = sums.problems(HELD_OUT + SFT + args.rollouts * PROMPTS)
    solved = [
        {"messages": [*record["prompt"], {"role": "assistant", "content": record["answer"]}]}
        for record in problems[HELD_OUT:][:SFT]
    ]
    _write(args, "held_out.jsonl", problems[:HELD_OUT])
    _write(args, "solved.jsonl", solved)
    _write(args, "prompts.jsonl", problems[HELD_OUT + SFT :])
    harness.train(
        args,
        "stage=sft",
        "data=chat",
        f"data.path={args.work}/solved.jsonl",
        "data.val_fraction=0",
        f"data.batch_size={SFT_BATCH}",
        "stage.optimizer.lr=5e-4",
        f"trainer.max_steps={SFT_STEPS}",
        "trainer.max_epochs=null",
        "export=last",
        model=_model(args.model),
    )


def _write(args: argparse.Namespace, name: str, records: Iterable[Mapping[str, Any]]) -> None:
    Path(args.work).mkdir(parents=True, exist_ok=True)
    Path(args.work, name).write_text("".join(json.dumps(record) + "\n" for record in records))


def _model(path: str) -> tuple[str, ...]:
    adapters = ("lora=default", f"lora.rank={RANK}", f"lora.alpha={ALPHA}", f"lora.targets=[{','.join(TARGETS)}]")
    return ("model=hf", f"model.path={path}", *adapters, f"context={CONTEXT}", *PRECISION)


def load_of(args: argparse.Namespace) -> Load:
    """In optimizer steps; the first rollout is not timed."""
    return Load(batch=SAMPLES // UPDATES, context=CONTEXT, steps=(args.rollouts - 1) * UPDATES, warmup=UPDATES)


def figures(load: Load, seconds: float, cpu_seconds: float, peak: float) -> dict[str, float]:
    samples = load.steps * load.batch
    return {"rate": samples / seconds, CPU_RATE: samples / cpu_seconds, "peak_mb": peak}


def ours(args: argparse.Namespace) -> dict[str, float]:
    load, file = load_of(args), Path(args.work, "watch.json")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.getenv("PYTHONPATH")]))
    card = harness.train(
        args,
        "stage=grpo",
        "reward=function",
        f"reward.path={REWARD}",
        "data=prompts",
        f"data.path={args.work}/prompts.jsonl",
        "data.val_fraction=0",
        f"data.prompts_per_rollout={PROMPTS}",
        f"stage.samples_per_prompt={GROUP}",
        "stage.epochs=1",
        f"stage.minibatches={UPDATES}",
        f"stage.sampling.max_new_tokens={NEW}",
        "stage.beta=0",
        f"stage.optimizer.lr={RATE}",
        f"stage.optimizer.betas=[{BETAS[0]},{BETAS[1]}]",
        f"stage.optimizer.eps={EPS}",
        f"stage.schedule.warmup_steps={WARMUP}",
        f"trainer.gradient_clip_val={CLIP}",
        f"trainer.max_steps={args.rollouts * UPDATES}",
        f"+callbacks.watch={{_target_: watch.Watch, path: {file}, warmup: {load.warmup}, steps: {load.steps}}}",
        model=_model(args.model),
    )
    return figures(load, **json.loads(file.read_text()), peak=card["peak_mb"])


def folder_name(contestant: str) -> str:
    """Of the folder in --work that a peer writes its adapters to: "TRL (default)" → trl_default."""
    return re.sub(r"\W+", "_", contestant.lower()).strip("_")


def trl(**settings: Any) -> Callable[[argparse.Namespace], dict[str, float]]:
    def run(args: argparse.Namespace) -> dict[str, float]:
        import torch
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
        from trl import GRPOConfig, GRPOTrainer

        start, load = harness.export(args, "sft"), load_of(args)
        watch = Stopwatch(load)

        class Watch(TrainerCallback):
            def on_step_end(self, *_, **__):
                watch.step()

        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32),
            reward_funcs=sums.exact,
            processing_class=AutoTokenizer.from_pretrained(start, padding_side="left"),
            peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM"),
            args=GRPOConfig(
                output_dir=f"{args.work}/trl",
                max_steps=args.rollouts * UPDATES,
                per_device_train_batch_size=load.batch,
                steps_per_generation=UPDATES,
                num_generations=GROUP,
                max_completion_length=NEW,
                loss_type="grpo",
                beta=0.0,
                learning_rate=RATE,
                adam_beta1=BETAS[0],
                adam_beta2=BETAS[1],
                adam_epsilon=EPS,
                lr_scheduler_type="linear",
                warmup_steps=WARMUP,
                max_grad_norm=CLIP,
                report_to="none",
                save_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
                **settings,
            ),
            train_dataset=Dataset.from_list(harness.records(f"{args.work}/prompts.jsonl", 10**6)),
            callbacks=[Watch()],
        )
        trainer.train()
        trainer.save_model(f"{args.work}/{folder_name(args.contestant)}")
        return figures(load, watch.seconds, watch.cpu_seconds, peak_mb())

    return run


def accuracy(args: argparse.Namespace, contestants: Sequence[str]) -> dict[str, Any]:
    """Prints, and returns for the record, how often the SFT model and what each contestant made of it solve a held-out
    problem: {"accuracy": {name: {"sampled": [share, low, high], "greedy": …}}}, with 95% intervals over problems.

    sampled: 4 responses a problem at temperature 1; greedy: the likeliest one.
    """
    start = harness.export(args, "sft")
    # ours is among the run's models, which the evaluation reads by itself
    reads = {"grpo" if name == "gradus" else folder_name(name): name for name in contestants}
    harness.run_train(
        args,
        "stage=eval",
        "model=hf",
        f"model.path={start}",
        *(f"+reads.{read}={args.work}/{read}" for read in reads if read != "grpo"),
        "reward=function",
        f"reward.path={REWARD}",
        "data=prompts",
        f"data.path={args.work}/held_out.jsonl",
        "data.val_fraction=0",
        f"stage.max_prompts={HELD_OUT}",
        "stage.samples_per_prompt=4",
        f"stage.max_new_tokens={NEW}",
        f"context={CONTEXT}",
        *PRECISION,
    )
    models = json.loads(Path(args.work, harness.RUN, "report", "rewards.json").read_text())["models"]
    names = {"model": "start", **reads}
    measured = {
        names[read]: {how: _share(own[how]["parts"]["exact"]) for how in ("sampled", "greedy")}
        for read, own in models.items()
        if read in names
    }
    for name, shares in measured.items():
        of = (f"{how} {share:.1%} [{low:.1%}, {high:.1%}]" for how, (share, low, high) in shares.items())
        print(f"accuracy of {name}: {', '.join(of)}")
    return {"rollouts": args.rollouts, "accuracy": measured}


def _share(part: Mapping[str, Any]) -> list[float]:
    return [part["mean"], *part["ci"]]


CONTESTANTS = {
    "gradus": Contestant(ours),
    "TRL (default)": Contestant(trl(), ("hf",)),
    "TRL bf16": Contestant(trl(bf16=True, gradient_checkpointing=False), ("hf",)),
}

if __name__ == "__main__":
    parser = harness.arguments(__doc__)
    parser.add_argument("--model", required=True, help="folder of a chat model, such as SmolLM2-135M-Instruct")
    parser.add_argument("--rollouts", type=int, default=12, help="of each contestant; the first is not timed")
    harness.contest(__file__, parser, CONTESTANTS, unit="samples/s", prepare=prepare, more=(CPU_RATE,), finish=accuracy)
