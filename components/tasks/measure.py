"""The evaluation of models by reward functions, on held-out prompts: stage=eval reward=function."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from components.artifacts import lineage, store
from components.evaluation.measure.function_scores import function_scores
from components.evaluation.measure.policy import SamplePlan
from components.evaluation.report import output
from components.evaluation.report.card import Table, percent, short, with_interval
from components.launch import settings
from components.system import provenance
from components.system.disk import read_json_if_any, write_json
from components.tasks import command_line, common, reward_functions
from components.tasks.placement import Place

RESULTS = "rewards.json"


def measure(cfg: DictConfig) -> None:
    """Scores responses of every model that the stage reads, sampled and greedy, by the functions of stage.reward;
    prints tables and writes rewards.json. The prompts are the held-out ones, or all with data.val_fraction=0."""
    parents = lineage.require(dict(cfg.reads), command_line.expected_artifacts(cfg), common.identity(cfg))
    tokenizer = common.common_tokenizer(cfg)
    shape, _ = store.load_config(cfg.reads.tokenizer, context=cfg.context)
    data = instantiate(cfg.data, tokenizer=tokenizer, context=shape.longest, **common.surroundings(cfg))
    inputs = settings.inputs_of(common.plain(cfg), parents, data.fingerprint())
    folder = Path(cfg.paths.stage)
    results = read_json_if_any(folder / RESULTS)
    if not results or results.get("inputs") != inputs or cfg.force is True:
        reward_functions.try_on(cfg, data)
        results = {"models": _models(cfg, data, tokenizer), "commit": provenance.commit(), "inputs": inputs}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RESULTS, results)
    console = output.wide_console()
    for title in ("sampled", "greedy"):
        console.print(output.rich_table(_table(title, results["models"])))
    console.print(f"results    {folder / RESULTS}", markup=False, highlight=False, soft_wrap=True)


def _models(cfg: DictConfig, data: Any, tokenizer: Any) -> dict[str, Any]:
    """By the model's name in `reads`, what `function_scores` returns."""
    prompts = list(data.val_examples if data.val_fraction else data.train_examples)[: cfg.stage.max_prompts]
    if not prompts:
        raise ValueError("no prompt is held out. Add prompts, or measure on all of them: data.val_fraction=0")
    plan = SamplePlan(cfg.stage.samples_per_prompt, cfg.stage.max_new_tokens, cfg.seed, cfg.tokens_at_once)
    reward, found = instantiate(cfg.stage.reward)(), {}
    try:
        for name, path in cfg.reads.items():
            if name != "tokenizer":
                model = store.load_causal_lm(path, context=cfg.context)
                place = Place.of(cfg, model.config.hidden_size)
                with place.running():
                    found[name] = function_scores(place.to_device(model), tokenizer, prompts, reward, plan)
    finally:
        reward.close()
    return found


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
        rows.append(
            [name, *cells, *(by_k if title == "sampled" else []), percent(own["finished"]), short(own["length"])]
        )
    votes = [f"{kind}@k {name}" for kind in ("pass", "majority") for name in names] if title == "sampled" else []
    note = f"means over {first['prompts']} prompts, 95% intervals over prompts"
    note += f"; {first['samples']} samples each at temperature 1; k is the largest power of two" if votes else ""
    return Table(title, [*columns, *votes, "ends by itself", "tokens"], rows, note)
