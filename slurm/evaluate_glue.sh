#!/usr/bin/env bash
# Fine-tunes on GLUE by an array of tasks; each does its share of the grid on its own GPU.
#
#   sbatch slurm/evaluate_glue.sh --model runs/base/model --data data/glue --output results/base
#
# The arguments are those of `mslt-ds evaluate glue`. --array can be overridden on sbatch's command
# line, but has to count from 1. The task that finishes the last run writes results.json and table.md.
# Finished runs are kept: if a task fails, is killed or reaches its time limit, submit the same array,
# or that task alone, again. Settings: the top of slurm/common.sh.
#SBATCH --job-name=evaluate_glue
#SBATCH --array=1-16
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log
set -euo pipefail

# shellcheck source=slurm/common.sh
source "${MSLT_ROOT:-${SLURM_SUBMIT_DIR:-.}}/slurm/common.sh"
mslt_environment
[ -n "${SLURM_ARRAY_TASK_ID:-}" ] || mslt_die "no task of an array; start it by sbatch --array=1-N"
# MSLT_SHARDS=16 with --array=3 repeats only the third of sixteen shares.
mslt_srun python -m mslt_ds.cli evaluate glue "$@" \
    --shard "$SLURM_ARRAY_TASK_ID/${MSLT_SHARDS:-$SLURM_ARRAY_TASK_MAX}"
code=0
mslt_wait || code=$?
exit "$code"
