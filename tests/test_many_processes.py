"""train.py in several processes from the outside: Lightning, torchrun and srun (by its variables) start them."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.artifacts import store
from components.launch.composing import compose_config
from components.launch.exit_codes import exit_codes
from components.tokenizer.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
PYTHON = [sys.executable, str(ROOT / "train.py")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", PYTHON[1]]
SRUN = {
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "1",
    "SLURM_NODEID": "0",
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "gradus",
    "SLURM_NODELIST": "127.0.0.1",
    "SLURM_STEP_NUM_TASKS": "2",
}
TINY = [
    "model.hidden_size=32",
    "model.intermediate_size=48",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=2",
    "stage=pretrain",
    "data=text",
    "data.path=corpus.txt",
    "data.batch_size=2",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_steps=4",
    "artifacts.tokenizer=tokenizer",
]
CRASH = """
from lightning import Callback

class Crash(Callback):
    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == self.rank and trainer.global_step == 2:
            open("crashed", "w").close()
            raise IndexError(f"process {self.rank} has had enough")
"""


@pytest.fixture
def place(tmp_path: Path, small_tokenizer: Tokenizer) -> Path:
    """A folder with a tokenizer and a text, from which runs are started."""
    store.write_artifact(tmp_path / "tokenizer", card={"stage": "tokenizer"}, tokenizer=small_tokenizer)
    (tmp_path / "corpus.txt").write_text("\n\n".join(f"the cat number {i} sat on the mat ." for i in range(200)))
    (tmp_path / "crasher.py").write_text(CRASH)
    return tmp_path


def start(place: Path, command: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=place,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(place), **environment},
    )


def end(process: subprocess.Popen[str], seconds: float = 600) -> tuple[int, str]:
    """Exit status and what was printed."""
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        raise AssertionError(f"did not end: {said}") from None
    return process.returncode, said


def by_lightning(place: Path, *arguments: str) -> tuple[int, str]:
    return end(start(place, [*PYTHON, *arguments, "trainer.devices=2"]))


def by_torchrun(place: Path, *arguments: str) -> tuple[int, str]:
    return end(start(place, [*TORCHRUN, *arguments]))


def by_srun(place: Path, *arguments: str) -> tuple[int, str]:
    tasks = [start(place, [*PYTHON, *arguments], **SRUN, SLURM_PROCID=str(n), SLURM_LOCALID=str(n)) for n in range(2)]
    ends = [end(task) for task in tasks]
    return max(code for code, _ in ends), "".join(said for _, said in ends)


def assert_written_once(folder: Path, said: str) -> None:
    assert said.count("\nmade ") == 1 and said.count("step 4/4") == 1 and said.count("self-check") == 2
    assert len(list(folder.glob("events.*"))) == 1 and len(list(folder.glob("checkpoints/step=*.ckpt"))) == 1
    assert len(list(folder.glob("*.log"))) == 2 and len(list(folder.glob(".hydra"))) == 1


@pytest.mark.slow
def test_processes_make_the_same_model_however_they_are_started(place):
    made = {}
    for name, run in {"lightning": by_lightning, "torchrun": by_torchrun, "srun": by_srun}.items():
        code, said = run(place, *TINY, "trainer=ddp", f"run={name}")
        assert code == 0, said
        assert_written_once(place / f"logs/{name}/pretrain", said)
        made[name] = load_file(place / f"logs/{name}/pretrain/export/model.safetensors")
    one, *others = made.values()
    for other in others:
        for name, weight in one.items():
            torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_one_process_resumes_what_two_began_with_the_same_batch_in_all(place):
    saving = ("callbacks.checkpoints.every_n_steps=2", "callbacks.checkpoints.keep=9")
    code, said = by_lightning(place, *TINY, *saving, "trainer=ddp", "run=two")
    assert code == 0, said
    resume = "resume=logs/two/pretrain/checkpoints/step=00000002.ckpt"
    code, said = end(start(place, [*PYTHON, *TINY, resume, "run=other", "trainer=cpu"]))
    assert code != 0 and "(data.batch_size=4)" in said, said
    code, said = end(start(place, [*PYTHON, *TINY, resume, "run=one", "trainer=cpu", "data.batch_size=4"]))
    assert code == 0, said
    two, one = (load_file(place / f"logs/{name}/pretrain/export/model.safetensors") for name in ("two", "one"))
    for name, weight in two.items():
        torch.testing.assert_close(one[name], weight, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_plain_command_in_a_slurm_allocation_is_one_process_whatever_its_number_of_tasks(place):
    allocation = {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "mine", "SLURM_NODELIST": "a[1-4]"}
    code, said = end(start(place, [*PYTHON, *TINY, "trainer=cpu", "run=alone"], **allocation))
    assert code == 0, said
    assert (place / "logs/alone/pretrain/export/model.safetensors").is_file()


@pytest.mark.slow
def test_torchrun_with_one_device_is_rejected_once_before_anything_is_built(place):
    code, said = by_torchrun(place, *TINY, "trainer=cpu", "run=copies")
    assert code == 1
    assert said.count("ValueError: torchrun started 2 processes, but trainer.devices=1") == 1
    assert "Add trainer=ddp or trainer=fsdp" in said
    assert not list(place.glob("logs/copies/pretrain/[ec]*"))


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["stage=all"], ["-m", "stage=pretrain", "seed=1,2", "trainer=ddp"]])
def test_a_pipeline_or_a_sweep_inside_torchrun_is_rejected_once(arguments, place):
    code, said = by_torchrun(place, *arguments)
    assert code == 1
    assert said.count("in its own processes, but torchrun started 2 of this one") == 1
    assert "python train.py … trainer=ddp trainer.devices=2" in said


@pytest.mark.slow
def test_a_tokenizer_is_made_once_by_the_first_of_two_processes(place):
    code, said = by_torchrun(place, "stage=tokenizer", "data.num_documents=300", "tokenizer.vocab_size=300")
    assert code == 0, said
    assert said.count("made logs/tiny/tokenizer/export") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("run", "rank"), [(by_lightning, 0), (by_lightning, 1), (by_torchrun, 1), (by_srun, 0)])
def test_one_process_that_fails_ends_the_run_with_its_message(run, rank, place):
    crash = ["+callbacks.crash._target_=crasher.Crash", f"+callbacks.crash.rank={rank}"]
    code, said = run(place, *TINY, "trainer=ddp", *crash)
    took = time.time() - (place / "crashed").stat().st_mtime
    assert code != 0
    assert f"IndexError: process {rank} has had enough" in said
    assert "Connection closed by peer" not in said
    assert took < 300  # otherwise the others would wait for half an hour
    assert not (place / "logs/tiny/pretrain/export").exists()


@pytest.mark.slow
def test_a_sweep_of_jobs_of_two_processes_each_finishes_and_both_strategies_make_one_model(place):
    jobs = [*TINY, "trainer=ddp,fsdp", "trainer.devices=2", "trainer.max_steps=2"]
    code, said = end(start(place, [*PYTHON, "-m", *jobs]))
    assert code == 0, said
    assert said.count("\nmade ") == 2
    ddp, fsdp = (
        load_file(place / f"logs/tiny/pretrain-sweep/trainer={name}/export/model.safetensors")
        for name in ("ddp", "fsdp")
    )
    assert ddp.keys() == fsdp.keys()
    for name, weight in ddp.items():
        torch.testing.assert_close(fsdp[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.slow(minutes=3)
def test_a_pipeline_runs_with_two_processes_per_stage(place):
    """From the reward model on; pretraining, SFT and the tokenizer run with two processes in other tests."""
    command = [*PYTHON, "stage=all", "debug=smoke", "trainer.accelerator=cpu"]
    two = ["trainer=ddp", "trainer.devices=2"]
    for stages, processes in (("tokenizer,pretrain,sft", []), ("rm,ppo,eval", two)):
        code, said = end(start(place, [*command, f"stages=[{stages}]", *processes]), seconds=900)
        assert code == 0, said
    assert (place / "logs/tiny-smoke/report/report.json").is_file()


def test_a_process_that_lost_another_one_reports_it_on_one_line_and_fails(caplog, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    for words in ("[pair.cc:553] Connection closed by peer [127.0.0.1]:8928.", "index 3 is out of range"):
        with pytest.raises(SystemExit) as stopped, exit_codes():
            raise RuntimeError(words)
        assert stopped.value.code == 1
    first, second = caplog.messages
    assert first == "process 1: another process of this run has ended; see its own message for why"
    assert second.startswith("Traceback") and "index 3" in second


def test_the_batch_script_of_the_docs_composes():
    script = (ROOT / "docs/slurm.sh").read_text()
    assert subprocess.run(["bash", "-n", str(ROOT / "docs/slurm.sh")]).returncode == 0
    [command] = [line for line in script.splitlines() if line.startswith("srun")]
    cfg = compose_config(command.split("train.py ")[1].split())
    assert (cfg.trainer.devices, cfg.trainer.accelerator) == ("auto", "gpu")


def test_a_sweep_on_slurm_composes_if_its_launcher_is_installed():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install -e '.[slurm]'")
    from hydra.core.hydra_config import HydraConfig

    compose_config(["hydra/launcher=slurm", "stage=rm", "hydra.launcher.gpus_per_node=2"])
    launcher = HydraConfig.get().launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.tasks_per_node, launcher.gpus_per_node, launcher.signal_delay_s) == (1, 2, 120)
