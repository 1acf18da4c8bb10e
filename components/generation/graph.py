"""The step of generation: on a GPU one CUDA graph, since launching its kernels one by one takes longer than they."""

from collections.abc import Callable

import torch
from torch import Tensor

from components.models.attention.kv_cache import KVCache, Steps
from components.models.heads import CausalLM

Step = Callable[[Tensor], Tensor]  # tokens (B,) that continue the cache's → logits (B, V), valid until the next step


def step_of(model: CausalLM, cache: KVCache) -> Step:
    """The next steps of this cache as it is now; after KVCache.select another one is due."""
    if cache.starts.is_cuda and cache.length < cache.size:
        return _Graphed(model, cache)
    return lambda token: model.next_logits(token[:, None], cache)


class _Graphed:
    def __init__(self, model: CausalLM, cache: KVCache) -> None:
        self.cache, self.steps = cache, Steps(cache)
        self.token = torch.zeros((len(cache.starts), 1), dtype=torch.int64, device=cache.starts.device)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries set themselves up in a first run
            model.next_logits(self.token, self.steps)
        torch.cuda.current_stream().wait_stream(aside)
        self.steps.place.fill_(cache.length)  # what the first run wrote there is written over
        self.graph = torch.cuda.CUDAGraph()
        # other threads (of a data loader that pins memory) may go on asking the driver for memory meanwhile
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.logits = model.next_logits(self.token, self.steps)

    def __call__(self, token: Tensor) -> Tensor:
        end = self.cache.end_of(1)
        self.token.copy_(token[:, None])
        self.graph.replay()
        self.cache.length = end
        return self.logits
