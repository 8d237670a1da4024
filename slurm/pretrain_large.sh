#!/usr/bin/env bash
# BERT-Large by multi-stage layerwise training on 4 nodes of 8 GPUs: the paper's 32.
#
#   sbatch slurm/pretrain_large.sh                                     from the root of the checkout
#   sbatch --nodes=1 slurm/pretrain_large.sh                           the same run on 8 GPUs, by gradient accumulation
#   MSLT_DATA=/scratch/train sbatch slurm/pretrain_large.sh            settings: the top of slurm/common.sh
#
# Every #SBATCH line can be overridden on sbatch's command line; give --partition, --account and
# --constraint there if the cluster needs them. Five minutes before the time limit the run writes a
# checkpoint and the job requeues itself and resumes.
#SBATCH --job-name=pretrain_large
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

# sbatch runs a copy of this script from its spool folder, so its own path doesn't give the checkout.
# shellcheck source=slurm/common.sh
source "${MSLT_ROOT:-${SLURM_SUBMIT_DIR:-.}}/slurm/common.sh"
mslt_train configs/bert_large_mslt.yaml
