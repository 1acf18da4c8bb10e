"""benchmarks/gpu.py: the most important first, nothing lost, and all of it to its end on a processor."""

import importlib
import json
import os
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def module(monkeypatch):
    """Imports a module of benchmarks/ by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def jobs_of(module, *fields: tuple[str, str, int, int]):
    job = module("gpu_jobs").Job
    return [job(part, name, lambda _: {}, seconds, importance) for part, name, seconds, importance in fields]


def test_the_most_important_job_that_fits_is_next_and_a_part_that_used_its_share_waits(module):
    following = module("gpu").following
    jobs = jobs_of(module, ("tests", "a", 10, 2), ("pretrain", "b", 30, 1), ("stages", "c", 20, 1))
    assert following(jobs, Counter(), 100, 10).name == "b"
    assert following(jobs, Counter(), 25, 10).name == "c"  # b takes longer than is left
    assert following(jobs, Counter(pretrain=180), 100, 10).name == "c"  # .3 of 10 minutes
    assert following(jobs[:2], Counter(pretrain=180), 100, 10).name == "b"  # a is less important
    assert following(jobs, Counter(), 5, 10) is None


@pytest.fixture
def measurement(module, tmp_path):
    gpu = module("gpu")
    arguments = ["--out", str(tmp_path / "gpu.json"), "--work", str(tmp_path), "--repeats", "2"]
    return lambda *more: gpu.Measurement(gpu.parser().parse_args([*arguments, *more]))


def test_a_run_that_is_cut_short_keeps_what_it_measured_and_a_resumed_one_measures_the_rest(module, measurement):
    jobs = jobs_of(module, ("pretrain", "a", 1, 1), ("pretrain", "b", 1, 2))
    cut = measurement()

    def child(name, peer, limit):
        if name == "b":
            raise KeyboardInterrupt
        return {"rate": 1.0}, ""

    cut.child = child
    with pytest.raises(KeyboardInterrupt):
        cut.run(jobs)
    assert list(json.loads(cut.out.read_text())["results"]["pretrain"]) == ["a"]
    resumed, asked = measurement("--resume"), []
    resumed.child = lambda name, peer, limit: (asked.append(name), ({"rate": 2.0}, ""))[1]
    resumed.run(jobs)
    assert asked == ["b", "b"]  # twice: --repeats
    kept = json.loads(resumed.out.read_text())["results"]["pretrain"]
    assert [run["rate"] for run in kept["a"]] == [1.0] and [run["rate"] for run in kept["b"]] == [2.0, 2.0]


def test_what_fails_lacks_a_peer_or_no_longer_fits_is_left_out_with_the_reason(module, measurement):
    failing, peer, long = jobs_of(module, ("stages", "a", 1, 1), ("stages", "b", 1, 1), ("tests", "c", 9999, 1))
    one = measurement()
    one.child = lambda name, peer, limit: (None, "Traceback\nValueError: no")
    one.run([failing, peer._replace(peer="trl-1.16.0"), long])
    left_out = json.loads(one.out.read_text())["left_out"]
    assert left_out["stages: a"].endswith("ValueError: no")
    assert left_out["stages: b"] == "needs --wheels with trl-1.16.0"
    assert left_out["tests: c"].startswith("no time left")
    assert "ValueError: no" in module("gpu_tables").measured(one.record)


def test_each_release_of_trl_is_a_peer_with_all_other_wheels(module, tmp_path):
    (tmp_path / "wheels").mkdir()
    for name in ("trl-1.12.0-py3-none-any.whl", "trl-1.16.0-py3-none-any.whl", "dill-0.4-py3-none-any.whl"):
        with zipfile.ZipFile(tmp_path / "wheels" / name, "w") as wheel:
            wheel.writestr(f"{name.split('-')[0]}/__init__.py", "")
    paths = module("gpu").unpacked(str(tmp_path / "wheels"), tmp_path)
    assert set(paths) == {"", "trl-1.12.0", "trl-1.16.0"}
    folders = paths["trl-1.16.0"].split(os.pathsep)
    assert folders[0] == str(tmp_path / "trl-1.16.0") and Path(folders[1], "dill/__init__.py").exists()
    assert not Path(folders[1], "trl").exists()


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNT", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "products"),
        ("void pytorch_flash::flash_fwd_kernel<cutlass::bfloat16_t>", "attention"),
        ("triton_tem_fused_flex_attention_backward_0", "attention"),
        ("triton_poi_fused__to_copy_mul_silu_3", "elementwise"),
        ("triton_red_fused__scaled_dot_product_rms_norm_1", "elementwise"),
        ("void at::native::vectorized_elementwise_kernel<4, exp>", "elementwise"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("Memcpy DtoH (Device -> Pageable)", "copies"),
        ("aten::mm", "products"),
    ],
)
def test_kernels_are_told_apart_by_their_names(module, kernel, kind):
    assert module("breakdown").kind_of(kernel) == kind


def test_the_shares_of_a_step_add_up_with_the_time_in_which_nothing_runs(module):
    spans = [("gemm", 1000, 1400), ("silu", 1300, 1500), ("flash", 1600, 1900), ("silu", 1900, 2000)]  # µs
    found = module("breakdown").shares(spans, steps=2)
    expected = {"products": 0.4, "attention": 0.3, "elementwise": 0.2, "optimizer": 0.0, "copies": 0.0, "idle": 0.1}
    assert found == pytest.approx({**expected, "step_ms": 0.5})


def test_outcomes_of_tests_are_read_from_a_log_that_may_end_anywhere(module):
    plain = "tests/a.py::one PASSED [ 25%]\ntests/a.py::two[x-1] FAILED [ 50%]\ntests/b.py::three SKIPPED (no) [ 75%]\n"
    found = module("gpu_jobs").outcomes(plain + "tests/b.py::four ")
    assert found == {"passed": 1, "failed": 1, "error": 0, "skipped": 1, "names": ["tests/a.py::two[x-1]"]}
    several = "tests/a.py::one \n[gw1] [ 50%] PASSED tests/a.py::one \n[gw0] [100%] ERROR tests/b.py::two \n"
    found = module("gpu_jobs").outcomes(several)
    assert found == {"passed": 1, "failed": 0, "error": 1, "skipped": 0, "names": ["tests/b.py::two"]}


def test_the_peers_model_is_causal_and_has_the_parameters_of_gpt2s_matrices(module):
    torch.manual_seed(0)
    model = module("gpt2").GPT2(vocabulary=11, context=6, layers=2, heads=2, width=8)
    assert sum(p.numel() for p in model.parameters()) == (11 + 6) * 8 + 2 * (12 * 64 + 2 * 8) + 8
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 9, 4]])
    logits = model(ids)
    torch.testing.assert_close(logits[0, :2], logits[1, :2])
    assert not torch.allclose(logits[0, 2:], logits[1, 2:])
    targets = torch.tensor([[2, 3, 4, 5], [2, 9, 4, 5]])
    expected = -logits.log_softmax(-1).gather(2, targets[..., None]).mean()
    torch.testing.assert_close(model(ids, targets), expected)


def test_random_models_have_a_token_for_every_id_and_records_of_exact_lengths(module, tmp_path, monkeypatch):
    random_models = module("random_models")
    monkeypatch.setitem(random_models.SHAPES, "tiny", random_models.shape(700, 1, 8, 16, 2, 1))
    random_models.write_models(tmp_path, "tiny")
    random_models.write_records(tmp_path, prompt=24, answer=12, count=2)
    from components.artifacts.store import load_causal_lm, load_scalar, load_tokenizer

    tokenizer = load_tokenizer(tmp_path / "bench/sft/export")
    assert tokenizer.vocab_size == 700 and not tokenizer.unused_ids(700)
    assert load_causal_lm(tmp_path / "bench/pretrain/export").config.vocab_size == 700
    assert load_scalar(tmp_path / "bench/rm/export").config.vocab_size == 700
    for line in (tmp_path / "preference.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert len(tokenizer.render_prompt(record["prompt"])) == 24
        for answer in (record["chosen"], record["rejected"]):
            assert len(tokenizer.render(record["prompt"] + answer).ids) == 24 + 12


def test_the_readme_shows_what_the_roofline_predicts(module):
    assert module("gpu_tables").predicted() in (ROOT / "benchmarks/README.md").read_text()


@pytest.mark.slow(minutes=2)
def test_a_rehearsal_runs_to_its_end_on_a_processor(tmp_path):
    """Without pretraining, which the breakdown trains too, and without the GPU's tests, which would all be skipped."""
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--tiny", "--repeats", "1", "--minutes", "60"]
    command += ["--parts", "generation,stages,breakdown"]
    done = subprocess.run([*command, "--work", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["rehearsal"]
    left_out = set(record["left_out"].values())
    assert left_out == {"needs --wheels with trl-1.16.0", "needs --wheels with trl-1.12.0"}, record["left_out"]
    assert {part: len(names) for part, names in record["results"].items()} == {
        "generation": 2,
        "stages": 4,
        "breakdown": 2,
    }
