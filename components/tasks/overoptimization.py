"""Over-optimization: PPO runs at several β and best-of-n, gold and proxy against √KL, and which β to take."""

import logging
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from components.artifacts import store
from components.artifacts.store import ArtifactError
from components.data.sources.builtin import make_world
from components.evaluation.measure.assessment import Assessed, Judges, assess
from components.evaluation.measure.policy import SamplePlan, respond
from components.evaluation.report.curves import read_curves
from components.evaluation.studies import overoptimization_curves as analysis
from components.evaluation.studies import overoptimization_plots
from components.launch import composing, settings
from components.system.disk import read_json_if_any, write_json
from components.tasks import common
from components.tasks.placement import Place, check_room

log = logging.getLogger(__name__)
DATA, PICTURE = "overoptimization.json", "overoptimization.png"


def overoptimization(cfg: DictConfig) -> None:
    """Reads the curves of the PPO runs below stage.runs, samples the first policy for best-of-n, and writes
    overoptimization.json (see overoptimization_curves.analyze) and its picture."""
    parents, tokenizer, shape, for_data = common.read(cfg, cfg.reads.sft)
    runs = ppo_runs(cfg.stage.runs, parents["reward"]["content"])
    data = instantiate(cfg.data, **for_data)
    check_room(cfg, data, "stage.max_new_tokens")
    inputs = settings.inputs_of(composing.plain(cfg), parents, data.fingerprint())
    inputs |= {f"ppo {beta:g}": card["content"] for beta, (_, card) in runs.items()}
    folder = Path(cfg.paths.stage)
    results = read_json_if_any(folder / DATA)
    if results is None or results["inputs"] != inputs or cfg.force is True:
        curves = read_curves({f"{beta:g}": run_folder for beta, (run_folder, _) in runs.items()})
        samples = analysis.best_of_n_curve(_samples(cfg, data, tokenizer, Place.of(cfg, shape.hidden_size)))
        results = analysis.analyze({beta: curves.get(f"{beta:g}", {}) for beta in runs}, samples)
        overoptimization_plots.draw(results).savefig(folder / PICTURE, dpi=144, facecolor="white")
        write_json(folder / DATA, {**results, "seed": cfg.seed, "inputs": inputs})
    _show(results, folder)


def ppo_runs(folder: str, reward: str) -> dict[float, tuple[Path, dict[str, Any]]]:
    """{beta: (folder, card)} of finished PPO runs in the subfolders of `folder` and `folder`-sweep, by increasing beta.

    reward: content hash of the reward model in question. A run trained against another one is left out with a warning,
    since its score is another proxy. Raises ArtifactError if no run is left, or if two have the same beta.
    """
    runs: dict[float, tuple[Path, dict[str, Any]]] = {}
    for export in sorted([*Path(folder).glob("*/export"), *Path(f"{folder}-sweep").glob("*/export")]):
        card = store.read_card(export)
        if card.get("stage") != "ppo":
            continue
        beta = float(card["inputs"]["stage.beta"])
        if card["parents"]["reward"]["content"] != reward:
            log.warning(f"{export.parent} is left out: it was trained against a reward model other than artifacts.rm")
            continue
        if beta in runs:
            raise ArtifactError(f"{export} and {runs[beta][0]} both have beta {beta:g}; remove one of them")
        runs[beta] = (export.parent, card)
    if not runs:
        raise ArtifactError(
            f"no PPO run against this reward model below {folder}; expected, for instance, {folder}/beta=0. "
            "Make it with: python train.py experiment=overoptimization"
        )
    return dict(sorted(runs.items()))


def _samples(cfg: DictConfig, data: Any, tokenizer: Any, place: Place) -> Assessed:
    """Responses of the policy that PPO starts from, to the prompts that it trains on."""
    data.prepare_data()
    data.setup()
    prompts = list(data.train_examples)[: cfg.stage.max_prompts]
    policy = place.to_device(store.load_causal_lm(cfg.reads.sft, context=cfg.context))
    reward = place.to_device(store.load_scalar(cfg.reads.reward, context=cfg.context))
    plan = SamplePlan(cfg.stage.samples_per_prompt, cfg.stage.max_new_tokens, cfg.seed, cfg.tokens_at_once)
    with place.running():
        responses = respond(policy, tokenizer, [list(prompt["ids"]) for prompt in prompts], plan)
        judges = Judges(tokenizer, make_world(dict(cfg.world)), reward, tokens_at_once=cfg.tokens_at_once)
        return assess(responses, prompts, judges)


def _show(results: dict[str, Any], folder: Path) -> None:
    for run in results["runs"].values():
        turning, final = run["turning"], run["final"]
        turned = f"turns at √KL {turning['sqrt_kl']:.2f}" if turning["turned"] else "does not turn"
        print(
            f"β {run['beta']:<5g} gold {run['curve']['gold'][0]:.2f} → peak {turning['gold']:.2f} → "
            f"{final['gold']:.2f} at KL {final['kl']:.1f}, proxy {final['proxy']:.2f}; {turned}"
        )
    best = results["recommended"]
    print(f"recommended β {best['beta']:g}: ends at gold {best['gold']:.2f}. Picture: {folder / PICTURE}", flush=True)
