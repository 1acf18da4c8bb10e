"""What started a process, what the others do meanwhile, and what is refused, from the environment alone."""

import sys
from types import SimpleNamespace

import pytest
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

import train
from components.system import processes
from components.system.processes import ALONE, STARTS_OTHERS, TRAINS, Launcher, takes_part
from components.training import cluster

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
ALLOCATION = {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "2"}
SRUN = ALLOCATION | {"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_STEP_NUM_TASKS": "4"}
BATCH = ALLOCATION | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "ENVIRONMENT": "BATCH"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ALONE),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, ALONE),  # by Lightning, which does its own counting
        (TORCHRUN, Launcher("torchrun", 3, 4, 2)),
        (SRUN | TORCHRUN, Launcher("torchrun", 3, 4, 2)),  # one torchrun per machine
        (SRUN, Launcher("srun", 2, 4, 2)),
        (SRUN | {"SLURM_JOB_NAME": "interactive"}, Launcher("srun", 2, 4, 2)),  # srun in salloc's shell
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, ALONE),  # srun --pty bash in a larger allocation
        ({k: v for k, v in SRUN.items() if "STEP" not in k}, Launcher("srun", 2, 4, 2)),
        (ALLOCATION, ALONE),  # salloc's shell
        (BATCH, ALONE),  # a batch script without srun
    ],
)
def test_a_task_of_torchrun_or_srun_is_distinguished_from_a_shell_in_an_allocation(environ, expected):
    assert processes.detect_launcher(environ) == expected


@pytest.mark.parametrize(("environ", "rank"), [({}, 0), ({"LOCAL_RANK": "1"}, 1), (TORCHRUN, 3), (SRUN, 2), (BATCH, 0)])
def test_only_one_process_is_the_first(environ, rank):
    assert processes.rank(environ) == rank


@pytest.mark.parametrize(
    ("environ", "kinds"),
    [
        ({}, []),
        (TORCHRUN, []),
        (SRUN, [SLURMEnvironment]),
        (BATCH, [LightningEnvironment]),
        (ALLOCATION, [LightningEnvironment]),
    ],
)
def test_lightning_is_told_who_started_it_where_it_would_guess_wrong(environ, kinds, monkeypatch):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert [type(one) for one in cluster.environment()] == kinds


def test_a_process_that_is_not_the_first_logs_to_its_own_file(monkeypatch):
    assert processes.arguments_of_rank({}) == []
    seen = []
    monkeypatch.setattr(train, "main", lambda: seen.extend(sys.argv))
    monkeypatch.setattr(sys, "argv", ["train.py", "stage=rm"])
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    train.start()
    own = ["hydra.job.name=train_process_3", "hydra.output_subdir=null"]
    assert seen == ["train.py", "stage=rm", *own, train.SINGLE]


def trainer(devices="auto", num_nodes=1) -> SimpleNamespace:
    return SimpleNamespace(devices=devices, num_nodes=num_nodes)


def test_devices_left_open_are_those_that_were_started():
    asked = trainer()
    assert takes_part(TRAINS, asked, Launcher("torchrun", 3, 4, 2))
    assert (asked.devices, asked.num_nodes) == (2, 2)


@pytest.mark.parametrize("devices", [2, "0,1", [0, 1]])
def test_the_same_number_of_devices_and_processes_trains(devices):
    assert takes_part(TRAINS, trainer(devices), Launcher("torchrun", 1, 2, 2))


@pytest.mark.parametrize(("devices", "nodes", "size"), [(1, 1, 2), (2, 2, 2), ("auto", 3, 2), (2, 1, 1)])
def test_training_in_an_unrequested_number_of_processes_is_refused_once(devices, nodes, size):
    with pytest.raises(ValueError, match=r"torchrun started \d process.*trainer.devices.*Add trainer=ddp"):
        takes_part(TRAINS, trainer(devices, nodes), Launcher("torchrun", 0, size, size))
    if size > 1:
        assert not takes_part(TRAINS, trainer(devices, nodes), Launcher("torchrun", 1, size, size))


def test_srun_without_a_number_per_machine_is_refused_with_the_flag_that_gives_it(monkeypatch):
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    with pytest.raises(ValueError, match="--ntasks-per-node=2"):
        takes_part(TRAINS, trainer(), Launcher("srun", 0, 4, 2))


def test_tasks_that_do_not_train_run_in_the_first_process_and_the_others_leave():
    parts = [takes_part("components.tasks.evaluate.evaluate", trainer(), Launcher("srun", n, 3, 3)) for n in range(3)]
    assert parts == [True, False, False]
    assert takes_part("components.tasks.evaluate.evaluate", trainer(), ALONE)


def test_a_pipeline_or_a_sweep_within_torchrun_is_refused_with_the_right_command():
    first, second = (Launcher("torchrun", n, 2, 2) for n in range(2))
    plainly = r"python train.py … trainer=ddp trainer.devices=2"
    with pytest.raises(ValueError, match=plainly):
        takes_part(STARTS_OTHERS, trainer(), first)
    with pytest.raises(ValueError, match=plainly):
        processes.leaves_sweep(first)
    assert not takes_part(STARTS_OTHERS, trainer(), second)
    assert processes.leaves_sweep(second)
    assert takes_part(STARTS_OTHERS, trainer(), ALONE) and not processes.leaves_sweep(ALONE)
