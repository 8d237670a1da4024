#!/usr/bin/env bash
# From text to GLUE scores: jobs that prepare, pretrain and evaluate, one after the other.
#
#   MSLT_DATA=/scratch/train MSLT_OUTPUT=/scratch/runs MSLT_GLUE=/scratch/glue \
#       slurm/pipeline.sh --input text/*.xz --tokenizer data/vocabulary
#
# Run it on a machine with sbatch, from the root of the checkout. It submits four jobs, or none, and
# ends. Each job starts after the one before has succeeded. If one fails, Slurm cancels the later ones,
# whose dependency can't be satisfied; the same command submits all of them again, and finished work is
# not repeated.
#
# The arguments are those of `mslt-ds prepare` without --output. Settings, in addition to those at the
# top of slurm/common.sh:
#
#   MSLT_DATA       token store to make and train on                    (required)
#   MSLT_OUTPUT     folder for runs                                     (required)
#   MSLT_GLUE       GLUE's files; empty: no evaluation                  (default: none)
#   MSLT_VALID      held-out store to evaluate on while training        (default: none)
#   MSLT_NAME       the run's name: its folder in MSLT_OUTPUT           (default: pipeline)
#   MSLT_PRETRAIN   job script of the training       (default: slurm/pretrain_base.sh)
#   MSLT_PREPARERS  tasks of the preparing array                        (default: 8)
#   MSLT_EVALUATORS tasks of the evaluating array                       (default: 16)
#   MSLT_SBATCH     options of sbatch for all jobs, e.g. "--account=me"
#   MSLT_SBATCH_PREPARE, MSLT_SBATCH_PRETRAIN, MSLT_SBATCH_EVALUATE   ... for one of them
#   MSLT_GLUE_ARGS  arguments of `mslt-ds evaluate glue`, e.g. "--quick --tasks RTE"
set -euo pipefail

root=${MSLT_ROOT:-$PWD}
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh"
export MSLT_ROOT=$root
[ "$#" != 0 ] || mslt_die "no arguments for mslt-ds prepare; give at least --input FILE..."
case " $* " in
    *" --tokenizer "* | *" --tokenizer="*) ;;
    *) mslt_die "--tokenizer is missing: tasks that share the text need one vocabulary beforehand" ;;
esac
case " $* " in
    *" --output "* | *" --output="*) mslt_die "--output: leave it out; MSLT_DATA names the token store" ;;
esac
for setting in MSLT_DATA MSLT_OUTPUT; do
    [ -n "${!setting:-}" ] || mslt_die "$setting isn't set; the jobs hand their work over there"
done
case $MSLT_DATA$MSLT_OUTPUT in *[[:space:]]*) mslt_die "MSLT_DATA, MSLT_OUTPUT: no blanks here" ;; esac
pretrain=${MSLT_PRETRAIN:-slurm/pretrain_base.sh}
[ -f "$root/$pretrain" ] || mslt_die "MSLT_PRETRAIN: no job script '$root/$pretrain'"
name=${MSLT_NAME:-pipeline}
# Each array counts its own tasks.
unset MSLT_SHARDS

training="--set name=$name ${MSLT_ARGS:-} --set 'data.eval_path=${MSLT_VALID:-null}'"
mslt_environment
# A wrong recipe is an error here, before any job starts. With an image there may be no Python here.
if [ -z "${MSLT_CONTAINER:-}${MSLT_APPTAINER:-}" ]; then
    mslt_split "$training"
    python -m mslt_ds.cli plan --config "${MSLT_RECIPE:-$(sed -n 's/^mslt_train //p' "$pretrain")}" \
        "${MSLT_WORDS[@]}" >/dev/null
fi

# submit WHAT DEPENDENCY OPTIONS...: prints the job's id; with several clusters "id;cluster", as sbatch does.
submit() {
    local what=$1 after=$2 own=MSLT_SBATCH_$1
    shift 2
    local options=(--parsable)
    # Slurm cancels a job that can never start, instead of leaving it in the queue.
    [ -z "$after" ] || options+=("--dependency=afterok:${after%%;*}" --kill-on-invalid-dep=yes)
    mslt_split "${MSLT_SBATCH:-} ${!own:-}"
    options+=("${MSLT_WORDS[@]}")
    sbatch "${options[@]}" "$@" || mslt_die "sbatch refused the job $what"
}

submitted=()
cancel() {
    local job
    for job in "${submitted[@]}"; do
        case $job in
            *";"*) scancel --clusters="${job#*;}" "${job%%;*}" ;;
            *) scancel "$job" ;;
        esac
    done
}
# If a job is refused, those submitted before it are cancelled.
trap cancel ERR
prepared=$(submit PREPARE "" --array="1-${MSLT_PREPARERS:-8}" slurm/prepare.sh "$@" --output "$MSLT_DATA")
submitted+=("$prepared")
merged=$(submit PREPARE "$prepared" --array=1 slurm/prepare.sh --merge --output "$MSLT_DATA")
submitted+=("$merged")
trained=$(MSLT_ARGS=$training submit PRETRAIN "$merged" "$pretrain")
submitted+=("$trained")
echo "prepare $prepared, merge $merged, pretrain $trained"
[ -n "${MSLT_GLUE:-}" ] || exit 0
mslt_split "${MSLT_GLUE_ARGS:-}"
evaluated=$(submit EVALUATE "$trained" --array="1-${MSLT_EVALUATORS:-16}" slurm/evaluate_glue.sh \
    --model "$MSLT_OUTPUT/$name/model" --data "$MSLT_GLUE" --output "$MSLT_OUTPUT/$name/glue" \
    "${MSLT_WORDS[@]}")
echo "evaluate $evaluated: $MSLT_OUTPUT/$name/glue/table.md"
