"""The work of a stage: its networks, what they read and sample, and its floating-point operations."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from components.models.config import GPTConfig
from components.models.flops import NO_RANKS, Flops, flops_per_token

BASE_BYTES = {None: 4.0, "int8": 1.0, "nf4": 0.5}  # per weight of a frozen projection, by lora.base


class Network(NamedTuple):
    """A model of a stage.

    ranks: of its adapters by the projection's name; with any, only they and the head of a model of scores are trained.
    own_trunk: False if another network of the stage has the trunk in memory already. reads: whether a frozen network
    reads all that is trained on (a reference of DPO, a teacher); any network reads what is sampled. base: how frozen
    projections are stored. bytes_per_weight: of the other weights.
    """

    name: str
    config: GPTConfig
    head: str = "lm_head"
    trained: bool = True
    ranks: Mapping[str, int] = NO_RANKS
    own_trunk: bool = True
    reads: bool = False
    base: Literal["int8", "nf4"] | None = None
    bytes_per_weight: float = 4.0

    @property
    def parameters(self) -> int:
        """Parameters of the model, adapters included."""
        return self.config.num_parameters(self.head) + self.adapters

    @property
    def adapters(self) -> int:
        """Parameters of the adapters."""
        shapes = self.config.projections()
        return self.config.num_hidden_layers * sum(rank * sum(shapes[name]) for name, rank in self.ranks.items())

    @property
    def trained_parameters(self) -> int:
        if not self.trained or not self.ranks:
            return self.parameters if self.trained else 0
        return self.adapters + (self.config.hidden_size + 1 if self.head == "score" else 0)

    @property
    def weight_bytes(self) -> float:
        """Bytes of its weights in memory, without those of a trunk that it shares."""
        projections = self.config.num_hidden_layers * sum(
            out * into for out, into in self.config.projections().values()
        )
        own = self.parameters if self.own_trunk else self.adapters + self.config.hidden_size * (self.head == "score")
        stored = projections * (BASE_BYTES[self.base] - BASE_BYTES[None]) if self.own_trunk and self.base else 0.0
        return self.bytes_per_weight * own + stored

    def flops(self, context: int) -> Flops:
        """FLOPs of one token that attends to `context` tokens."""
        score = ("score.weight", "score.bias")

        def trained(name: str) -> bool:
            return self.trained and (not self.ranks or "lora_" in name or name in score)

        return flops_per_token(self.config, context, trained=trained, ranks=self.ranks, head=self.head)


class Rollouts(NamedTuple):
    """Sampling of an on-policy stage. number: rollouts in all. prompts: per device and rollout. prompt, response:
    tokens of one; of the longest if the data do not say. width: responses sampled together; None: all. kept: responses
    to each prompt that are trained on; None: all."""

    number: float
    prompts: int
    samples_per_prompt: int
    prompt: int
    response: int
    epochs: int
    minibatches: int
    width: int | None = None
    kept: int | None = None

    @property
    def responses(self) -> int:
        """Responses per device and rollout."""
        return self.prompts * self.samples_per_prompt

    @property
    def rows(self) -> int:
        """Responses that a device samples together."""
        return min(self.width or self.responses, self.responses)

    @property
    def read(self) -> int:
        """Tokens that a network reads per device and rollout: each prompt once, and the responses."""
        return self.prompts * self.prompt + self.responses * self.response

    @property
    def trained_each(self) -> int:
        """Responses to each prompt that are trained on."""
        return self.kept or self.samples_per_prompt

    @property
    def trained_on(self) -> float:
        """Tokens of one device's rollout that its updates read, in all epochs."""
        return self._in_epoch(shuffled=False) + (self.epochs - 1) * self._in_epoch(shuffled=True)

    @property
    def in_minibatch(self) -> float:
        """Tokens of a minibatch, in the epochs that read the most."""
        return self._in_epoch(shuffled=self.epochs > 1) / self.minibatches

    def _in_epoch(self, *, shuffled: bool) -> float:
        """Tokens that an epoch reads. A minibatch reads a prompt once for all its responses, which are in one minibatch
        in the first epoch, and shuffled among all in the others."""
        each, parts = self.trained_each, self.minibatches
        times = parts * (1 - (1 - 1 / parts) ** each) if shuffled else 1.0
        return self.prompts * (times * self.prompt + each * self.response)


class Work(NamedTuple):
    """A stage's training.

    tokens: trained on by all devices, counted again in every epoch. steps: of the optimizer. at_once: tokens that a
    device reads together; batch: the number of rows, records or responses that they make up. accumulation: the number
    of micro-batches of a step. replicas: of the weights with strategy fsdp, each sharded. recompute:
    gradient_checkpointing. mixed: products in bf16. compiled: whether layers are. on_cpu: whether the devices are CPUs.
    lean: as in models.activations.
    states: bytes of the optimizer's state per trained weight. algebra: how the batch is made up, in words.
    """

    entry: str
    networks: tuple[Network, ...]
    tokens: float
    steps: float
    at_once: int
    batch: int
    accumulation: int = 1
    devices: int = 1
    strategy: Literal["one", "ddp", "fsdp"] = "one"
    replicas: int = 1
    recompute: bool | Literal["auto"] = "auto"
    mixed: bool = True
    compiled: bool = False
    on_cpu: bool = False
    lean: bool = False
    states: float = 8.0
    rollouts: Rollouts | None = None
    algebra: tuple[str, ...] = ()

    @property
    def shards(self) -> int:
        """Devices over which weights are sharded."""
        return self.devices // self.replicas if self.strategy == "fsdp" else 1

    @property
    def trained(self) -> tuple[Network, ...]:
        """The networks that are trained."""
        return tuple(network for network in self.networks if network.trained)

    @property
    def model(self) -> Network:
        """The network that the stage is about."""
        return self.trained[0]


class Operations(NamedTuple):
    """FLOPs of a stage, over all devices. training: forward and backward passes, those of frozen networks
    included; attention: the part of it that grows with the context; sampling, assessing: of rollouts. recomputation: in
    addition, since it is not counted as the model's work."""

    training: float
    attention: float
    sampling: float
    assessing: float
    recomputation: float

    @property
    def total(self) -> float:
        """All but recomputation."""
        return self.training + self.sampling + self.assessing


def operations_of(work: Work) -> Operations:
    """FLOPs as `Stage.flops_per_token` and `RolloutStage.count_spent` count them: every token sees the longest
    sequence. recomputation is that of gradient_checkpointing=true, whether or not it is used."""

    def passes(*, attention: bool) -> float:
        """FLOPs of training on one token."""
        total = 0
        for network in work.networks:
            flops = network.flops(network.config.longest if attention else 0)
            total += flops.training if network.trained else flops.forward * network.reads
        return float(total)

    def forward(network: Network) -> int:
        return network.flops(network.config.longest).forward

    training = work.tokens * passes(attention=True)
    heads = {
        net.name: 2 * (net.config.vocab_size if net.head == "lm_head" else 1) * net.config.hidden_size
        for net in work.trained
    }
    again = work.tokens * sum(forward(network) - heads[network.name] for network in work.trained)
    read = work.rollouts.number * work.rollouts.read * work.devices if work.rollouts else 0.0
    return Operations(
        training,
        training - work.tokens * passes(attention=False),
        read * forward(work.model),
        read * sum(map(forward, work.networks)),
        again,
    )
