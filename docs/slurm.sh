#!/bin/bash
# One stage as a SLURM job that puts itself back in the queue until it is done: sbatch docs/slurm.sh stage=pretrain model=small
# Five minutes before the time is up SLURM signals this shell, which hands it on; train.py saves and exits with 138.
#SBATCH --ntasks-per-node=1 --gres=gpu:1 --time=12:00:00 --signal=B:USR1@300 --requeue
trap 'kill -USR1 "$job"' USR1
python train.py "$@" & job=$!
wait "$job"   # ends early where the signal comes
wait "$job"
status=$?
[ "$status" -eq 138 ] && scontrol requeue "$SLURM_JOB_ID"
exit "$status"
