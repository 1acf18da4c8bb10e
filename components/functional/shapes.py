"""Checks of arguments' shapes and dtypes, and the sizes of products."""

import torch
from torch import Tensor


def same_shape(function: str, **tensors: Tensor) -> None:
    """Raises ValueError, naming every argument and its shape, unless all tensors have the same shape."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{function}: expected tensors of the same shape, got {got}")


def same_shape_as_mask(function: str, mask: Tensor, **tensors: Tensor) -> None:
    """Raises ValueError unless the mask is bool and all tensors have its shape."""
    if mask.dtype != torch.bool:
        raise ValueError(f"{function}: expected a bool mask, True where a value counts, got {mask.dtype}")
    same_shape(function, mask=mask, **tensors)


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or unchanged if it is float64: bfloat16 shifts log-probabilities by 4e-3."""
    return x if x.dtype == torch.float64 else x.float()


def dtype_of_products(weight: Tensor) -> torch.dtype:
    """The dtype in which a matrix is multiplied: autocast's, if it is on, else its own."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def rows_of_product(count: int, device: torch.device, dtype: torch.dtype) -> int:
    """How many rows a product of `count` rows should have: on a CPU, in bf16 or float16, up to an eighth more.

    There oneDNN compiles a kernel for every shape, in 4 to 8 ms, and keeps it, in 1 MB. So the number is rounded up to
    a multiple of an eighth of the power of two below it, or of 16 if that is more.
    """
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return count
    step = max(2 ** (count.bit_length() - 4), 16) if count else 1
    return -(-count // step) * step
