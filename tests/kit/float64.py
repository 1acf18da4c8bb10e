"""Known answers are compared in float64, to 1e-8."""

import torch


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def close(got, expected, atol=1e-8):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


def all_true(x):
    return torch.ones_like(x, dtype=torch.bool)
