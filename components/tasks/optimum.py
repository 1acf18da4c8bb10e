"""The exact optimum of a task that can be enumerated, and how close every method came to it.

What keeps a method from 100% of J* − J(π_ref), where J = E[r] − β·KL(π‖π_ref):

    PPO, RLOO    nothing in principle: J is their objective. In practice an answer that the reference gives once in a
                 hundred can lose its probability before it is sampled often enough, and is then rarely sampled again
    GRPO         divides advantages by their group's standard deviation, which makes β depend on the prompt, and the
                 gradient of k3 on its own samples is that of KL(π_ref‖π), not of KL(π‖π_ref) (with variant=dr_grpo only
                 the second applies)
    GSPO, CISPO  the same two; GSPO's bound on the mean of a response's ratios lets single tokens move further
    best of n    weights answers by their rank among n samples, not by exp(r/β); n fits only the average of all prompts
    distill      has its teacher, PPO's policy, as its minimum, and with it whatever that one misses
    rejection    imitates the best of n: the same tilt, and what supervised learning on a few thousand of them misses
    DPO          has J* as its minimum, but sees only the answers that were compared: the others can gain probability
                 at no loss, and the best answers, being rare, are seldom compared
    KTO          its loss is linear in σ(β(r − z₀)), so its minimum is not π* but all probability on the answers that
                 are desirable more often than not; what stops it near the reference is the length of training. It too
                 sees only the answers that were compared
"""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from components.artifacts import store
from components.data.sources.builtin import make_world
from components.evaluation.report.output import wide_console
from components.evaluation.studies import exact_optimum as exact
from components.evaluation.studies import optimum_card
from components.launch import composing, settings
from components.system import provenance
from components.tasks import common
from components.tasks.placement import Place

NOT_METHODS = ("tokenizer", "reference")


def optimum(cfg: DictConfig) -> None:
    """Enumerates every response of the reference and of each method that `reads` names, and writes optimum.json,
    optimum.md and optimum.png."""
    parents, tokenizer, shape, _ = common.read(cfg, cfg.reads.reference)
    inputs = settings.inputs_of(composing.plain(cfg), parents, "")
    done = optimum_card.read(cfg.paths.stage)
    if done and done["inputs"] == inputs and cfg.force is not True:
        optimum_card.show(done, Path(cfg.paths.stage), wide_console())
        return
    place = Place.of(cfg, shape.hidden_size)
    world = make_world(dict(cfg.world))
    prompts = [
        tokenizer.render_prompt([{"role": "user", "content": question.text}]) for question in world.questions("train")
    ]
    task = exact.Task(
        cfg.stage.beta,
        cfg.stage.max_new_tokens,
        cfg.stage.missing_end_score,
        tokenizer.stop_ids,
        tokenizer.vocab_size,
        tokenizer.unused_ids(tokenizer.vocab_size),
        max(1, cfg.tokens_at_once // (max(map(len, prompts)) + cfg.stage.max_new_tokens)),
    )
    methods = [name for name in cfg.reads if name not in NOT_METHODS]
    models = {
        name: place.to_device(store.load_causal_lm(cfg.reads[name], context=cfg.context))
        for name in ("reference", *methods)
    }
    with place.running():
        results = exact.measure(
            models.pop("reference"),
            models,
            place.to_device(instantiate(cfg.stage.reward)()),
            prompts,
            task,
            progress=lambda line: print(line, flush=True),
        )
    for name in methods:
        seconds = store.read_card(cfg.reads[name]).get("metrics", {}).get("seconds")
        results["methods"][name] |= {} if seconds is None else {"seconds": seconds}
    results |= {
        "run": cfg.run,
        "seed": cfg.seed,
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
        "inputs": inputs,
    }
    optimum_card.write(results, cfg.paths.stage, wide_console())
