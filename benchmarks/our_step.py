"""Steps of the engine of one stage, as a run makes them, for benchmarks."""

from __future__ import annotations

from itertools import cycle, islice

import torch

from mslt_ds.data.loader import GlobalBatch
from mslt_ds.distributed.traffic import TrafficMeter
from mslt_ds.engine import EngineSettings, StageEngine
from mslt_ds.feed import Feed
from mslt_ds.model.compiled import wanted
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.staged import StageModel
from mslt_ds.plan.memory import micro_batches_at_once
from mslt_ds.plan.stages import Stage
from mslt_ds.recipe.loading import Recipe
from mslt_ds.state import TrainingState, Weights

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class OurStep:
    """The engine of one stage, and its steps."""

    def __init__(
        self,
        recipe: Recipe,
        stage: Stage,
        weights: Weights,
        batches: list[GlobalBatch],
        meter: TrafficMeter,
        device: torch.device,
    ) -> None:
        config = recipe.config
        family, train = FAMILIES[config.model.family], config.train
        assert config.model.vocab_size is not None
        hf_config = family.hf_config(
            config.model, stage.depth, config.model.vocab_size, config.data.objective.heads
        )
        own = {name: weights[name] for name in family.parameter_shapes(hf_config)}
        dtype = _DTYPES[train.precision]
        model = StageModel.build(
            hf_config, config.data.objective, stage.trained, own, frozen_dropout=False,
            dtype=dtype, prefix_dtype=_DTYPES[train.prefix_precision or train.precision], device=device,
        )  # fmt: skip
        if wanted(train.compile, device)[0]:
            model.compile()
        settings = EngineSettings(
            optimizer=config.optimizer,
            deepspeed=recipe.deepspeed,
            precision=train.precision,
            gradient_clipping=train.gradient_clipping,
            micro_batch_size=stage.micro_batch_size,
            gradient_accumulation_steps=stage.gradient_accumulation_steps(1),
        )
        self.engine = StageEngine(model, settings, TrainingState(0, own), meter)
        self._feed = Feed(
            model.prefix, device, config.seed,
            at_once=micro_batches_at_once(config, stage, 1), ahead=train.prefix_ahead == "on",
        )  # fmt: skip
        self._batches = cycle(batches)
        self._rate = config.optimizer.learning_rate

    def run(self, steps: int) -> None:
        for fed in self._feed.training(islice(self._batches, steps), first_step=0):
            self.engine.accumulate(fed.inputs, fed.batch.denominators)
            if fed.ends_step:
                self.engine.step(self._rate)

    def loss(self, batch: GlobalBatch) -> float:
        """Of the batch, without dropout."""
        sums = sum(
            self.engine.evaluate(inputs).double() for inputs in self._feed.evaluation([batch])
        )
        return float((torch.as_tensor(sums).cpu() / torch.tensor(batch.denominators)).sum())
