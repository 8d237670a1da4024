# shellcheck shell=bash
# Functions of the job scripts: the rendezvous, the environment of each task, and the reaction to
# Slurm's signals. A script that sbatch has started sources this file.
#
# Settings, all environment variables (sbatch passes on those of the submitting shell):
#
#   MSLT_ROOT          checkout of this repository, on all nodes  (default: the folder of sbatch)
#   MSLT_RECIPE        recipe, relative to MSLT_ROOT              (default: the script's own)
#   MSLT_ARGS          further arguments, e.g. "--set train.micro_batch_size=16"; like the other lists of
#                      arguments split at blanks, except inside quotes: "--set 'data.path=/a b'"
#   MSLT_DATA          token store, instead of the recipe's data.path
#   MSLT_OUTPUT        folder for runs, on all nodes, instead of the recipe's output_dir
#   MSLT_MODULES       modules to load first, e.g. "cuda/12.8 gcc/12"
#   MSLT_VENV          virtual environment                        (default: MSLT_ROOT/.venv)
#   MSLT_CONTAINER     image for Pyxis (srun --container-image), instead of a virtual environment
#   MSLT_APPTAINER     image file for Apptainer, instead of a virtual environment
#   MSLT_MOUNTS        folders to mount in a container, "a:a,b:b"  (default: MSLT_ROOT)
#   MSLT_INTERFACE     network interface for NCCL and gloo, e.g. ib0 or ^docker,lo
#                      (NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME take precedence)
#   MASTER_ADDR, MASTER_PORT   rendezvous     (default: first node, a port derived from the job's id)
#   MSLT_MAX_RESTARTS  restarts after which a lost node doesn't requeue the job  (default: 20)
#   MSLT_SRUN_ARGS     further arguments of srun, e.g. "--cpu-bind=cores"
#
# GPUs can be bound in two ways: every task sees all GPUs of its node (--gpus-per-node), or only its
# own (--gpus-per-task). The training chooses its device among those that its task sees.

# The exit code of a run that a signal stopped after a checkpoint (mslt_ds/distributed/signals.py).
readonly MSLT_STOPPED=85

mslt_die() {
    echo "$(basename "${0:-slurm}"): $*" >&2
    exit 3
}

# mslt_split TEXT: sets the array MSLT_WORDS to the words of TEXT. Quotes and backslashes protect blanks, as in a
# shell, but nothing is expanded or executed.
mslt_split() {
    MSLT_WORDS=()
    [ -n "${1// /}" ] || return 0
    local words
    words=$(xargs -r printf '%s\n' <<<"$1") || mslt_die "can't split into arguments: $1"
    [ -z "$words" ] || mapfile -t MSLT_WORDS <<<"$words"
}

# Sets MASTER_ADDR and MASTER_PORT, the same on every node of the job.
mslt_rendezvous() {
    [ -n "${SLURM_JOB_ID:-}" ] || mslt_die "no Slurm job here; start it by sbatch"
    if [ -z "${MASTER_ADDR:-}" ]; then
        local nodes
        nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST") ||
            mslt_die "scontrol can't read SLURM_JOB_NODELIST '$SLURM_JOB_NODELIST'"
        MASTER_ADDR=${nodes%%$'\n'*}
    fi
    # Below the range that Linux uses for outgoing connections.
    MASTER_PORT=${MASTER_PORT:-$((12000 + SLURM_JOB_ID % 18000))}
    export MASTER_ADDR MASTER_PORT
}

# Loads modules and the virtual environment, and exports the variables of all tasks.
mslt_environment() {
    MSLT_ROOT=${MSLT_ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}
    cd "$MSLT_ROOT" || mslt_die "MSLT_ROOT: no folder '$MSLT_ROOT'"
    [ -f mslt_ds/train.py ] ||
        mslt_die "MSLT_ROOT: '$MSLT_ROOT' holds no mslt_ds/train.py; submit from the checkout or set it"
    if [ -n "${MSLT_MODULES:-}" ]; then
        # Lmod and Environment Modules read variables that aren't set.
        set +u
        # shellcheck disable=SC2086 # a list, split at blanks
        module load $MSLT_MODULES || mslt_die "MSLT_MODULES: can't load '$MSLT_MODULES'"
        set -u
    fi
    if [ -z "${MSLT_CONTAINER:-}${MSLT_APPTAINER:-}" ]; then
        MSLT_VENV=${MSLT_VENV:-$MSLT_ROOT/.venv}
        [ -x "$MSLT_VENV/bin/python" ] ||
            mslt_die "MSLT_VENV: no environment in '$MSLT_VENV'; run make setup or set it"
        export PATH=$MSLT_VENV/bin:$PATH
    fi
    if [ -n "${MSLT_INTERFACE:-}" ]; then
        export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$MSLT_INTERFACE}
        export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$MSLT_INTERFACE}
    fi
    export MSLT_ROOT PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
    # If a rank dies, the others fail at once instead of after a timeout.
    export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}
}

# mslt_srun COMMAND...: starts one task for each GPU of the allocation in the background, with RANK,
# WORLD_SIZE and LOCAL_RANK in its environment. A task that fails ends all of them. Sets MSLT_SRUN_PID.
mslt_srun() {
    local launch=(srun --kill-on-bad-exit=1 --label)
    # In a job with GPUs, a step without --cpus-per-task has one core for each task.
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || launch+=("--cpus-per-task=$SLURM_CPUS_PER_TASK")
    mslt_split "${MSLT_SRUN_ARGS:-}"
    launch+=("${MSLT_WORDS[@]}")
    local inside=()
    local mounts=${MSLT_MOUNTS:-$MSLT_ROOT:$MSLT_ROOT}
    if [ -n "${MSLT_CONTAINER:-}" ]; then
        launch+=("--container-image=$MSLT_CONTAINER" "--container-mounts=$mounts"
            "--container-workdir=$MSLT_ROOT")
    elif [ -n "${MSLT_APPTAINER:-}" ]; then
        inside=(apptainer exec --nv --bind "$mounts" --pwd "$MSLT_ROOT" "$MSLT_APPTAINER")
    fi
    # shellcheck disable=SC2016 # expanded in each task, not here
    "${launch[@]}" bash -c '
        export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_STEP_NUM_TASKS LOCAL_RANK=$SLURM_LOCALID
        # A warning must not kill the task before the program handles it; mslt_warn repeats it.
        trap "" USR1
        exec "$@"' task "${inside[@]}" "$@" &
    MSLT_SRUN_PID=$!
}

# Sends USR1 to the tasks repeatedly, since a program that is starting ignores the first one.
mslt_warn() {
    while kill -USR1 "$MSLT_SRUN_PID" 2>/dev/null; do sleep 10; done
}

# mslt_nodes_answer: whether every node of the job still starts tasks. Prints srun's message if not. If
# srun fails for a reason other than a node, the result is true, so that the job isn't requeued.
mslt_nodes_answer() {
    local code=0 said
    said=$(timeout 60 srun --overlap --kill-on-bad-exit=1 true 2>&1) || code=$?
    [ "$code" != 0 ] || return 0
    echo "$said" >&2
    case $code,$said in
        124,* | *"failed on node"* | *[Cc]ommunication* | *"Node failure"*) return 1 ;;
    esac
}

# mslt_wait: waits for mslt_srun's tasks, passes signals on to them, and returns their exit code.
#
# Slurm sends USR1 to this shell alone when the time limit is near (`--signal=B:USR1@300`), and TERM to
# all processes on scancel or preemption. Both make the run write a checkpoint and exit with
# MSLT_STOPPED.
mslt_wait() {
    MSLT_SIGNAL=
    trap '[ "$MSLT_SIGNAL" = USR1 ] || mslt_warn >/dev/null 2>&1 & MSLT_SIGNAL=USR1' USR1
    trap 'MSLT_SIGNAL=TERM; kill -TERM "$MSLT_SRUN_PID" 2>/dev/null' TERM
    local code
    while true; do
        code=0
        wait "$MSLT_SRUN_PID" || code=$?
        # A trap interrupts `wait`; the code is srun's only after srun has ended.
        kill -0 "$MSLT_SRUN_PID" 2>/dev/null || break
    done
    wait "$MSLT_SRUN_PID" 2>/dev/null || code=$?
    trap - USR1 TERM
    return "$code"
}

# mslt_train RECIPE: runs the whole job and exits with its code.
mslt_train() {
    mslt_environment
    mslt_rendezvous
    local recipe=${MSLT_RECIPE:-$1}
    local arguments=(--config "$recipe")
    [ -z "${MSLT_DATA:-}" ] || arguments+=(--set "data.path=$MSLT_DATA")
    [ -z "${MSLT_OUTPUT:-}" ] || arguments+=(--set "output_dir=$MSLT_OUTPUT")
    mslt_split "${MSLT_ARGS:-}"
    arguments+=("${MSLT_WORDS[@]}")
    echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), $(date --iso-8601=seconds):" \
        "nodes $SLURM_JOB_NODELIST, rendezvous $MASTER_ADDR:$MASTER_PORT," \
        "recipe $recipe"

    local code=0
    mslt_srun python mslt_ds/train.py "${arguments[@]}"
    mslt_wait || code=$?
    # Only the warning before the time limit requeues the job. After scancel or a preemption Slurm
    # decides whether it starts again. If a task fails, Slurm ends the others by TERM, and their
    # MSLT_STOPPED can hide the exit code of the failure. 143: a task that stopped while another one was
    # still starting, which Slurm then ended by TERM.
    if [[ "$code" = "$MSLT_STOPPED" || "$code" = 143 ]] && [ "$MSLT_SIGNAL" = USR1 ]; then
        echo "job $SLURM_JOB_ID: stopped with a checkpoint; goes back into the queue"
        scontrol requeue "$SLURM_JOB_ID" && exit 0
        echo "job $SLURM_JOB_ID: can't be requeued; submit the same command again to go on" >&2
    elif [ "$code" = "$MSLT_STOPPED" ] && [ "$MSLT_SIGNAL" = TERM ]; then
        echo "job $SLURM_JOB_ID: told to end, stopped with a checkpoint"
    elif [ "$code" != 0 ] && [ -z "$MSLT_SIGNAL" ] && ! mslt_nodes_answer &&
        [ "${SLURM_RESTART_COUNT:-0}" -lt "${MSLT_MAX_RESTARTS:-20}" ]; then
        # The other tasks fail before Slurm notices the lost node and requeues the job itself.
        echo "job $SLURM_JOB_ID: a node doesn't answer; goes back into the queue" >&2
        scontrol requeue "$SLURM_JOB_ID" && exit 0
        echo "job $SLURM_JOB_ID: can't be requeued; submit the same command again to go on" >&2
    elif [ "$code" = "$MSLT_STOPPED" ]; then
        echo "job $SLURM_JOB_ID: tasks were ended, by a failing one (see above) or a signal to the" \
            "step alone; not requeued" >&2
    elif [ "$code" != 0 ]; then
        echo "job $SLURM_JOB_ID: failed with exit code $code" >&2
    fi
    exit "$code"
}
