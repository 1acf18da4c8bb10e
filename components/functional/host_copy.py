"""Reading numbers of a device later, so that the host never waits for work that it has just launched."""

import torch
from torch import Tensor


class HostCopy:
    """A copy of a tensor on the CPU, made in the background if the tensor is on an accelerator."""

    def __init__(self, tensor: Tensor) -> None:
        self._value = tensor.detach().to("cpu", non_blocking=True)  # from CUDA, into pinned memory
        self._arrived: torch.Event | None = None
        if tensor.device.type != "cpu":
            self._arrived = torch.Event(tensor.device)
            self._arrived.record()

    def read(self) -> Tensor:
        """The copy; waits for what was launched before it was made, not for what came after."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._value
