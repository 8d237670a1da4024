#!/usr/bin/env bash
# GLUE by the tasks of an array: each fine-tunes its share of the grid on a GPU of its own.
#
#   sbatch slurm/evaluate_glue.sh --model runs/base/model --data data/glue --output results/base
#
# The arguments are those of `mslt-ds evaluate glue`. --array can be overridden on sbatch's command
# line, as long as it counts from 1. The task that finishes the last run writes results.json and
# table.md. A run that was finished stays so: a task that fails, is killed or runs into its time limit
# goes on when the same array, or that task alone, is submitted again. Settings: the top of
# slurm/common.sh.
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
# MSLT_SHARDS=16 with --array=3 repeats the third of sixteen shares alone.
mslt_srun python -m mslt_ds.cli evaluate glue "$@" \
    --shard "$SLURM_ARRAY_TASK_ID/${MSLT_SHARDS:-$SLURM_ARRAY_TASK_MAX}"
code=0
mslt_wait || code=$?
exit "$code"
