"""What a method knows of a stage before the stage has its place in the plan."""

from __future__ import annotations

from dataclasses import dataclass

from mslt_ds.plan.stages import GLOBAL_BATCH_SIZE_KEY, MICRO_BATCH_SIZE_KEY


@dataclass(frozen=True)
class Draft:
    """A stage whose place in the run is not known yet. The fields are those of Stage."""

    depth: int
    trainable_layers: int
    steps: int
    seq_length: int
    micro_batch_size: int
    global_batch_size: int
    masked_lm_prob: float
    seq_length_key: str = "data.seq_length"  # the recipe's key that gave the length
    global_batch_size_key: str = GLOBAL_BATCH_SIZE_KEY
    micro_batch_size_key: str = MICRO_BATCH_SIZE_KEY
    init: str | None = None
    learning_rate_factor: float = 1.0
    warmup_steps: int = 0
    continues: bool = False
    embeddings: bool | None = None

    @property
    def train_embeddings(self) -> bool:
        return self.trainable_layers == self.depth if self.embeddings is None else self.embeddings
