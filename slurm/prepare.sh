#!/usr/bin/env bash
# Makes a token store by an array of tasks: each prepares a part, then a second job merges them.
#
#   sbatch slurm/prepare.sh --input text/*.xz --output data/train --tokenizer data/vocabulary
#   sbatch --array=1 slurm/prepare.sh --merge --output data/train        after all tasks
#
# The tokenizer comes from a store that was prepared from a part of the text. --array can be
# overridden on sbatch's command line, but has to count from 1. If a task fails or is killed, submit the
# same array, or that task alone, again: it resumes. Settings: the top of slurm/common.sh.
#SBATCH --job-name=prepare
#SBATCH --array=1-8
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log
set -euo pipefail

# shellcheck source=slurm/common.sh
source "${MSLT_ROOT:-${SLURM_SUBMIT_DIR:-.}}/slurm/common.sh"
mslt_environment
[ -n "${SLURM_ARRAY_TASK_ID:-}" ] || mslt_die "no task of an array; start it by sbatch --array=1-N"
share=()
if [[ " $* " != *" --merge "* ]]; then
    # MSLT_SHARDS=8 with --array=3 repeats only the third of eight parts.
    share=(--workers "${SLURM_CPUS_PER_TASK:-1}"
        --shard "$SLURM_ARRAY_TASK_ID/${MSLT_SHARDS:-$SLURM_ARRAY_TASK_MAX}")
fi
mslt_srun python -m mslt_ds.cli prepare "$@" "${share[@]}"
code=0
mslt_wait || code=$?
exit "$code"
