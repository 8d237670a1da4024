"""Optimizers that are exact under ZeRO, and DeepSpeed's optimizer state by parameter name.

`Lamb` and `LambOptions` are loaded at their first use: the schedule is pure, and `mslt-ds plan`, which
reads it from this package, does without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mslt_ds.optim.lamb import Lamb
    from mslt_ds.optim.lamb_reference import LambOptions

__all__ = ["Lamb", "LambOptions"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mslt_ds.optim import lamb

    return getattr(lamb, name)
