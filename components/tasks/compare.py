"""Makes comparisons: completions sampled from a model, ranked by a judge, written as preference records."""

import itertools
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from components.artifacts import lineage, store
from components.artifacts.store import ArtifactError
from components.comparing import judges, ledger
from components.comparing.completions import Plan, Ranking, Samples, describe, sample
from components.comparing.human import HumanJudge, Stop, Undo, usage
from components.data.sources.builtin import make_world
from components.launch import composing, settings, spawning
from components.launch.overrides import written
from components.system.disk import write_json
from components.tasks import common, reward_functions
from components.tasks.placement import Place, check_room
from components.world.randomness import generator

COMPLETIONS = "completions.jsonl"


def compare(cfg: DictConfig) -> None:
    """Samples completions for the training prompts and has them ranked. Writes into the stage's folder:

    completions.jsonl   the samples, kept for a person to resume with the same ones
    preferences.jsonl   the rankings, records of the preference format; skipped.jsonl: what a person skipped
    card.json           inputs, counts and metrics; "finished" once every record is judged
    """
    parents, tokenizer, shape, for_data = common.read(cfg, cfg.reads.model)
    plan: Plan = instantiate(cfg.stage)
    data = instantiate(cfg.data, **for_data)
    check_room(cfg, data, "stage.max_new_tokens")
    inputs = settings.inputs_of(composing.plain(cfg), parents, data.fingerprint())
    folder = Path(cfg.paths.stage)
    folder.mkdir(parents=True, exist_ok=True)
    card = matching_card(folder, inputs, cfg.force)
    if card and card["finished"]:
        print(f"{folder} is up to date (same settings, data and parents); force=true makes it again")
        report(cfg, card)
        return
    reward_functions.try_on(cfg, data)
    place = Place.of(cfg, shape.hidden_size)
    world = make_world(dict(cfg.world)) if data.is_builtin else None
    judge = common.built(
        cfg.judge, tokenizer=tokenizer, to_device=place.to_device, world=world, tokens_at_once=cfg.tokens_at_once
    )
    if card is None:
        data.prepare_data()
        data.setup()
        model = place.to_device(store.load_causal_lm(cfg.reads.model, context=cfg.context))
        asked = (model, tokenizer, data.train_examples, plan, cfg.seed)
        with place.running():
            sampled, counts = sample(*asked, tokens_at_once=cfg.tokens_at_once)
        ledger.write(folder / COMPLETIONS, (record._asdict() for record in sampled))
        metrics: dict[str, float] = {f"draw/{name}": count for name, count in counts.items()}
        card = common.card_of(cfg, inputs, parents, tokenizer, metrics) | {"finished": False}
        write_card(folder, card)
    sampled = [Samples(**row) for row in ledger.read(folder / COMPLETIONS)]
    with place.running():
        if isinstance(judge, HumanJudge):
            finished = rank_by_hand(judge, sampled, folder, cfg.seed, spawning.same_command(cfg))
        else:
            finished = rank_at_once(judge, sampled, folder, cfg.seed)
    gold = world and (lambda prompt, completion: judges.gold(world, prompt, completion))
    ranking_metrics = describe(ledger.read_rankings(folder), gold)
    seconds = card["metrics"].get("seconds", 0) + common.seconds()
    card |= {"finished": finished, "metrics": card["metrics"] | ranking_metrics | {"seconds": seconds}}
    write_card(folder, card)
    report(cfg, card)


def matching_card(folder: Path, inputs: dict[str, Any], force: bool | str) -> dict[str, Any] | None:
    """The card of comparisons that were made or started from exactly these inputs; None if there are none.

    Those that will be replaced are kept as *.previous, *.previous-2, …, since a person's rankings cannot be recomputed.
    Raises ArtifactError if the existing ones were made from other inputs and force is False.
    """
    card = store.read_card(folder)
    before = card.get("inputs", {})
    changed = lineage.differing(before, inputs) if card else []
    if card and not changed and force is not True and (folder / COMPLETIONS).exists():
        return card | {"finished": card["finished"] and (folder / ledger.PREFERENCES).exists()}
    if changed and force is False:
        shown = "; ".join(f"{key}: {str(before.get(key))[:24]} → {str(inputs.get(key))[:24]}" for key in changed[:4])
        raise ArtifactError(
            f"{folder} contains comparisons made from other inputs. Add paths.folder=compare/<name> to keep both, or "
            f"force=true to replace them (rankings are kept as *.previous). Before and now: {shown}"
        )
    (folder / store.CARD).unlink(missing_ok=True)
    files = [folder / name for name in (ledger.PREFERENCES, ledger.SKIPPED)]
    endings = itertools.chain([".previous"], (f".previous-{number}" for number in itertools.count(2)))
    free = next(ending for ending in endings if not any(Path(f"{file}{ending}").exists() for file in files))
    for file in files:
        if file.exists():
            os.replace(file, f"{file}{free}")
    return None


def rank_at_once(judge: Any, sampled: Sequence[Samples], folder: Path, seed: int) -> bool:
    """Has all records ranked and writes them at once."""
    all_ranks = []
    for number, record in enumerate(sampled):
        rng = generator("compare", seed, number)
        all_ranks.append(judge.rank(record.prompt, record.completions, rng, record.columns))
    rankings = [
        Ranking(record.prompt, record.completions, ranks)
        for record, ranks in zip(sampled, all_ranks, strict=True)
        if ranks is not None
    ]
    ledger.write_rankings(folder, rankings)
    return True


def rank_by_hand(judge: HumanJudge, sampled: Sequence[Samples], folder: Path, seed: int, again: str) -> bool:
    """Asks a person, from where they stopped. Returns whether all records are decided now. again: how to resume."""
    book = ledger.Ledger(folder)
    judge.note(usage(max(len(record.completions) for record in sampled)))
    while (number := book.position) < len(sampled):
        judge.note(f"\n{number + 1} of {len(sampled)}")
        try:
            record = sampled[number]
            ranks = judge.rank(record.prompt, record.completions, generator("compare", seed, number))
        except Undo:
            if not book.undo():
                judge.note("nothing to undo yet")
        except Stop:
            judge.note(
                f"\nstopped: {number - book.skipped} judged, {book.skipped} skipped, {len(sampled) - number} to "
                f"go; {again} resumes from here"
            )
            return False
        else:
            book.add(None if ranks is None else Ranking(record.prompt, record.completions, ranks))
    return True


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Writes card.json into the folder."""
    write_json(folder / store.CARD, card, lenient=True)


def report(cfg: DictConfig, card: dict[str, Any]) -> None:
    """Prints what was made, and the command that trains a reward model on it."""
    metrics, file = card["metrics"], f"{cfg.paths.stage}/{ledger.PREFERENCES}"
    if not metrics["records"]:
        print(f"no comparison in {file} yet", flush=True)
        return
    count = f"{metrics['records']:,} comparison{'s' * (metrics['records'] != 1)}"
    print(f"{file}: {count} of {metrics['completions']:.2f} different completions, {metrics['ties']:.1%} of pairs tied")
    print(
        f"of {metrics['draw/asked']:,} × {cfg.stage.completions} completions {metrics['draw/unfinished']:,} did not "
        f"end and {metrics['draw/duplicates']:,} repeated another; {metrics['draw/dropped']:,} comparisons had "
        "fewer than 2 left"
    )
    if "gold_best" in metrics:
        agreement = f"; {metrics['agreement']:.1%} of pairs ranked as gold ranks them" if "agreement" in metrics else ""
        print(f"gold of the best {metrics['gold_best']:.2f}, of the worst {metrics['gold_worst']:.2f}{agreement}")
    parents = {o.partition("=")[0]: o for o in written(HydraConfig.get()) if o.startswith("artifacts.")}
    if "artifacts.sft" in parents:
        parents.setdefault("artifacts.tokenizer", f"artifacts.tokenizer={cfg.reads.tokenizer}")
    given = " ".join(parents[name] for name in ("artifacts.tokenizer", "artifacts.sft") if name in parents)
    print(
        f"train a reward model on it: python train.py stage=rm data=preference {shlex.quote(f'data.path={file}')} "
        f"{common.identity(cfg)} {given}".rstrip(),
        flush=True,
    )
