"""Steps of the engine of one stage, as a run makes them, for benchmarks."""

from __future__ import annotations

from itertools import cycle, islice

import torch

from mslt_ds.data.loader import GlobalBatch
from mslt_ds.distributed.traffic import TrafficMeter
from mslt_ds.engine import StageEngine
from mslt_ds.model.families import FAMILIES
from mslt_ds.plan.stages import Stage
from mslt_ds.recipe.loading import Recipe
from mslt_ds.stage_parts import feed_of, model_of, settings_of
from mslt_ds.state import TrainingState, Weights


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
        family = FAMILIES[config.model.family]
        assert config.model.vocab_size is not None
        hf_config = family.hf_config(
            config.model, stage.depth, config.model.vocab_size, config.data.objective.heads
        )
        own = {name: weights[name] for name in family.parameter_shapes(hf_config)}
        model = model_of(config, stage, hf_config, own, device)
        settings = settings_of(recipe, stage, world_size=1)
        self.engine = StageEngine(model, settings, TrainingState(0, own), meter)
        self.feed = feed_of(config, stage, model.prefix, device, world_size=1)
        self._batches = cycle(batches)
        self._rate = config.optimizer.learning_rate

    def run(self, steps: int) -> None:
        for fed in self.feed.training(islice(self._batches, steps), first_step=0):
            self.engine.accumulate(fed.inputs, fed.batch.denominators)
            if fed.ends_step:
                self.engine.step(self._rate)

    def loss(self, batch: GlobalBatch) -> float:
        """Of the batch, without dropout."""
        sums = sum(
            self.engine.evaluate(inputs).double() for inputs in self.feed.evaluation([batch])
        )
        return float((torch.as_tensor(sums).cpu() / torch.tensor(batch.denominators)).sum())
