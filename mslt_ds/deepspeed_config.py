"""The DeepSpeed configuration of a stage: the user's JSON, with what the recipe decides put in.

Files in `ds_configs/` leave those values "auto"; one that contradicts the recipe has been refused
when the recipe was read.
"""

from __future__ import annotations

import copy
from typing import Any


def stage_config(
    user_config: dict[str, Any],
    *,
    micro_batch_size: int,
    gradient_accumulation_steps: int,
    precision: str,
    gradient_clipping: float,
) -> dict[str, Any]:
    """A configuration without "auto" values, for `deepspeed.initialize`."""
    config = copy.deepcopy(user_config)
    # Left out, DeepSpeed derives it from the two below and checks nothing; given, it must agree.
    config.pop("train_batch_size", None)
    config |= {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        # DeepSpeed clips at 1.0 where the key is absent: 0.0 is how to say "not at all".
        "gradient_clipping": gradient_clipping,
        # Progress is this package's own.
        "steps_per_print": None,
        # Lamb and torch's AdamW are "untested" in DeepSpeed's list; tests/distributed tests them.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    for name in ("fp16", "bf16"):
        config[name] = config.get(name, {}) | {"enabled": precision == name}
    return config


def zero_stage(config: dict[str, Any]) -> int:
    """The ZeRO stage a DeepSpeed configuration asks for; 0 where it says nothing."""
    return config.get("zero_optimization", {}).get("stage", 0)
