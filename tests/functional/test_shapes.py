"""Sizes of products."""

import pytest
import torch

from components.functional.shapes import rows_of_product

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("count", "rows"), [(0, 0), (1, 16), (16, 16), (17, 32), (128, 128), (343, 352), (1000, 1024), (1025, 1152)]
)
def test_products_in_bf16_on_a_cpu_have_few_sizes(count, rows):
    assert rows_of_product(count, CPU, torch.bfloat16) == rows_of_product(count, CPU, torch.float16) == rows
    assert rows_of_product(count, CPU, torch.float32) == count
    assert rows_of_product(count, torch.device("cuda"), torch.bfloat16) == count
