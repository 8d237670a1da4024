"""What launched processes import, for a process that they are forked from: a start takes no seconds then."""

from __future__ import annotations

import gc
import os

os.environ |= {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
}

import deepspeed
import deepspeed.runtime.zero.muon.muon_optimizer  # as ZeRO 1 and 2 do: torch's compiler comes with it
import transformers.models.auto.tokenization_auto
import transformers.models.bert  # noqa: F401

import mslt_ds.cli
import mslt_ds.optim
import mslt_ds.run  # noqa: F401

# Else a program that calls deepspeed.initialize compiles it, which takes minutes (mslt_ds/distributed/world.py).
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

# A stage's end collects garbage, which needn't look at all this.
gc.collect()
gc.freeze()
