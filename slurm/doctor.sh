#!/usr/bin/env bash
# Checks whether an allocation can train: devices, versions, disk, clocks, all-reduce and each link.
#
#   sbatch --nodes=4 slurm/doctor.sh                     as many nodes as the training will use
#   sbatch --nodes=4 slurm/doctor.sh --path /scratch/runs --json
#
# The arguments are those of `mslt-ds doctor`. The job fails if a finding would stop a training.
# Settings: the top of slurm/common.sh.
#SBATCH --job-name=doctor
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --time=00:15:00
#SBATCH --output=%x-%j.log
set -euo pipefail

# shellcheck source=slurm/common.sh
source "${MSLT_ROOT:-${SLURM_SUBMIT_DIR:-.}}/slurm/common.sh"
mslt_environment
mslt_rendezvous
[ -z "${MSLT_OUTPUT:-}" ] || set -- --path "$MSLT_OUTPUT" "$@"
mslt_srun python -m mslt_ds.cli doctor "$@"
code=0
mslt_wait || code=$?
exit "$code"
