"""README.md of an artifact: card.json for human readers, in the format of the Hugging Face Hub."""

import json
from collections.abc import Mapping
from typing import Any

PIPELINES = {"CausalLM": "text-generation", "SequenceClassification": "text-classification"}
NOT_SHOWN = {"stage", "parents", "metrics", "inputs", "versions", "examination"}  # shown elsewhere, or too long


def model_card(card: Mapping[str, Any], *, kind: str, shape: str, shift: float | None) -> str:
    """The text of README.md: YAML for the Hub, then how to load it, lineage, settings and metrics.

    card: the content of card.json. kind: "CausalLM", "SequenceClassification" or "tokenizer"; shape: of the model, in
    words. shift: the bias of a reward model's score, which transformers does not support.
    """
    stage = str(card.get("stage", "model"))
    parents = card.get("parents") or {}
    base = sorted({str(parent["hub"]) for parent in parents.values() if parent.get("hub")})
    front = {"library_name": "transformers", "tags": ["gradus", stage]}
    if kind in PIPELINES:
        front["pipeline_tag"] = PIPELINES[kind]
    if base:
        front["base_model"] = base if len(base) > 1 else base[0]
    parts = [
        "---\n" + "".join(f"{name}: {_json(value)}\n" for name, value in front.items()) + "---",  # JSON is YAML
        f"# {card['run']}, stage {stage}" if "run" in card else f"# A {stage} of Gradus",
        f"Made by Gradus: {shape or 'a tokenizer'}.",
        *_loading(kind, shift),
        _table(
            "Made from",
            ("", "folder", "stage", "content (sha256)"),
            [
                (name, parent.get("hub") or parent.get("path", ""), parent.get("stage", ""), parent.get("content", ""))
                for name, parent in parents.items()
            ],
        ),
        _table("Facts", ("", ""), [(name, _cell(v)) for name, v in card.items() if name not in NOT_SHOWN]),
        _table("Metrics", ("", ""), sorted((card.get("metrics") or {}).items())),
        "All settings that it was made with are in `card.json`, under `inputs`." if "inputs" in card else "",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _loading(kind: str, shift: float | None) -> list[str]:
    names = {"CausalLM": "AutoModelForCausalLM", "SequenceClassification": "AutoModelForSequenceClassification"}
    lines = ["from transformers import AutoTokenizer" + (f", {names[kind]}" if kind in names else "")]
    lines += [f'model = {names[kind]}.from_pretrained("<this folder>")'] if kind in names else []
    lines += ['tokenizer = AutoTokenizer.from_pretrained("<this folder>")']
    sections = ["## How to load it", "```python\n" + "\n".join(lines) + "\n```"]
    if shift is not None:
        sections.append(
            f"The score of a text is the logit at its last token. Gradus adds {shift!r} to it (`score.bias` in "
            "`model.safetensors`): transformers' classifiers have no such bias and ignore it; rankings do not change."
        )
    return sections


def _table(title: str, head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    if not rows:
        return ""
    lines = [head, tuple("---" for _ in head), *rows]
    return f"## {title}\n\n" + "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else _json(value)
    return " ".join(text.replace("|", "\\|").split())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
