"""What an artifact was made from, and whether it is up to date."""

import logging
import shutil
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from components.artifacts.metadata import ArtifactError, content_hash, differing, read_card
from components.system import processes
from components.system.disk import present
from components.system.hub import name_of

log = logging.getLogger(__name__)
UNKNOWN = "?"  # the stage of a folder that none of ours made


def require(reads: dict[str, str], artifacts: dict[str, str], identity: str) -> dict[str, dict[str, str]]:
    """The artifacts that a stage reads: {name: {path, stage, content}}, plus hub for one that came from the Hub.

    artifacts: the expected paths of these artifacts and of those that they are made from, by stage, each after those
    that it is made from; identity: the overrides that name the run, such as "model=small run=x".
    Raises ArtifactError naming the missing stage that comes last in the pipeline, the command that makes it, and, if
    its own predecessors are missing too, the command that makes all of them; or, for a folder that is no stage's, the
    settings that name it.
    """
    order = list(artifacts)
    stages = {path: stage for stage, path in artifacts.items()}
    missing = [stages.get(path, name) for name, path in reads.items() if not present(path)]
    if missing:
        stage = max(missing, key=lambda s: order.index(s) if s in order else len(order))
        path = next(path for name, path in reads.items() if stages.get(path, name) == stage)
        if path not in stages:
            keys = ", ".join(f"reads.{name}=<folder>" for name, other in reads.items() if other == path)
            raise ArtifactError(f"no artifact at {path}, which is no stage's usual place. Name another folder: {keys}")
        message = f"no {stage} artifact at {path}. Make it with: python train.py stage={stage} {identity}"
        chain = [s for s in order[: order.index(stage) + 1] if not present(artifacts[s])]
        if len(chain) > 1:
            command = f"python train.py stage=all {identity} 'stages=[{','.join(chain)}]'"
            message += f"\nor, with everything that it needs: {command}"
        message += f"\nor point at another folder with: artifacts.{stage}=<folder>"
        if stage in ("sft", "pretrain"):
            message += ", or at a model on the Hub: <owner/name>; a chat model works for sft too"
        raise ArtifactError(message)
    described = {path: _described(path) for path in set(reads.values())}
    return {name: described[path] for name, path in reads.items()}


def _described(path: str) -> dict[str, str]:
    """Path, stage and content of an artifact; for a foreign folder, hashes the content. Adds its Hub name, if any."""
    card, name = read_card(path), name_of(path)
    content = card.get("content") or content_hash(path)
    described = {"path": str(path), "stage": card.get("stage", UNKNOWN), "content": content}
    return described | {"hub": name} if name else described


def same_tokenizer(fingerprints: dict[str, str]) -> None:
    """Raises ArtifactError unless all artifacts were made with the same tokenizer; fingerprints by artifact path."""
    if len(set(fingerprints.values())) > 1:
        listing = "\n".join(f"  {path}: {fingerprint[:16]}" for path, fingerprint in fingerprints.items())
        raise ArtifactError(
            "the artifacts were made with different tokenizers. Make the later stages again with the same one and "
            f"force=true. Fingerprints:\n{listing}"
        )


def same_vocabulary(student: str, tokens: Sequence[str], teacher: str, others: Sequence[str], key: str) -> None:
    """Raises ArtifactError unless every id is the same token in both models' tokenizers; "" is no token.

    tokens, others: by id. key: the setting that names the teacher.
    """
    for number, (one, other) in enumerate(zip_longest(tokens, others, fillvalue="")):
        if one != other:
            raise ArtifactError(
                f"the teacher {teacher} has a different vocabulary from the student {student}: id {number} is "
                f"{other!r} for the teacher and {one!r} for the student ({len(others)} and {len(tokens)} ids). Their "
                f"distributions can be compared only over the same tokens; choose a teacher with the same tokenizer: "
                f"{key}=<folder>"
            )


def is_up_to_date(
    export: str | Path, inputs: dict[str, Any], force: bool | str, in_another_run: str = "run=<name>"
) -> bool:
    """Whether the artifact exists and was made from exactly these inputs.

    in_another_run: the command that makes it in another run, for the message.
    force: True makes it again in any case; "changed" makes it again if its inputs differ.
    Removes the half-written files that a killed run left next to it.
    Raises ArtifactError if it exists, differs, and force is False: a finished stage is never silently overwritten.
    """
    exists = present(export)
    if processes.rank() == 0:
        _remove_leftovers(Path(export))
    if not exists or force is True:
        return False
    before = read_card(export).get("inputs", {})
    changed = differing(before, inputs)
    if not changed:
        return True
    shown = "; ".join(f"{k}: {_short(before.get(k))} → {_short(inputs.get(k))}" for k in changed[:4])
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    if force == "changed":
        log.info(f"making {export} again, because its inputs changed: {shown}{more}")
        return False
    raise ArtifactError(
        f"{export} is finished, but was made from other inputs: {', '.join(changed[:4])}{more}. "
        f"Add force=true to replace it. To keep both: {in_another_run}\nBefore and now: {shown}{more}"
    )


def in_order(exports: Iterable[Path]) -> list[Path]:
    """The artifacts of one run, each after those of the stages that it was made from, else the oldest first."""
    oldest_first = sorted(exports, key=lambda export: export.stat().st_mtime)
    by_stage = {export.parent.name: export for export in oldest_first}
    order: list[Path] = []

    def add(export: Path, descendants: tuple[Path, ...] = ()) -> None:
        if export in order or export in descendants:
            return
        for parent in read_card(export).get("parents", {}).values():
            if parent["stage"] in by_stage:
                add(by_stage[parent["stage"]], (*descendants, export))
        order.append(export)

    for export in oldest_first:
        add(export)
    return order


def _remove_leftovers(export: Path) -> None:
    """Removes what killed runs left behind: half-written artifacts, and a previous one that was already replaced."""
    partial = [*export.parent.glob(f"{export.name}.writing-*")]
    replaced = [export.with_name(f"{export.name}.previous")] if export.exists() else []
    for leftover in [*partial, *replaced]:
        shutil.rmtree(leftover, ignore_errors=True)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"
