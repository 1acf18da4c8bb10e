"""What an artifact was made from, and whether it is up to date."""

import logging
import shutil
from pathlib import Path
from typing import Any

from components.artifacts.metadata import ArtifactError, content_hash, differing, read_card
from components.system import processes
from components.system.disk import present
from components.system.hub import name_of

log = logging.getLogger(__name__)


def require(reads: dict[str, str], known: dict[str, str], identity: str) -> dict[str, dict[str, str]]:
    """The artifacts that a stage reads: {name: {path, stage, content}}, and hub where one came from there.

    known: where every stage's artifact is expected, in the pipeline's order; identity: the overrides that name the
    run, such as "model=small run=x". Raises ArtifactError naming the latest stage that is missing, the command that
    makes it, and, where its own predecessors are missing too, the command that makes all of them.
    """
    order = list(known)
    stages = {path: stage for stage, path in known.items()}
    missing = [stages.get(path, name) for name, path in reads.items() if not present(path)]
    if missing:
        stage = max(missing, key=lambda s: order.index(s) if s in order else len(order))
        path = next(path for name, path in reads.items() if stages.get(path, name) == stage)
        message = f"no {stage} artifact at {path}. Make it with: python train.py stage={stage} {identity}"
        chain = [s for s in order[: order.index(stage) + 1] if not present(known[s])] if stage in order else []
        if len(chain) > 1:
            command = f"python train.py stage=all {identity} 'stages=[{','.join(chain)}]'"
            message += f"\nor, with all that it needs itself: {command}"
        message += f"\nor point at another folder with: artifacts.{stage}=<folder>"
        if stage in ("sft", "pretrain"):
            message += ", or at a model on the Hub: <owner/name>; somebody's chat model does for sft too"
        raise ArtifactError(message)
    described = {path: _described(path) for path in set(reads.values())}
    return {name: described[path] for name, path in reads.items()}


def _described(path: str) -> dict[str, str]:
    """Of a folder that somebody else made the content is hashed here, and its name on the Hub told where it has one."""
    card, name = read_card(path), name_of(path)
    content = card.get("content") or content_hash(path)
    return {"path": str(path), "stage": card.get("stage", "?"), "content": content} | ({"hub": name} if name else {})


def same_tokenizer(fingerprints: dict[str, str]) -> None:
    """Raises ArtifactError unless all artifacts were made with one tokenizer; fingerprints by artifact path."""
    if len(set(fingerprints.values())) > 1:
        listed = "\n".join(f"  {path}: {fingerprint[:16]}" for path, fingerprint in fingerprints.items())
        raise ArtifactError(
            "the artifacts were made with different tokenizers. Make the later stages again from the same one, with "
            f"force=true. Fingerprints:\n{listed}"
        )


def is_made(export: str | Path, inputs: dict[str, Any], force: bool | str, beside: str = "run=<name>") -> bool:
    """Whether the artifact is there and was made from just these inputs.

    beside: the command that makes it in another run, for the message.
    force True: made again whatever is there; "changed": made again if its inputs differ.
    What a killed run left half-written beside it is removed.
    Raises ArtifactError if it is there, differs, and force is False: a finished stage is not overwritten in silence.
    """
    there = present(export)
    if processes.rank() == 0:
        _remove_leftovers(Path(export))
    if not there or force is True:
        return False
    before = read_card(export).get("inputs", {})
    changed = differing(before, inputs)
    if not changed:
        return True
    shown = "; ".join(f"{k}: {_short(before.get(k))} → {_short(inputs.get(k))}" for k in changed[:4])
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    if force == "changed":
        log.info(f"{export} is made again, its inputs changed: {shown}{more}")
        return False
    raise ArtifactError(
        f"{export} is finished, but was made from other inputs: {', '.join(changed[:4])}{more}. "
        f"Add force=true to replace it. To keep both: {beside}\nBefore and now: {shown}{more}"
    )


def _remove_leftovers(export: Path) -> None:
    """What killed runs left of writing an artifact: halves under temporary names, one that the present one replaced."""
    halves = [*export.parent.glob(f"{export.name}.writing-*")]
    replaced = [export.with_name(f"{export.name}.previous")] if export.exists() else []
    for leftover in [*halves, *replaced]:
        shutil.rmtree(leftover, ignore_errors=True)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"
