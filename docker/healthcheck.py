"""The health check of the images: imports torch and DeepSpeed and prints the GPUs that they see."""

from __future__ import annotations

import os
import sys


def main() -> int:
    import torch

    gpus = torch.cuda.device_count()
    if not gpus:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")

    import deepspeed

    names = ", ".join(torch.cuda.get_device_name(i) for i in range(gpus)) or "none"
    print(f"torch {torch.__version__}, deepspeed {deepspeed.__version__}, GPUs: {names}")
    if torch.version.cuda and not gpus:
        print("torch is a CUDA build but sees no GPU: was the container given one?")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
