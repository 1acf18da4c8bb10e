"""In which dtype models are loaded, and what running out of memory says."""

import json

import pytest
import torch

from components.artifacts.peft import CONFIG
from components.serving.loading import dtype_of, enough_memory


@pytest.mark.parametrize(
    ("fields", "on_cuda"),
    [
        ({}, "float32"),
        ({"torch_dtype": "float32"}, "float32"),
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "float16"}, "bfloat16"),
    ],
)
def test_auto_is_float32_except_on_cuda_where_it_is_the_folders_own(fields, on_cuda, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert dtype_of(tmp_path, "auto", "cpu") == dtype_of(tmp_path, "auto", "mps") == "float32"
    assert dtype_of(tmp_path, "auto", "cuda:1") == on_cuda
    for asked in ("float32", "bfloat16"):
        assert dtype_of(tmp_path, asked, "cuda") == dtype_of(tmp_path, asked, "cpu") == asked


def test_adapters_are_loaded_in_the_dtype_of_their_base(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text('{"torch_dtype": "bfloat16"}')
    (tmp_path / CONFIG).write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base")}))
    assert dtype_of(tmp_path, "auto", "cuda") == "bfloat16"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_says_what_to_try(error):
    with pytest.raises(ValueError) as raised, enough_memory("x/export", "cuda", "auto"):
        raise error
    message = str(raised.value)
    assert "out of memory on cuda: x/export. Try" in message
    assert "--dtype bfloat16" in message and "--device cpu" in message


def test_what_was_tried_already_is_not_suggested_and_other_errors_stay():
    with pytest.raises(ValueError) as raised, enough_memory("x", "cpu", "bfloat16"):
        raise MemoryError
    assert "--dtype" not in str(raised.value) and "--device" not in str(raised.value)
    with pytest.raises(RuntimeError, match="shapes"), enough_memory("x", "cpu", "float32"):
        raise RuntimeError("shapes differ")
