"""Memory by part, worked out by hand."""

from components.models.activations import activations_of
from components.models.config import GPTConfig
from components.planning.device_memory import memory_of
from components.planning.work import Network, Rollouts, Work

SHAPE = GPTConfig(
    vocab_size=10,
    hidden_size=4,
    intermediate_size=6,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=5,
)
LAYER, OUTSIDE = 128, 40 + 40 + 4  # parameters: see test_flops; embedding, head and last norm
ALL = 3 * LAYER + OUTSIDE
COPIES = 2 * (LAYER - 8)  # in bf16: of a layer's matrices, without its two norms
HEAD = 2 * 4 * 40  # the gradient of the output matrix, and what is added to it
WORK = Work("sft", (Network("model", SHAPE),), tokens=100.0, steps=1, at_once=10, batch=2)
PLENTY = 1e9


def test_states_are_sixteen_bytes_per_parameter_and_activations_those_of_the_model():
    memory = memory_of(WORK, PLENTY)
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * ALL, 4 * ALL, 8 * ALL)
    assert memory.activations == activations_of(SHAPE, 10, width=2, lean=False).kept + 3 * COPIES
    assert memory.logits == 12 * 10 * 10 + HEAD and memory_of(WORK, PLENTY, chunk=60).logits == 12 * 60 + HEAD
    assert memory.total == 16 * ALL + memory.activations + memory.logits
    assert memory_of(WORK._replace(compiled=True), PLENTY).activations == memory.activations - 3 * COPIES
    assert memory_of(WORK._replace(states=2.0), PLENTY).optimizer == 2 * ALL


def test_layers_are_recomputed_if_that_is_set_or_if_they_would_not_fit():
    kept, recomputed = activations_of(SHAPE, 10, width=2, lean=False)
    assert recomputed < kept
    less = memory_of(WORK._replace(recompute=True), PLENTY)
    assert less.activations == recomputed + COPIES
    assert less.left == 4 * 4 * 10 * (3 + 2)  # float32 residual streams: of the layers, the embedding, the last norm
    need = memory_of(WORK, PLENTY).total
    assert not memory_of(WORK, need / 0.89).recomputed and memory_of(WORK, need / 0.91).recomputed
    assert not memory_of(WORK._replace(recompute=False), need / 0.91).fits(need / 0.91)


def test_sharding_divides_the_states_and_gathers_two_layers_and_what_is_outside():
    memory = memory_of(WORK._replace(devices=4, strategy="fsdp"), PLENTY)
    assert memory.states == 16 * ALL / 4
    assert memory.gathered == 4 * (2 * LAYER + OUTSIDE) and memory.reducing == 4 * 2 * LAYER
    hybrid = memory_of(WORK._replace(devices=8, strategy="fsdp", replicas=2), PLENTY)
    assert hybrid == memory
    assert memory_of(WORK._replace(devices=4, strategy="ddp"), PLENTY).states == 16 * ALL


def test_sampling_needs_a_cache_and_a_copy_of_the_policy_but_not_while_it_is_updated():
    """6 responses, 3 at a time: keys and values of 3 layers, one head of width 2, 5 + 7 tokens, in bf16."""
    rollouts = Rollouts(1, prompts=6, samples_per_prompt=1, prompt=5, response=7, epochs=1, minibatches=1, width=3)
    networks = (Network("policy", SHAPE), Network("reference", SHAPE, trained=False))
    memory = memory_of(WORK._replace(networks=networks, rollouts=rollouts), PLENTY)
    assert memory.cache == 2 * 3 * 2 * 2 * 3 * (5 + 7) and memory.sampler == 2 * ALL
    on_cpu = memory_of(WORK._replace(networks=networks, rollouts=rollouts, on_cpu=True), PLENTY)
    assert on_cpu.cache == 2 * memory.cache  # in float32 there, whatever the products' precision
    assert memory.weights == 2 * 4 * ALL and memory.gradients == 4 * ALL
    update = memory.activations + memory.logits
    assert memory.total == memory.states + max(update, memory.cache + memory.sampler)
    sharded = memory_of(WORK._replace(networks=networks, rollouts=rollouts, devices=4, strategy="fsdp"), PLENTY)
    assert sharded.gathered_to_sample == 2 * 4 * ALL * 3 / 4  # to sample, every device holds all weights
