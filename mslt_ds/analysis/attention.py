"""What the heads of a model look at: maps of a sentence, and statistics over held-out text.

The attention is Hugging Face's own (`output_attentions` of its eager implementation), so every family
that its Auto classes load is measured in the same way. p[q, k] is the weight that the token at q gives
to the one at k; a row sums to 1.

Of each head, means over all tokens q: the mass on [CLS], on [SEP], on the token itself, on the one before
and the one after; the entropy in nats; the distance, the mean of |q - k| under p. Source of these
measures: Clark et al. 2019, "What Does BERT Look At?", sections 3.1 and 3.2.

Between two layers, or a layer at two moments: the Jensen-Shannon distance, the square root of the
divergence in bits (0: equal, 1: no token in common), between heads of the same number, averaged over
heads and tokens. Growth copies layers with their heads in order, so these are the heads to compare.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from mslt_ds.data.store import TokenStore
from mslt_ds.errors import CheckpointError, DataError, first_line
from mslt_ds.hugging_face import LOAD, quiet, weight_files

STATISTICS = ("cls", "sep", "self", "previous", "next", "entropy", "distance")
_BATCH = 8  # sequences
_LEAST_TOKENS = 4  # of a sequence, without its special tokens


@dataclass(frozen=True)
class Snapshot:
    """A model at a moment. label: what pages call it; key: unique, such as `stages/2/end`."""

    key: str
    label: str
    folder: Path


@dataclass
class Findings:
    """What was measured, in plain values, as attention.json holds it."""

    title: str
    tokens: list[str]
    """Of the sentence."""
    labels: dict[str, str]
    """Key of each snapshot -> its label, in time's order; `twin`: the full twin."""
    maps: dict[str, list[list[list[list[float]]]]]
    """Key -> (layers, heads, tokens, tokens) on the sentence."""
    text: str = ""
    sequences: int = 0
    """That the statistics are over; 0: the sentence alone."""
    heads: list[dict[str, Any]] = field(default_factory=list)
    """For each snapshot, layer and head (from 0): `snapshot`, `layer`, `head` and STATISTICS."""
    between_layers: dict[str, list[list[float]]] = field(default_factory=dict)
    """Key -> Jensen-Shannon distance of each two layers, (layers, layers)."""
    between_stages: list[dict[str, Any]] = field(default_factory=list)
    """`before`, `after` (keys), `layer`, `distance`."""
    frozen: dict[str, str] = field(default_factory=dict)
    """Key -> layers that didn't train in the stage whose end it is."""
    stacking: list[dict[str, Any]] = field(default_factory=list)
    """The moments of one layer around its stacking: `key`, `layer`, `label`."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def last(self) -> str:
        """The key of the newest snapshot of the run."""
        return [key for key in self.labels if key != "twin"][-1]


def load_model(folder: Path) -> Any:
    """The encoder in `folder`, on the CPU in fp32; CheckpointError if it can't be loaded."""
    weight_files(folder)
    try:
        with quiet():
            model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32, **LOAD)  # fmt: skip
    except Exception as error:  # whatever transformers raises for a damaged folder
        raise CheckpointError(f"{folder}: can't be loaded ({first_line(error)})") from error
    return model.eval()


def load_tokenizer(folder: Path) -> Any:
    """CheckpointError if `folder` has none."""
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, **LOAD)
    except Exception as error:
        raise CheckpointError(
            f"{folder}: no tokenizer that can be read ({first_line(error)})"
        ) from error


@torch.no_grad()
def attentions(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """(layers, batch, heads, tokens, tokens); inputs: `input_ids`, `attention_mask`, (batch, tokens)."""
    return torch.stack(model(**inputs, output_attentions=True).attentions)


def store_batches(
    store: TokenStore, sequences: int, seq_length: int
) -> Iterator[dict[str, Tensor]]:
    """Up to `sequences` of at most `seq_length` tokens, `[CLS] text [SEP]`, from documents that are
    spread evenly over the store. DataError if the store has none that is long enough."""
    corpus, special = store.corpus, store.corpus.special
    found = []
    documents = np.linspace(0, store.num_documents - 1, min(sequences, store.num_documents)).astype(int)  # fmt: skip
    for document in documents:
        first, end = corpus.sentences[corpus.documents[document : document + 2]]
        tokens = corpus.tokens[first : min(end, first + seq_length - 2)].tolist()
        if len(tokens) >= _LEAST_TOKENS:
            found.append([special.cls, *tokens, special.sep])
    if not found:
        raise DataError(
            f"--store: {store.path}: no document of at least {_LEAST_TOKENS} tokens; choose another store"
        )
    for begin in range(0, len(found), _BATCH):
        rows = found[begin : begin + _BATCH]
        longest = max(map(len, rows))
        yield {
            "input_ids": torch.tensor([row + [special.pad] * (longest - len(row)) for row in rows]),
            "attention_mask": torch.tensor(
                [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
            ),
        }


class HeadStatistics:
    """Means over all tokens of the batches that were added."""

    def __init__(self, cls: int, sep: int) -> None:
        self._cls, self._sep = cls, sep
        self._sums: Tensor | None = None  # (statistics, layers, heads)
        self._counts = torch.zeros(len(STATISTICS), dtype=torch.float64)

    def add(self, weights: Tensor, inputs: dict[str, Tensor]) -> None:
        """weights: (layers, batch, heads, tokens, tokens)"""
        ids, real = inputs["input_ids"], inputs["attention_mask"].double()  # (batch, tokens)
        tokens = ids.shape[1]
        at = torch.arange(tokens)
        p = weights.double()
        diagonals = {0: "self", -1: "previous", 1: "next"}
        mass = {"cls": (ids == self._cls).double(), "sep": (ids == self._sep).double()}
        values = {name: torch.einsum("lbhqk,bk->lbhq", p, on) for name, on in mass.items()}
        queries = dict.fromkeys(STATISTICS, real)
        for offset, name in diagonals.items():
            diagonal = p.diagonal(offset, dim1=-2, dim2=-1)
            whole = torch.zeros_like(p[..., 0])
            whole[..., max(0, -offset) : tokens - max(0, offset)] = diagonal
            values[name] = whole
        # The first token has none before it, and the last one of a row none after it.
        queries["previous"] = real * (at > 0)
        queries["next"] = real * torch.cat([real[:, 1:], torch.zeros_like(real[:, :1])], 1)
        values["entropy"] = entropy(p)
        values["distance"] = torch.einsum("lbhqk,qk->lbhq", p, (at[:, None] - at).abs().double())
        sums = torch.stack(
            [torch.einsum("lbhq,bq->lh", values[name], queries[name]) for name in STATISTICS]
        )
        self._sums = sums if self._sums is None else self._sums + sums
        self._counts += torch.stack([queries[name].sum() for name in STATISTICS])

    def rows(self, snapshot: str) -> list[dict[str, Any]]:
        assert self._sums is not None
        means = (self._sums / self._counts[:, None, None]).tolist()
        layers, heads = self._sums.shape[1:]
        return [
            {"snapshot": snapshot, "layer": layer, "head": head}
            | {name: means[index][layer][head] for index, name in enumerate(STATISTICS)}
            for layer in range(layers)
            for head in range(heads)
        ]


class MeanDistance:
    """The mean Jensen-Shannon distance over heads and tokens of the batches that were added."""

    def __init__(self) -> None:
        self._sum = self._count = 0.0

    def add(self, a: Tensor, b: Tensor, real: Tensor) -> None:
        """a, b: (batch, heads, tokens, tokens); real: (batch, tokens)"""
        distances = jensen_shannon(a, b)
        self._sum += torch.einsum("bhq,bq->", distances, real.double()).item()
        self._count += real.sum().item() * a.shape[1]

    @property
    def mean(self) -> float:
        return self._sum / self._count


def entropy(p: Tensor) -> Tensor:
    """In nats, over the last dimension."""
    return -torch.special.xlogy(p, p).sum(-1)


def jensen_shannon(a: Tensor, b: Tensor) -> Tensor:
    """The distance of two distributions over the last dimension, 0 to 1."""
    a, b = a.double(), b.double()
    divergence = entropy((a + b) / 2) - (entropy(a) + entropy(b)) / 2
    return (divergence / math.log(2)).clamp(0, 1).sqrt()


def measure(
    findings: Findings,
    snapshots: Sequence[Snapshot],
    batches: Sequence[dict[str, Tensor]],
    cls: int,
    sep: int,
) -> None:
    """Fill in the statistics. Models that belong to snapshots of the same run are compared.

    batches: of token ids, which all snapshots read
    """
    models = [load_model(snapshot.folder) for snapshot in snapshots]
    statistics = [HeadStatistics(cls, sep) for _ in snapshots]
    own = [index for index, snapshot in enumerate(snapshots) if snapshot.key != "twin"]
    pairs = list(pairwise(own))
    ends = sorted({own[-1], len(snapshots) - 1})
    stages: dict[tuple[int, int, int], MeanDistance] = {}
    layers: dict[tuple[int, int, int], MeanDistance] = {}
    for inputs in batches:
        real = inputs["attention_mask"]
        weights = [attentions(model, inputs) for model in models]
        for found, p in zip(statistics, weights, strict=True):
            found.add(p, inputs)
        for before, after in pairs:
            for layer in range(min(len(weights[before]), len(weights[after]))):
                distance = stages.setdefault((before, after, layer), MeanDistance())
                distance.add(weights[before][layer], weights[after][layer], real)
        for end in ends:
            for a in range(len(weights[end])):
                for b in range(a):
                    distance = layers.setdefault((end, a, b), MeanDistance())
                    distance.add(weights[end][a], weights[end][b], real)
    for snapshot, found in zip(snapshots, statistics, strict=True):
        findings.heads += found.rows(snapshot.key)
    for (before, after, layer), distance in stages.items():
        findings.between_stages.append(
            {"before": snapshots[before].key, "after": snapshots[after].key, "layer": layer, "distance": distance.mean}
        )  # fmt: skip
    for end in ends:
        depth = 1 + max(row["layer"] for row in statistics[end].rows(""))
        matrix = [[0.0] * depth for _ in range(depth)]
        for (index, a, b), distance in layers.items():
            if index == end:
                matrix[a][b] = matrix[b][a] = distance.mean
        findings.between_layers[snapshots[end].key] = matrix
