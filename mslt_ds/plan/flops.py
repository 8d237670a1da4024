"""Floating-point operations of a stage's step: two for each parameter and token, and attention.

A matrix product of m x k and k x n counts 2 m k n. Norms, activations, softmax, dropout and the optimizer
are left out: they are below one percent. What this package saves is counted exactly: logits where the
objective asks for them, the top layer where its output is used, a frozen prefix that only runs forward, no
gradient of the frozen decoder matrix nor of the prefix's output. A test compares the counts with torch's
own of the real modules.
"""

from __future__ import annotations

from dataclasses import dataclass

from mslt_ds.config.sections import RunConfig
from mslt_ds.model.families import FAMILIES
from mslt_ds.plan.stages import Stage


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a number of instances."""

    prefix: float  # forward only
    forward: float  # of what trains
    backward: float

    @property
    def total(self) -> float:
        return self.prefix + self.forward + self.backward

    def __mul__(self, instances: float) -> Flops:
        return Flops(self.prefix * instances, self.forward * instances, self.backward * instances)


def instance_flops(config: RunConfig, stage: Stage, vocab_size: int, filled: float = 1.0) -> Flops:
    """Of one instance of the stage.

    filled: share of its positions that hold tokens. Where padding is left out (`train.unpadded`), the
        rest costs attention only
    """
    family, model = FAMILIES[config.model.family], config.model
    objective = config.data.objective
    hidden, each = model.hidden_size, model.layers_per_block
    length = stage.seq_length
    runs = filled if config.train.unpadded == "on" else 1.0
    tokens = length * runs
    predictions = config.max_predictions(length, stage.masked_lm_prob) * runs
    logits = objective.num_logits(tokens, predictions)

    def attention(index: int, outputs: float) -> float:
        return 4 * hidden * family.attended(model, index // each, length) * outputs / runs

    def layer(index: int, outputs: float) -> float:
        parameters = family.block_parameters(model, index // each)
        keys_and_values = 2 * hidden * hidden
        products = 2 * keys_and_values * tokens + 2 * (parameters - keys_and_values) * outputs
        return products + attention(index, outputs)

    top = tokens
    if family.top_layer_at_positions:
        top = objective.num_positions(tokens, predictions)
    layers = [layer(i, tokens) for i in range(stage.depth - 1)]
    layers.append(layer(stage.depth - 1, min(top, tokens)))
    # The head for pairs runs once, the others at each position with logits.
    of_tokens = family.head_parameters(model, vocab_size, objective.heads - {"pair"})
    once = family.head_parameters(model, vocab_size, objective.heads) - of_tokens
    embedding = model.embedding_size or hidden
    own = 2 * (logits * (of_tokens - vocab_size) + once)
    decoder = 2 * logits * vocab_size * embedding
    mapping = 2 * embedding * hidden * tokens if model.embedding_size else 0
    lowest = 0 if stage.train_embeddings else stage.trained.start  # that the gradient reaches
    # It passes these layers, whose weights get none.
    passed = [i for i in range(lowest, stage.depth) if i not in stage.trained]
    without = sum(layers[i] for i in passed) - sum(
        attention(i, tokens if i < stage.depth - 1 else min(top, tokens)) for i in passed
    )
    forward = sum(layers[lowest:]) + own + decoder
    if stage.train_embeddings:
        forward += mapping
        return Flops(0.0, forward, 2 * forward - without)
    # No gradient of the decoder matrix, and none of what the lowest trained layer's queries, keys and
    # values take in. Its queries are those of the positions if it is the top layer too.
    queries = tokens if lowest < stage.depth - 1 else min(top, tokens)
    without += decoder
    # Unless a norm's weight trains before them; the lowest layer of all has none.
    if not (family.norm_before_attention and lowest):
        without += 2 * hidden * hidden * (2 * tokens + queries)
    return Flops(mapping + sum(layers[:lowest]), forward, 2 * forward - without)


def layer_passes(depth: int, trainable_layers: int, backward: float = 2.0) -> float:
    """Work of a step over one token position, in forward passes of one layer, without embeddings and heads.

    backward: what a layer's backward pass costs, in its forward passes
    """
    return depth + backward * trainable_layers
