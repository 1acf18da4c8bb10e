"""Generation: tokens per second, prompts of 64 tokens and 128 new ones, one model's shape for all.

python benchmarks/generation.py --text corpus.txt --hf <python> --litgpt <python>  the model of every comparison
python benchmarks/generation.py --model 135M --hf <python>                  random weights of SmolLM2-135M's shape
python benchmarks/generation.py --model <folder> --hf <python>              a model in Hugging Face's format
"""

import argparse

import harness
import pretrain
from harness import DEVICE, VOCABULARY, Contestant, peak_mb
from random_models import SHAPES

PROMPT, NEW = 64, 128
ROWS = (1, 4, 16, 64)


def prepare(args: argparse.Namespace) -> None:
    if args.model:
        return
    if not args.text:
        raise SystemExit("generation.py: expected --text, to train the model of every comparison, or --model")
    text = ("data=text", f"data.path={args.text}", f"model.max_position_embeddings={pretrain.LOAD.context}")
    harness.train(args, "stage=tokenizer", *text, f"tokenizer.vocab_size={VOCABULARY}")
    harness.train(args, "stage=pretrain", *text, "trainer.max_steps=2")


def prompts(batch: int) -> list[list[int]]:
    import torch

    return torch.randint(10, VOCABULARY, (batch, PROMPT), generator=torch.Generator().manual_seed(0)).tolist()


def best_of(draw, batch: int) -> dict[str, float]:
    """The best of three draws after a warm-up: what is compared is the engine, not the machine's hiccups."""
    draw()
    seconds = []
    for _ in range(3):
        began = harness.now()
        draw()
        seconds.append(harness.now() - began)
    return {"rate": batch * NEW / min(seconds), "peak_mb": peak_mb()}


def ours(batch: int, bf16: bool):
    def run(args: argparse.Namespace) -> dict[str, float]:
        import sys

        import torch

        sys.path.insert(0, str(harness.ROOT))
        from components.artifacts import store
        from components.functional.seeding import seeded
        from components.generation.generate import Sampling, generate
        from components.models.config import GPTConfig
        from components.models.heads import CausalLM

        if args.model == "135M":
            model = CausalLM(GPTConfig(**SHAPES["135M"]))
        else:
            model = store.load_causal_lm(args.model or harness.export(args, "pretrain"))
        model = model.eval().to(DEVICE)

        def draw():
            with torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
                generate(model, prompts(batch), Sampling(NEW), stop_ids=[], pad_id=0, generator=seeded(DEVICE, 0))

        return best_of(draw, batch)

    return run


def transformers(batch: int, bf16: bool):
    def run(args: argparse.Namespace) -> dict[str, float]:
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig

        dtype = torch.bfloat16 if bf16 else torch.float32
        if args.model == "135M":
            model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES["135M"]), dtype=dtype)
        else:
            model = AutoModelForCausalLM.from_pretrained(args.model or harness.export(args, "pretrain"), dtype=dtype)
        model = model.eval().to(DEVICE)
        ids = torch.tensor(prompts(batch), device=DEVICE)

        def draw():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=True,
                top_k=0,
                use_cache=True,
                pad_token_id=0,
            )

        with torch.no_grad():
            return best_of(draw, batch)

    return run


def litgpt(batch: int, bf16: bool):
    """litgpt.generate.base for one sequence; for several its batched generator."""

    def run(args: argparse.Namespace) -> dict[str, float]:
        import torch
        from litgpt.generate.base import batched_generate_fn, generate

        if args.model:
            raise SystemExit("litgpt takes part only with the model of every comparison; leave out --litgpt or --model")
        torch.manual_seed(0)
        model, _, _ = pretrain.litgpt(args)
        model = model.to(DEVICE, torch.bfloat16 if bf16 else torch.float32).eval()
        ids = torch.tensor(prompts(batch), device=DEVICE)

        @torch.inference_mode()
        def draw():
            model.clear_kv_cache()
            model.max_seq_length = PROMPT + NEW
            model.set_kv_cache(
                batch_size=batch, max_seq_length=PROMPT + NEW, device=ids.device, dtype=model.lm_head.weight.dtype
            )
            if batch == 1:
                generate(model, ids[0], PROMPT + NEW, temperature=1.0, top_k=None)
            else:
                list(
                    batched_generate_fn(
                        model,
                        ids,
                        PROMPT + NEW,
                        sample_args={"temperature": 1.0},
                        stop_tokens=(),
                        include_prompt=False,
                        include_eos=False,
                    )
                )

        return best_of(draw, batch)

    return run


CONTESTANTS = {
    f"batch {rows}: {engine} {dtype}": Contestant(run(rows, dtype == "bf16"), needs)
    for rows in ROWS
    for engine, run, needs in (
        ("gradus", ours, ()),
        ("HF generate", transformers, ("hf",)),
        ("litgpt", litgpt, ("litgpt",)),
    )
    for dtype in ("fp32", "bf16")
}

if __name__ == "__main__":
    parser = harness.arguments(__doc__)
    parser.add_argument("--text", help=f"{harness.FILES['text']}; needed without --model")
    parser.add_argument("--model", help="135M or a folder, instead of the model of every comparison")
    harness.contest(__file__, parser, CONTESTANTS, unit="tokens/s", prepare=prepare)
