"""Every stage with what it learns from in one step, cut into micro-batches of unequal weight."""

import torch

from components.data.batches import WithText
from components.generation.rollout import Experience
from components.stages.onpolicy import OnPolicy
from components.stages.pretrain import Pretrain
from components.stages.rm import RewardModel
from components.stages.sft import SFT
from tests.kit.tiny_stages import (
    CONSTANT,
    END,
    PROMPTS,
    Mixed,
    attached,
    causal,
    distill,
    dpo,
    experience_of,
    grpo,
    keeper,
    kto,
    lm_batch,
    ppo,
    preference_batch,
    rejection,
    rloo,
    scalar,
    unpaired_batch,
)

SHARES = (1, 1, 2, 4)  # of eight prompts' responses: unequal, also where every response weighs the same
DOCUMENTS = [([1, 3], [4, 5, 6, 7, 8, 9, 10, END]), ([1], [5, END]), ([1, 2, 3], [11, END]), ([1, 9], [END])]
TIED = ([1, 4], [[5, END], [6, END]], [1.0, 1.0])  # no pair, no weight
RANKINGS = [
    ([1, 3], [[5, END], [6, 6, END], [7, END]], [0.0, 1.0, 2.0]),
    ([1, 8], [[9, END], [10, END]], [1.0, 0.0]),
    TIED,
    ([1, 4, 4], [[11, END], [12, 3, END]], [0.0, 1.0]),
]

LABELED = [
    ([1, 3], [5, 6, 6, END], True, [7, END]),
    ([1, 8], [9, END], False, [5, END]),
    ([1, 8], [10, 3, END], True, [11, END]),
    ([1, 4, 4], [12, 3, END], False, [9, END]),
    ([1, 9], [4, END], True, [3, 3, END]),
    ([1, 9], [13, 5, END], False, [6, END]),
    ([1, 5, 7], [8, 8, END], True, [4, END]),
    ([1], [14, END], False, [8, END]),
]


def language(kind):
    def cut(sizes):
        stage = kind(model=causal, optimizer=keeper(), schedule=CONSTANT)
        parts = torch.arange(4).split(sizes)
        return stage, [lm_batch([DOCUMENTS[i] for i in part], row_length=16) for part in parts]

    return cut


def ranking(sizes):
    stage = RewardModel(model=scalar, optimizer=keeper(), schedule=CONSTANT)
    parts = torch.arange(4).split(sizes)
    return stage, [preference_batch([RANKINGS[i] for i in part], row_length=32) for part in parts]


def preferring(sizes):
    parts = torch.arange(4).split(sizes)
    return dpo(optimizer=keeper()), [preference_batch([RANKINGS[i] for i in part], row_length=32) for part in parts]


def labeling(sizes):
    """Before the first update the reference point is 0 in every micro-batch."""
    shares = [LABELED[0:1], LABELED[1:2], LABELED[2:4], LABELED[4:8]]
    parts = [sum((shares[i] for i in part), []) for part in torch.arange(4).split(sizes)]
    return kto(optimizer=keeper(), undesirable_weight=2.0), [unpaired_batch(part, row_length=32) for part in parts]


def experience(make, **settings):
    """One rollout cut in order; its old log-probabilities are made to differ from the policy's."""

    def cut(sizes):
        source = attached(make(epochs=1, minibatches=1, **settings))
        [whole] = source.collect(PROMPTS, 0)
        noise = torch.randn(whole.mask.shape, generator=torch.Generator().manual_seed(0))
        whole = whole._replace(old_logprobs=whole.old_logprobs + 0.3 * noise * whole.mask)
        fields = {name: tensor for name, tensor in whole.tensors().items() if name in Experience._fields}
        known = experience_of(torch.zeros(len(whole.mask)), **fields)
        each = len(whole.mask) // len(PROMPTS)
        prompts = [prompt["ids"] for prompt in PROMPTS for _ in range(each)]
        items = torch.arange(len(prompts)).split([each * share for share in SHARES])
        parts = []
        for numbers in torch.arange(4).split(sizes):
            rows = torch.cat([items[i] for i in numbers])
            parts += OnPolicy.split(source, [prompts[i] for i in rows], known.select(rows), 0)
        return make(optimizer=keeper(), **settings), parts

    return cut


def distilling(sizes):
    """Eight samples in parts of 1, 1, 2 and 4."""
    source, asked = attached(distill()), [prompt["ids"] for prompt in PROMPTS]
    samples = source.sample(asked, torch.Generator().manual_seed(0))
    items = torch.arange(len(asked)).split(SHARES)
    rows = [torch.cat([items[i] for i in part]) for part in torch.arange(4).split(sizes)]
    parts = [source.packed_rows(PROMPTS, samples.ids, samples.mask, part) for part in rows]
    return distill(optimizer=keeper()), parts


def with_text(sizes):
    """PPO-ptx: the text's share of tokens differs between micro-batches, and from that of the responses."""
    _, parts = experience(ppo)(sizes)
    texts = [lm_batch([DOCUMENTS[i] for i in part], row_length=16) for part in torch.arange(4).split(sizes)]
    weights = torch.stack([torch.stack([p.mask.sum(), t.mask.sum()]) for p, t in zip(parts, texts)]).sum(0)
    mixed = [WithText(part, text, weights) for part, text in zip(parts, texts)]
    return ppo(Mixed, optimizer=keeper(), pretraining_coefficient=27.8), mixed


KINDS = {
    "pretrain": language(Pretrain),
    "sft": language(SFT),
    "rm": ranking,
    "dpo": preferring,
    "kto": labeling,
    "ppo": experience(ppo),
    "ppo_ptx": with_text,
    **{
        variant: experience(grpo, variant=variant, samples_per_prompt=2)
        for variant in ("grpo", "dapo", "dr_grpo", "gspo", "cispo")
    },
    "rloo": experience(rloo, samples_per_prompt=2),
    "rejection": experience(rejection, samples_per_prompt=2),
    "distill": distilling,
}
