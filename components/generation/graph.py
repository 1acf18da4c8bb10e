"""One step of generation: on a GPU a CUDA graph, since launching its kernels one by one takes longer than they run."""

from collections.abc import Callable

import torch
from torch import Tensor

from components.models.attention.kv_cache import KVCache, Steps
from components.models.heads import CausalLM

Step = Callable[[Tensor], Tensor]  # next tokens (B,), added to the cache → logits (B, V), valid until the next step


def step_of(model: CausalLM, cache: KVCache) -> Step:
    """The step function for this cache's current rows; after KVCache.select, call this again."""
    if cache.starts.is_cuda and cache.length < cache.size:
        return _Graphed(model, cache)
    return lambda token: model.next_logits(token[:, None], cache)


class _Graphed:
    def __init__(self, model: CausalLM, cache: KVCache) -> None:
        self.cache, self.steps = cache, Steps(cache)
        self.token = torch.zeros((len(cache.starts), 1), dtype=torch.int64, device=cache.starts.device)
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):  # a warm-up run, in which libraries initialize
            model.next_logits(self.token, self.steps)
        torch.cuda.current_stream().wait_stream(side_stream)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads (such as a data loader's that pins memory) can keep allocating during the capture.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.logits = model.next_logits(self.token, self.steps)

    def __call__(self, token: Tensor) -> Tensor:
        end = self.cache.end_of(1)
        self.steps.column.fill_(self.cache.length)  # not where the warm-up, or KVCache.put or trim, left it
        self.token.copy_(token[:, None])
        self.graph.replay()
        self.cache.length = end
        return self.logits
