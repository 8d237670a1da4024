"""LAMB that is exact under ZeRO, and DeepSpeed's optimizer state by parameter name."""

from mslt_ds.optim.lamb import Lamb
from mslt_ds.optim.lamb_reference import LambOptions

__all__ = ["Lamb", "LambOptions"]
