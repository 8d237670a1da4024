#!/usr/bin/env bash
# From text to a trained model on this machine's CPU: collect a corpus, prepare it, pretrain by
# multi-stage layerwise training with two processes, and print what came out.
#
#   MSLT_DEMO_PROCESSES   processes to train with  (default 2)
#   further arguments go to the training, e.g. demo/run.sh --set plan.method=full
#
# What is there already is not made again: a demo that was interrupted goes on where it stood.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=.demo
processes=${MSLT_DEMO_PROCESSES:-2}
# One thread for each process: on few cores, more only get in each other's way.
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
exec deepspeed --num_gpus "$processes" --master_port "$port" --log_level warning \
    mslt_ds/train.py --config configs/demo.yaml --set train.device=cpu "$@"
