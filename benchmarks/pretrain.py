"""Pretraining: tokens per second, the same shape, text and batch.

python benchmarks/pretrain.py --text shakespeare.txt --hf <python> --litgpt <python>
"""

import argparse
from pathlib import Path

import harness
from harness import DEVICE, GPU, HEADS, INNER, LAYERS, VOCABULARY, WIDTH, Contestant, Load, Stopwatch, peak_mb

LOAD = Load(batch=16, context=256, steps=8, warmup=3)


def prepare(args: argparse.Namespace) -> None:
    harness.train(args, "stage=tokenizer", "data=text", f"data.path={args.text}", f"tokenizer.vocab_size={VOCABULARY}")


def ours(precision: str, *settings: str):
    def run(args: argparse.Namespace) -> dict[str, float]:
        card = harness.train(
            args,
            "stage=pretrain",
            "data=text",
            f"data.path={args.text}",
            f"data.batch_size={LOAD.batch}",
            f"trainer.precision={precision}",
            f"model.max_position_embeddings={LOAD.context}",
            *harness.timed(LOAD.steps, LOAD.warmup),
            *settings,
        )
        metrics = card["metrics"]
        return {
            "rate": metrics["train/tokens_per_second"],
            "peak_mb": card["peak_mb"],
            "mfu": metrics["train/mfu"],
            "loss": metrics["train/loss"],
        }

    return run


def token_rows(args: argparse.Namespace):
    """(rows, context + 1) token ids of the text, by the tokenizer of the work folder."""
    import torch
    from sentencepiece import SentencePieceProcessor

    encode = SentencePieceProcessor(model_file=harness.export(args, "tokenizer") + "/tokenizer.model").encode
    lines = Path(args.text).read_text().split("\n")
    ids = [i for start in range(0, len(lines), 200) for i in encode("\n".join(lines[start : start + 200]))]
    width = LOAD.context + 1
    return torch.tensor(ids[: len(ids) // width * width]).view(-1, width)


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=LOAD.context,
            tie_word_embeddings=True,
        )
    )


def hf_trainer(**settings):
    def run(args: argparse.Namespace) -> dict[str, float]:
        chosen = dict(settings)
        if chosen.pop("bf16_compiled", False):
            chosen |= {"bf16": True, "torch_compile": True}
        _, watch = trained_llama(args, token_rows(args)[:, : LOAD.context], LOAD, **chosen)
        return {"rate": watch.steps_per_second * LOAD.batch * LOAD.context, "peak_mb": peak_mb()}

    return run


def trained_llama(args: argparse.Namespace, rows, load: Load, **settings):
    """A Llama that HF Trainer has trained on (N, T) tokens, and the stopwatch of its steps. settings: the trainer's."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    model, watch = llama(), Stopwatch(load)

    class Watch(TrainerCallback):
        def on_step_end(self, *_, **__):
            watch.step()

    Trainer(
        model,
        TrainingArguments(
            output_dir=f"{args.work}/hf",
            max_steps=load.steps + load.warmup,
            per_device_train_batch_size=load.batch,
            report_to="none",
            save_strategy="no",
            use_cpu=not harness.GPU,
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        callbacks=[Watch()],
    ).train()
    return model, watch


def loop(build, dtype: str, compiled: bool, load: Load = LOAD, rows_of=token_rows):
    """The training loop of nanoGPT and litgpt: random rows, autocast, clipping, AdamW; each with its own model."""

    def run(args: argparse.Namespace) -> dict[str, float]:
        import torch

        torch.manual_seed(0)
        rows = rows_of(args)
        with torch.device(DEVICE):
            model, loss_of, optimizer = build(args)
        if compiled:
            model = torch.compile(model)
        watch = Stopwatch(load)
        for _ in range(load.steps + load.warmup):
            chosen = rows[torch.randint(len(rows), (load.batch,))]
            if GPU:
                chosen = chosen.pin_memory().to(DEVICE, non_blocking=True)
            with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bf16"):
                loss = loss_of(model, chosen[:, :-1].contiguous(), chosen[:, 1:].contiguous())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            watch.step()
        return {"rate": watch.steps_per_second * load.batch * load.context, "peak_mb": peak_mb(), "loss": loss.item()}

    return run


def nanogpt(
    *_: argparse.Namespace, vocabulary=VOCABULARY, context=LOAD.context, layers=LAYERS, heads=HEADS, width=WIDTH
):
    from gpt2 import GPT2, adamw

    model = GPT2(vocabulary=vocabulary, context=context, layers=layers, heads=heads, width=width)
    return model, lambda m, x, y: m(x, y), adamw(model, lr=1e-3, betas=(0.9, 0.99))


def litgpt(args: argparse.Namespace):
    import torch
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    model = GPT(
        Config(
            block_size=LOAD.context,
            vocab_size=VOCABULARY,
            padded_vocab_size=VOCABULARY,
            n_layer=LAYERS,
            n_head=HEADS,
            n_embd=WIDTH,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
            intermediate_size=INNER,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4)
    return model, lambda m, x, y: chunked_cross_entropy(m(x), y, chunk_size=0), optimizer  # the loss as it pretrains


CONTESTANTS = {
    "gradus": Contestant(ours("auto")),
    "gradus compiled": Contestant(ours("auto", "compile=true")),
    "gradus fp32": Contestant(ours("32-true")),
    "HF Trainer (default)": Contestant(hf_trainer(), ("hf",)),
    "HF Trainer bf16": Contestant(hf_trainer(bf16=True), ("hf",)),
    "HF Trainer bf16 compiled": Contestant(hf_trainer(bf16_compiled=True), ("hf",)),
    "nanoGPT (default)": Contestant(loop(nanogpt, "fp32", False)),
    "nanoGPT bf16": Contestant(loop(nanogpt, "bf16", False)),
    "nanoGPT bf16 compiled": Contestant(loop(nanogpt, "bf16", True)),
    "litgpt fp32": Contestant(loop(litgpt, "fp32", False), ("litgpt",)),
    "litgpt bf16": Contestant(loop(litgpt, "bf16", False), ("litgpt",)),
    "litgpt bf16 compiled": Contestant(loop(litgpt, "bf16", True), ("litgpt",)),
}

if __name__ == "__main__":
    parser = harness.arguments(__doc__, "text")
    harness.contest(__file__, parser, CONTESTANTS, unit="tokens/s", prepare=prepare)
