"""Figures and tables of attention, for the page of `mslt-ds attention` and for the report."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mslt_ds.analysis.drawing import Drawing
from mslt_ds.analysis.page import Section
from mslt_ds.analysis.table import MISSING, Table, make_table, number
from mslt_ds.errors import RecipeError
from mslt_ds.json_object import read_object

if TYPE_CHECKING:
    from mslt_ds.analysis.attention import Findings

ATTENTION_FILE = "attention.json"
_NAMES = {
    "cls": "on [CLS]", "sep": "on [SEP]", "self": "on itself", "previous": "on the one before",
    "next": "on the one after", "entropy": "entropy (nats)", "distance": "distance (tokens)",
}  # fmt: skip
_CMAP = "cividis"


def read_findings(folder: Path) -> Findings:
    """What `mslt-ds attention --output folder` wrote; RecipeError if there is nothing."""
    from mslt_ds.analysis.attention import Findings

    path = folder / ATTENTION_FILE if folder.is_dir() else folder
    try:
        return Findings(**read_object(path))
    except (OSError, ValueError, TypeError) as error:
        raise RecipeError(
            f"--attention: {folder}: no {ATTENTION_FILE} that can be read; name the --output of "
            "`mslt-ds attention`"
        ) from error


def attention_section(
    findings: Findings, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> Section:
    """All figures and tables. layers, heads: from 0, to draw maps of; None: a good choice."""
    last = findings.last()
    depth, all_heads = len(findings.maps[last]), len(findings.maps[last][0])
    layers = list(layers) if layers else sorted({0, depth - 1})
    heads = list(heads) if heads else list(range(min(4, all_heads)))
    parts: list[Drawing | Table] = [
        _maps(
            findings,
            "bottom_and_top",
            f"Layers side by side, {findings.labels[last]}",
            [(last, layer, f"layer {layer + 1}") for layer in layers],
            heads,
        )
    ]
    if findings.stacking:
        moments = [(m["key"], m["layer"], m["label"]) for m in findings.stacking]
        parts.append(
            _maps(findings, "around_stacking", "One layer before stacking, after it, and later", moments, heads,
                  note="A stacked layer begins as a copy of the layer below it, and reads another input.")
        )  # fmt: skip
    common = min(len(maps) for maps in findings.maps.values()) - 1
    if len(findings.labels) > 1:
        moments = [(key, common, label) for key, label in findings.labels.items()]
        parts.append(
            _maps(findings, "over_stages", f"Layer {common + 1} at the end of each stage", moments, heads)
        )  # fmt: skip
    parts += [_statistics(findings, last), _summary_table(findings)]
    if findings.between_layers:
        parts += [_between_layers(findings), _between_layers_table(findings)]
    if findings.between_stages:
        parts.append(_between_stages(findings))
    over = (
        f"Statistics are means over {findings.sequences:,} held-out sequences."
        if findings.sequences
        else "Statistics are of the sentence alone; --store measures them over held-out text."
    )
    return Section("Attention", text=over, parts=parts)


def one_of_several(findings: Findings, title: str, tag: str) -> Section:
    """`attention_section` on a page of others. tag: what makes its names of files unlike theirs"""
    section = attention_section(findings)
    parts = [replace(part, name=f"attention_{tag}_{part.name}") for part in section.parts]
    return Section(f"Attention of {title}", section.text, parts)


def heads_csv(findings: Findings) -> str:
    """One line for each model, layer and head, counted from 1."""
    out = io.StringIO()
    writer = csv.DictWriter(out, ["model", "layer", "head", *_NAMES], lineterminator="\n")
    writer.writeheader()
    for row in findings.heads:
        numbers = {"layer": row["layer"] + 1, "head": row["head"] + 1}
        values = {name: row[name] for name in _NAMES}
        writer.writerow({"model": row["snapshot"]} | numbers | values)
    return out.getvalue()


def _maps(
    findings: Findings,
    name: str,
    title: str,
    moments: list[tuple[str, int, str]],
    heads: list[int],
    note: str = "",
) -> Drawing:
    """A map for each moment (key, layer, label) and head: in a wide window the more of the two side by side,
    in a narrow one two heads."""
    maps = [
        [np.array(findings.maps[key][layer][head]) for head in heads] for key, layer, _ in moments
    ]
    most = np.max(maps)
    rows, columns = sorted((len(moments), len(heads)))

    def draw(figure: Figure, narrow: bool) -> None:
        shown = heads[:2] if narrow else heads
        heads_across = narrow or len(heads) > len(moments)
        shape = (len(moments), len(shown)) if heads_across else (len(shown), len(moments))
        grid = figure.subplots(*shape, squeeze=False)
        for row, column in np.ndindex(*shape):
            of_moment, of_head = (row, column) if heads_across else (column, row)
            names = moments[of_moment][2].replace(", ", "\n"), f"head {shown[of_head] + 1}"
            above, beside = names[::-1] if heads_across else names
            axes: Axes = grid[row, column]  # type: ignore[assignment]
            weights = maps[of_moment][of_head]
            _map(axes, weights, most, findings.tokens, left=column == 0, bottom=row == shape[0] - 1)
            if row == 0:
                axes.set_title(above, loc="center", fontsize=9)
            if column == 0:
                axes.set_ylabel(beside, fontsize=9)

    described = "; ".join(
        f"{label}: {_words(findings, key, layer, heads)}" for key, layer, label in moments
    )
    return Drawing(
        name,
        title,
        f"Attention maps of the sentence. {described}.",
        draw,
        height=0.9 + min(2.6, 7.9 / columns) * rows,
        narrow_height=0.9 + 1.6 * len(moments),
        note="Row: the token that looks; column: the one looked at. Colours: the square root of the attention, "
        f"from 0 (dark) to {most:.0%} (bright). {note}".strip(),
    )


def _words(findings: Findings, key: str, layer: int, heads: list[int]) -> str:
    """Where most of the attention goes, for those who don't see the map."""
    p = np.array(findings.maps[key][layer])[heads].mean(0)
    top = int(p.mean(0).argmax())
    return f"{p.diagonal().mean():.0%} on the token itself, most on “{findings.tokens[top]}” ({p[:, top].mean():.0%})"


def _map(
    axes: Axes, p: np.ndarray, most: float, tokens: list[str], *, left: bool, bottom: bool
) -> None:
    axes.pcolormesh(np.sqrt(p), cmap=_CMAP, vmin=0, vmax=np.sqrt(most), rasterized=True)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    ticks = np.arange(len(tokens)) + 0.5
    size = 6.5 if len(tokens) <= 16 else 5
    few = len(tokens) <= 32
    axes.set_yticks(ticks if few and left else [], tokens if few and left else [], fontsize=size)
    axes.set_xticks(ticks if few and bottom else [], tokens if few and bottom else [], fontsize=size, rotation=90)  # fmt: skip
    axes.tick_params(length=0, pad=1)


def _statistics(findings: Findings, key: str) -> Drawing:
    rows = [row for row in findings.heads if row["snapshot"] == key]
    depth = 1 + max(row["layer"] for row in rows)
    heads = 1 + max(row["head"] for row in rows)
    grids = {name: np.zeros((depth, heads)) for name in _NAMES}
    for row in rows:
        for name in _NAMES:
            grids[name][row["layer"], row["head"]] = row[name]

    def draw(figure: Figure, narrow: bool) -> None:
        columns = 2 if narrow else 4
        all_axes = figure.subplots(-(-len(_NAMES) // columns), columns, squeeze=False).ravel()
        for axes in all_axes[len(_NAMES) :]:
            axes.set_visible(False)
        for axes, (name, label) in zip(all_axes, _NAMES.items(), strict=False):
            mesh = _matrix(axes, grids[name])
            axes.set_title(label, fontsize=9)
            axes.set_xlabel("head", fontsize=8)
            axes.set_ylabel("layer", fontsize=8)
            bar = figure.colorbar(mesh, ax=axes, aspect=18, pad=0.03)
            bar.outline.set_visible(False)  # type: ignore[operator]
            bar.ax.tick_params(labelsize=7)

    means = ", ".join(f"{label} {grids[name].mean():.2f}" for name, label in _NAMES.items())
    return Drawing(
        "head_statistics", f"What each head looks at, {findings.labels[key]}",
        f"Layers by heads, as colours, top layer above. Means over all heads: {means}.", draw,
        height=1.2 + 0.36 * max(depth, 4), narrow_height=2.0 + 0.9 * max(depth, 4),
    )  # fmt: skip


def _matrix(axes: Axes, values: np.ndarray, most: float | None = None) -> Any:
    """Cells with layers from the bottom up. most: of the brightest colour; None: the largest value."""
    mesh = axes.pcolormesh(values, cmap=_CMAP, vmin=0, vmax=most, rasterized=True)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    for axis, count in ((axes.xaxis, values.shape[1]), (axes.yaxis, values.shape[0])):
        each = max(1, -(-count // 12))
        axis.set_ticks(np.arange(0, count, each) + 0.5, [str(i + 1) for i in range(0, count, each)])
        axis.set_tick_params(length=0, labelsize=7)
    return mesh


def _summary_table(findings: Findings) -> Table:
    rows = []
    for key, label in findings.labels.items():
        of_model = [row for row in findings.heads if row["snapshot"] == key]
        for layer in sorted({row["layer"] for row in of_model}):
            means = [
                fmean(row[name] for row in of_model if row["layer"] == layer) for name in _NAMES
            ]
            rows.append([label, str(layer + 1), *(number("{:.3f}", mean) for mean in means)])
    return make_table(
        "attention_layers", "What each layer looks at: means over its heads",
        ["model", "layer", *_NAMES.values()], rows,
        "Each head's values are in heads.csv.",
    )  # fmt: skip


def _between_layers(findings: Findings) -> Drawing:
    found = {findings.labels[key]: np.array(v) for key, v in findings.between_layers.items()}
    told = [
        f"{label}: {', '.join(f'{i + 1} and {i + 2} {v:.2f}' for i, v in enumerate(values.diagonal(1)))}"
        for label, values in found.items()
    ]

    most = max(values.max() for values in found.values())

    def draw(figure: Figure, narrow: bool) -> None:
        # A place in a wide window stays empty where there is no twin.
        grid = figure.subplots(*((len(found), 1) if narrow else (1, 2)), squeeze=False).ravel()
        for axes in grid[len(found) :]:
            axes.set_visible(False)
        for axes, (label, values) in zip(grid, found.items(), strict=False):
            mesh = _matrix(axes, values, most)
            axes.set_aspect("equal")
            axes.set_title(label, fontsize=9)
            axes.set(xlabel="layer", ylabel="layer")
            bar = figure.colorbar(mesh, ax=axes, aspect=25)
            bar.outline.set_visible(False)  # type: ignore[operator]

    return Drawing(
        "between_layers",
        "How far layers are apart",
        f"Jensen-Shannon distance of each two layers, as colours. Neighbours: {'; '.join(told)}.",
        draw, height=3.4, narrow_height=3.4 * len(found),
        note="Jensen-Shannon distance between heads of the same number, averaged: 0 equal, 1 no token in common.",
    )  # fmt: skip


def _between_layers_table(findings: Findings) -> Table:
    """The numbers of `_between_layers`, which a picture doesn't tell."""
    depth = max(len(values) for values in findings.between_layers.values())
    rows = [
        [findings.labels[key], str(layer + 1), *(number("{:.3f}", value) for value in values)]
        + [MISSING] * (depth - len(values))
        for key, matrix in findings.between_layers.items()
        for layer, values in enumerate(matrix)
    ]
    return make_table(
        "between_layers", "The distances between layers",
        ["model", "layer", *(f"layer {layer + 1}" for layer in range(depth))], rows,
        "Jensen-Shannon distance between heads of the same number, averaged: 0 equal, 1 no token in common.",
    )  # fmt: skip


def _between_stages(findings: Findings) -> Table:
    pairs = list(dict.fromkeys((row["before"], row["after"]) for row in findings.between_stages))
    values = {
        (row["before"], row["after"], row["layer"]): row["distance"]
        for row in findings.between_stages
    }
    depth = 1 + max(row["layer"] for row in findings.between_stages)
    rows = [
        [f"layer {layer + 1}", *(number("{:.3f}", values.get((*pair, layer))) for pair in pairs)]
        for layer in range(depth)
    ]
    frozen = [
        f"{findings.labels[after]}: {findings.frozen[after]}"
        for _, after in pairs
        if after in findings.frozen
    ]
    return make_table(
        "between_stages",
        "How far each layer moved from one stage's end to the next one's",
        ["", *(f"{findings.labels[a]} to {findings.labels[b].removeprefix('stage ')}" for a, b in pairs)],
        rows,
        "Jensen-Shannon distance, 0 to 1. A frozen layer doesn't move; the last columns tell whether it stays "
        "what it was once everything trains again."
        + (f" Frozen layers: {', '.join(frozen)}." if frozen else ""),
    )  # fmt: skip
