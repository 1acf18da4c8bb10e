#!/bin/bash
# One training on two machines of four GPUs each:  sbatch docs/slurm.sh
# srun starts the eight processes; trainer=fsdp (or ddp) takes what was started, so no number is said twice.
#SBATCH --job-name=gradus
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/slurm-%j.txt

# Three minutes before the time is over every process gets SIGUSR1: the step is finished, a checkpoint written, and the
# exit status is 138. The job then goes back into the queue, and the same command resumes from the checkpoint: so it
# must not have force=true or resume=never, with which each start deletes the checkpoints of the one before.
# --kill-on-bad-exit: a process that fails ends the others, which would wait for it.
srun --kill-on-bad-exit=1 python train.py stage=pretrain model=medium trainer=fsdp trainer.accelerator=gpu
status=$?
if [ "$status" -eq 138 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
