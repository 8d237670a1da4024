#!/usr/bin/env bash
# A token store by the tasks of an array: each makes its part, then one command puts them together.
#
#   sbatch slurm/prepare.sh --input text/*.xz --output data/train --tokenizer data/vocabulary
#   sbatch --array=1 slurm/prepare.sh --merge --output data/train        when all tasks are done
#
# The tokenizer comes from a store that was prepared from a part of the text. --array can be
# overridden on sbatch's command line, as long as it counts from 1. A task that fails or is killed
# goes on where it stood when the same array, or that task alone, is submitted again. Settings: the
# top of slurm/common.sh.
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
if [ "${1:-}" != --merge ]; then
    # MSLT_SHARDS=8 with --array=3 repeats the third of eight parts alone.
    share=(--workers "${SLURM_CPUS_PER_TASK:-1}"
        --shard "$SLURM_ARRAY_TASK_ID/${MSLT_SHARDS:-$SLURM_ARRAY_TASK_MAX}")
fi
mslt_srun python -m mslt_ds.cli prepare "$@" "${share[@]}"
code=0
mslt_wait || code=$?
exit "$code"
