#!/usr/bin/env bash
# Trains a model from text on this machine's CPU: collects a corpus, prepares it, pretrains by
# multi-stage layerwise training with two processes, prints the results and writes a report.
#
#   MSLT_DEMO_PROCESSES   processes to train with  (default 2)
#   further arguments go to the training, e.g. demo/run.sh --set plan.method=full
#
# Finished parts are not repeated: an interrupted demo resumes when it is started again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=.demo
processes=${MSLT_DEMO_PROCESSES:-2}
# One thread for each process: on few cores, more threads are slower.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}

if [ ! -f $work/valid/.done ]; then
    echo "== 1/3 text: the prose in the docstrings of the installed packages"
    python demo/docstring_corpus.py --output $work/text

    echo "== 2/3 tokens: a vocabulary of 4,000 word pieces, then two token stores"
    rm -rf $work/train $work/valid
    mslt-ds prepare --input $work/text/train.txt --output $work/train --vocab-size 4000 --workers 2
    mslt-ds prepare --input $work/text/heldout.txt --output $work/valid \
        --tokenizer $work/train --workers 2
    touch $work/valid/.done
fi

echo "== 3/3 pretraining with $processes processes"
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
deepspeed --num_gpus "$processes" --master_port "$port" --log_level warning \
    mslt_ds/train.py --config configs/demo.yaml --set train.device=cpu "$@"

# The newest run: an argument may have given it another name.
newest=
for model in "$work"/runs/*/model; do
    if [ "$model" -nt "$newest" ]; then newest=$model; fi
done
echo "== three words that were masked in held-out text"
python demo/fill_mask.py --model "$newest" --text "$work/text/heldout.txt"

# Of all runs that lie there, such as a twin that was made with --set name=full --set plan.method=full.
started=("$work"/runs/*/metrics.jsonl)
mslt-ds report "${started[@]%/metrics.jsonl}" --output $work/report
