"""The evaluation of models by reward functions, on held-out prompts: stage=eval reward=function."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from components.artifacts import store
from components.evaluation.measure.function_scores import function_scores
from components.evaluation.measure.policy import SamplePlan
from components.evaluation.report import output, plots_rewards, plots_techniques
from components.evaluation.report.card import Table, number, percent, short, with_interval
from components.evaluation.report.curves import read_curves
from components.evaluation.report.technique_rows import Figures, table_of
from components.evaluation.seeds.seeds_tables import fitting
from components.functional.evenly import evenly
from components.launch import composing, settings
from components.system import provenance
from components.system.disk import read_json_if_any, write_json
from components.tasks import common, reward_functions, technique_scores
from components.tasks.placement import Place

RESULTS, PICTURE, TECHNIQUES = "rewards.json", "rewards.png", "techniques.png"
REFERENCE = "sft"  # the name in `reads` of the model that the KL is measured to


def measure(cfg: DictConfig) -> None:
    """Scores responses of every model that the stage reads, sampled and greedy, by the functions of stage.reward;
    prints tables and writes rewards.json and, if there are curves of rollouts, rewards.png. With stage.techniques also
    what each of these scores, in a table and techniques.png. The prompts are the held-out ones, or all with
    data.val_fraction=0."""
    parents, tokenizer, _, for_data = common.read(cfg, cfg.reads.tokenizer)
    data = instantiate(cfg.data, **for_data)
    parents |= technique_scores.scorers_of(cfg)
    inputs = settings.inputs_of(composing.plain(cfg), parents, data.fingerprint())
    folder = Path(cfg.paths.stage)
    results = read_json_if_any(folder / RESULTS)
    if not results or results.get("inputs") != inputs or cfg.force is True:
        reward_functions.try_on(cfg, data)
        results = {
            "models": _models(cfg, data, tokenizer),
            "curves": _curves(cfg.reads),
            "minutes": _minutes(cfg.reads),
            "commit": provenance.commit(),
            "hardware": provenance.hardware(),
            "inputs": inputs,
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RESULTS, results)
    picture = plots_rewards.draw(results.get("curves", {}))
    if picture is not None:
        picture.savefig(folder / PICTURE, dpi=144, facecolor="white", metadata={"Software": None})
    console = output.wide_console()
    for title in ("sampled", "greedy"):
        for part in fitting(_table(title, results["models"]), console.width):
            console.print(output.rich_table(part))
    drawn = "" if picture is None else f"\npicture    {folder / PICTURE}"
    techniques = {name: one["techniques"] for name, one in results["models"].items() if one.get("techniques")}
    if techniques:
        for part in fitting(_techniques_table(techniques, results["models"]), console.width):
            console.print(output.rich_table(part))
        shown = plots_techniques.draw(techniques)
        shown.savefig(folder / TECHNIQUES, dpi=144, facecolor="white", metadata={"Software": None})
        drawn += f"\npicture    {folder / TECHNIQUES}"
    console.print(f"results    {folder / RESULTS}{drawn}", markup=False, highlight=False, soft_wrap=True)


def _models(cfg: DictConfig, data: Any, tokenizer: Any) -> dict[str, Any]:
    """By the model's name in `reads`, what `function_scores` returns."""
    prompts = evenly(data.val_examples if data.val_fraction else data.train_examples, cfg.stage.max_prompts)
    if not prompts:
        raise ValueError("no prompt is held out. Add prompts, or measure on all of them: data.val_fraction=0")
    plan = SamplePlan(cfg.stage.samples_per_prompt, cfg.stage.max_new_tokens, cfg.seed, cfg.tokens_at_once)
    reward, found = instantiate(cfg.stage.reward)(), {}
    place = Place.of(cfg, store.load_config(cfg.reads.tokenizer, context=cfg.context)[0].hidden_size)
    reference = _loaded(cfg, place, cfg.reads[REFERENCE]) if REFERENCE in cfg.reads else None
    try:
        for name, path in cfg.reads.items():
            if name != "tokenizer":
                model: Any = reference if name == REFERENCE else _loaded(cfg, place, path)
                compared = None if name == REFERENCE else reference
                with place.running():
                    found[name] = function_scores(model, tokenizer, prompts, reward, plan, compared)
                if cfg.stage.techniques:
                    found[name]["techniques"] = technique_scores.of_model(cfg, model, tokenizer, prompts, reward, place)
    finally:
        reward.close()
    return found


def _loaded(cfg: DictConfig, place: Place, path: str) -> Any:
    return place.to_device(store.load_causal_lm(path, context=cfg.context))


def _curves(reads: Mapping[str, str]) -> dict[str, Any]:
    """By the model's name, the curves of its rollouts, if it had any: {tag: {"steps", "values"}}."""
    folders = {name: Path(path).parent for name, path in reads.items() if name != "tokenizer"}
    return {
        name: {tag: curve._asdict() for tag, curve in curves.items() if tag in plots_rewards.TITLES}
        for name, curves in read_curves(folders).items()
        if plots_rewards.SCORE in curves
    }


def _minutes(reads: Mapping[str, str]) -> dict[str, float]:
    """What making each model of this program took, by its name."""
    seconds = {name: store.read_card(path).get("metrics", {}).get("seconds") for name, path in reads.items()}
    return {name: value / 60 for name, value in seconds.items() if name != "tokenizer" and value is not None}


def _table(title: str, models: dict[str, Any]) -> Table:
    """A row for each model, a column for each function and, of one that says right or wrong, its best k."""
    first = next(iter(models.values()))
    names = list(first[title]["parts"])
    columns = ["model", "score", *names] if len(names) > 1 else ["model", names[0]]
    rows = []
    for name, figures in models.items():
        own = figures[title]
        cells = [with_interval(own["score"], own["score_ci"])] if len(names) > 1 else []
        cells += [with_interval(part["mean"], part["ci"]) if part else "–" for part in own["parts"].values()]
        by_k = [
            f"{percent(part[kind]['share'][-1])}" if part and kind in part else "–"
            for kind in ("pass", "majority")
            for part in own["parts"].values()
        ]
        behavior = figures.get("behavior", {})
        more = [*by_k, number(behavior.get("entropy")), number(behavior.get("kl"))] if title == "sampled" else []
        rows.append([name, *cells, *more, percent(own["finished"]), short(own["length"])])
    votes = [f"{kind}@k {name}" for kind in ("pass", "majority") for name in names] if title == "sampled" else []
    note = f"means over {first['prompts']} prompts, 95% intervals over prompts"
    if title == "sampled":
        votes += ["entropy", f"KL to {REFERENCE}"]
        note += f"; {first['samples']} samples each at temperature 1; k is the largest power of two, "
        note += "entropy in nats per token, KL in nats per response"
    return Table(title, [*columns, *votes, "ends by itself", "tokens"], rows, note)


def _techniques_table(models: Mapping[str, Any], measured: Mapping[str, Any]) -> Table:
    """A row for each model, task and technique."""

    def cells(one: Figures) -> list[str]:
        said = [with_interval(one.get(key), one.get(f"{key}_ci")) for key in ("score", "gain")]
        return [*said, short(one["read"]), short(one["sampled"])]

    prompts = next(iter(measured.values()))["prompts"]
    note = f"one answer to each of {prompts} prompts; 95% intervals over prompts, of gains over the same prompts; "
    note += "tokens per prompt, of all that was computed"
    return table_of(models, ("techniques", "model"), note, cells)
