"""The report's figures about runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter

from mslt_ds.analysis.comparison import LEFT_NATS, full_twin, running_median, stage_speeds
from mslt_ds.analysis.drawing import INK, MUTED, SERIES, SURFACE, Drawing, legend, style_of
from mslt_ds.analysis.run_tables import Runs, last_token_loss
from mslt_ds.report.record import RunRecord
from mslt_ds.telemetry.metrics import token_loss

_POINTS = 500  # of a curve at most; of more lines, the median of each few is drawn


def run_drawings(runs: Runs) -> list[Drawing]:
    """Those that the runs have numbers for."""
    drawings = [
        _loss(runs, over="steps"),
        _loss(runs, over="hours"),
        _speed_ups(runs),
        _wall_clock(runs),
        _rates(runs),
        _throughput(runs),
        *(_trust(label, run) for label, run in runs.items() if _has(run, "trust_ratio")),
    ]
    return [drawing for drawing in drawings if drawing is not None]


def _loss(runs: Runs, over: str) -> Drawing | None:
    if all(token_loss(line) is None for run in runs.values() for line in run.steps):
        return None
    entropies = {label: run.unigram_entropy for label, run in runs.items()}
    known = [value for value in entropies.values() if value is not None]
    ends = [
        f"{label} ended at {loss:.2f}"
        for label, run in runs.items()
        if (loss := last_token_loss(run)) is not None
    ]
    alt = (
        f"Training loss of {', '.join(runs)} against {over}; diamonds: held-out loss at each stage's end. "
        f"{'; '.join(ends) or 'No stage has ended'}."
        + (f" Unigram entropy: {known[0]:.2f} nats." if known else "")
    )

    def draw(figure: Figure, narrow: bool) -> None:
        axes, strip = figure.subplots(
            2, 1, sharex=True, height_ratios=[1, 0.055 * len(runs) + 0.04]
        )
        bottom, top = np.inf, -np.inf
        ends = [_positions(run, over)[-1] for run in runs.values() if run.steps]
        least = max(ends) * (0.06 if narrow else 0.02)
        for index, (label, run) in enumerate(runs.items()):
            x = _positions(run, over)
            y = np.array([_float(token_loss(line)) for line in run.steps])
            style = style_of(index)
            axes.plot(*_thin(x, y), color=style["color"], alpha=0.22, linewidth=0.8)
            smooth = np.array([_float(v) for v in running_median(list(y), max(9, len(y) // 20))])
            axes.plot(*_thin(x, smooth), **style, linewidth=1.8, label=label)
            ended = _held_out_points(run, over)
            axes.plot(*ended, "D", color=style["color"], markersize=6, markeredgecolor=SURFACE,
                      markeredgewidth=1.0, zorder=5)  # fmt: skip
            values = np.concatenate([smooth, ended[1]]) if len(ended[1]) else smooth
            if np.isfinite(values).any():
                bottom, top = min(bottom, np.nanmin(values)), max(top, np.nanmax(values))
            _stage_strip(strip, index, run, over, style["color"], least)
        for value in sorted(set(known)):
            axes.axhline(value, color=MUTED, linewidth=1.0, linestyle=(0, (1, 2)))
            axes.annotate("unigram entropy", (1, value), xycoords=("axes fraction", "data"),
                          xytext=(0, 3), textcoords="offset points", ha="right", va="bottom",
                          fontsize=8, color=MUTED, zorder=6,
                          bbox={"facecolor": SURFACE, "alpha": 0.75, "pad": 1, "linewidth": 0})  # fmt: skip
        if np.isfinite(bottom):
            # A first loss of ln(vocabulary) would leave the rest of the curve no room.
            ceiling = max([min(top, v + 1.2) for v in known] or [top])
            axes.set_ylim(bottom - 0.15, max(ceiling, bottom + 0.5) + 0.1)
        axes.set_ylabel("MLM loss (nats)")
        axes.xaxis.grid(False)
        strip.set(ylim=(len(runs) - 0.45, -0.55), yticks=[])
        unit, unit_name = _unit(max(run.total_training_seconds for run in runs.values()))
        strip.set_xlabel("step" if over == "steps" else f"training time ({unit_name})")
        strip.spines[["left"]].set_visible(False)
        strip.grid(False)
        if over == "steps":
            strip.xaxis.set_major_formatter(FuncFormatter(_thousands))
            strip.xaxis.set_major_locator(MaxNLocator(5 if narrow else 9))
        else:
            span = max(run.total_training_seconds for run in runs.values()) / unit
            ticks = MaxNLocator(5 if narrow else 9).tick_values(0, span)
            ticks = [tick for tick in ticks if 0 <= tick <= span]
            strip.set_xticks([tick * unit for tick in ticks], [f"{tick:g}" for tick in ticks])
        axes.tick_params(labelbottom=False, length=0)
        legend(figure, axes, narrow)

    return Drawing(
        f"loss_over_{over}",
        f"Loss against {'steps' if over == 'steps' else 'training time'}",
        alt,
        draw,
        height=4.2 + 0.15 * len(runs),
        note="Line: running median of the training loss (faint: every line). Diamond: held-out loss "
        "at a stage's end. Bars below: the stages, with their depth in layers; a hatched bar trains "
        "only its top layers."
        + (
            f" The plateau ends where the line falls {LEFT_NATS:g} nat below the entropy."
            if known
            else ""
        ),
    )


def _stage_strip(axes: Axes, row: int, run: RunRecord, over: str, color: str, least: float) -> None:
    """One bar for each stage that has begun, labelled with its depth if it's at least so wide."""
    x = _positions(run, over)
    for index, stage in enumerate(run.stages, start=1):
        inside = [i for i, line in enumerate(run.steps) if line.get("stage") == index]
        if not inside:
            continue
        left = x[inside[0] - 1] if inside[0] else 0.0
        right = x[inside[-1]]
        partly = bool(stage["frozen_layers"])
        axes.barh(row, right - left, left=left, height=0.74, facecolor=color, alpha=0.28 if partly else 0.55,
                  edgecolor=SURFACE, linewidth=1.2, hatch="////" if partly else None)  # fmt: skip
        if right - left >= least:
            axes.text((left + right) / 2, row, str(stage["depth"]), ha="center", va="center",
                      fontsize=7.5, color=INK)  # fmt: skip


def _speed_ups(runs: Runs) -> Drawing | None:
    bars = []
    for index, (label, run) in enumerate(runs.items()):
        speeds = stage_speeds(run, full_twin(run, list(runs.values())))
        bars += [(index, label, n, speed) for n, speed in enumerate(speeds, 1)]
    if not any(speed.measured for *_, speed in bars):
        return None
    told = [
        f"{label} stage {n}: {speed.measured:.2f}, ideal {speed.ideal:.2f}"
        for _, label, n, speed in bars
        if speed.measured
    ]

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        gap = 0
        ticks, names = [], []
        highest = max(max(s.measured or 0, s.ideal) for *_, s in bars)
        room = highest * (0.28 if narrow else 0.12)  # that the text takes
        for position, (index, label, n, speed) in enumerate(bars):
            if position and bars[position - 1][0] != index:
                gap += 0.7
            y = position + gap
            color = SERIES[index % len(SERIES)]
            axes.barh(y, speed.measured or 0.0, height=0.62, color=color)
            axes.plot([speed.ideal] * 2, [y - 0.4, y + 0.4], color=INK, linewidth=2,
                      label="ideal, by arithmetic" if position == 0 else None)  # fmt: skip
            text = "not measured" if speed.measured is None else f"{speed.measured:.2f}x"
            measured = speed.measured or 0.0
            meets = measured <= speed.ideal < measured + room  # the text would stand on the line
            axes.annotate(text, (speed.ideal if meets else measured, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9)  # fmt: skip
            ticks.append(y)
            names.append(f"{_short(label, narrow)}, {n}")
        axes.set_yticks(ticks, names)
        axes.invert_yaxis()
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        axes.axvline(1, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.set_xlabel("times as fast as a step of the whole model, per instance")
        if narrow:
            axes.set_xlabel("speed-up per instance")
        axes.set_xlim(0, highest * 1.18)

    return Drawing(
        "speed_ups",
        "Speed-up of each stage",
        f"Bars: measured speed-up of each stage; {'; '.join(told)}.",
        draw,
        height=1.1 + 0.34 * len(bars) + 0.2 * len(runs),
        note="Bar: measured. Line across it: ideal, by the layers' arithmetic alone.",
    )


def _wall_clock(runs: Runs) -> Drawing | None:
    parts = {label: run.wall_clock() for label, run in runs.items()}
    names = [name for name in next(iter(parts.values())) if any(p[name] for p in parts.values())]
    if not names:
        return None
    told = [
        f"{label}: "
        + ", ".join(
            f"{name} {part[name] / max(sum(part.values()), 1e-9):.0%}"
            for name in names
            if part[name]
        )
        for label, part in parts.items()
    ]

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        unit, unit_name = _unit(max(sum(part.values()) for part in parts.values()))
        for row, part in enumerate(parts.values()):
            left = 0.0
            for index, name in enumerate(names):
                axes.barh(row, part[name] / unit, left=left, height=0.6, facecolor=SERIES[index % len(SERIES)],
                          edgecolor=SURFACE, linewidth=1, label=name if row == 0 else None)  # fmt: skip
                left += part[name] / unit
        axes.set_yticks(range(len(parts)), [_short(label, narrow) for label in parts])
        axes.invert_yaxis()
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"wall-clock {unit_name}")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=1 if narrow else 3, fontsize=9)  # fmt: skip

    return Drawing(
        "wall_clock",
        "Where the time went",
        f"Stacked bars of wall-clock time. {'; '.join(told)}.",
        draw,
        height=1.5 + 0.42 * len(runs),
        narrow_height=2.3 + 0.42 * len(runs),
    )


_Panel = tuple[str, Callable[[RunRecord], np.ndarray], bool]
"""The label of an axis, the values of a run's lines, and whether the axis is logarithmic."""


def _panels(
    runs: Runs, name: str, title: str, what: str, panels: Sequence[_Panel], note: str = ""
) -> Drawing | None:
    """Curves over steps, one small plot for each quantity that any run has."""
    shown = [
        panel for panel in panels if any(np.isfinite(panel[1](r)).any() for r in runs.values())
    ]
    if not shown:
        return None

    def draw(figure: Figure, narrow: bool) -> None:
        all_axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (label, values, logarithmic) in zip(all_axes, shown, strict=True):
            for index, (run_label, run) in enumerate(runs.items()):
                y = values(run)
                if np.isfinite(y).any():
                    x = _positions(run, "steps")
                    axes.plot(*_thin(x, y), **style_of(index), linewidth=1.4, label=run_label)
            axes.set_title(label)
            if logarithmic:
                axes.set_yscale("log")
                axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_locator(_few_ticks(logarithmic))
            axes.yaxis.set_major_formatter(FuncFormatter(_si))
        all_axes[-1].set_xlabel("step")
        all_axes[-1].xaxis.set_major_formatter(FuncFormatter(_thousands))
        all_axes[-1].xaxis.set_major_locator(MaxNLocator(5 if narrow else 9))
        legend(figure, all_axes[0], narrow)

    described = ", ".join(label for label, *_ in shown)
    return Drawing(
        name, title, f"{what} of {', '.join(runs)} over the steps: {described}.", draw,
        height=0.9 + 1.55 * len(shown), note=note,
    )  # fmt: skip


def _rates(runs: Runs) -> Drawing | None:
    def scale(run: RunRecord) -> np.ndarray:
        """Left out where it never differs from 1, which it does in fp16 alone."""
        values = _values("loss_scale", run)
        return values if (values != 1).any() else values * np.nan

    return _panels(
        runs,
        "learning_rate_and_gradient",
        "Learning rate, gradient norm, loss scale",
        "Settings and state of the optimizer",
        [
            ("learning rate", partial(_values, "learning_rate"), False),
            ("gradient norm, before clipping", partial(_values, "grad_norm"), True),
            ("loss scale", scale, True),
        ],
    )


def _throughput(runs: Runs) -> Drawing | None:
    def tokens(run: RunRecord) -> np.ndarray:
        counted = _values("tokens_per_second", run)
        if np.isfinite(counted).any():
            return counted
        lengths = [run.stages[line.get("stage", 1) - 1]["seq_length"] for line in run.steps]
        return (
            _values("sequences_per_second", run) * np.array(lengths or [np.nan])[: len(run.steps)]
        )

    def memory(run: RunRecord) -> np.ndarray:
        on_gpu = _values("cuda_memory_peak", run)
        return on_gpu if np.isfinite(on_gpu).any() else _values("memory", run)

    return _panels(
        runs,
        "throughput",
        "Throughput, communication, memory",
        "Speed and size",
        [
            ("tokens a second", tokens, False),
            ("model FLOP utilisation", partial(_values, "mfu"), False),
            ("gradient elements reduced a step", partial(_values, "elements_reduced"), False),
            ("memory of rank 0 (bytes)", memory, False),
        ],
    )


def _trust(label: str, run: RunRecord) -> Drawing:
    lines = [line for line in run.steps if line.get("trust_ratio")]
    names = list(dict.fromkeys(name for line in lines for name in line["trust_ratio"]))
    numbered = [name for name in names if name.rpartition("_")[2].isdigit()]
    numbered.sort(key=lambda name: int(name.rpartition("_")[2]), reverse=True)
    names = [*(n for n in names if n not in numbered and n != "embeddings"), *numbered,
             *(n for n in names if n == "embeddings")]  # fmt: skip
    values = np.array(
        [
            [_float(line["trust_ratio"].get(name, {}).get("median")) for line in lines]
            for name in names
        ]
    )
    ends = [f"{name} {row[np.isfinite(row)][-1]:.3g}" for name, row in zip(names, values, strict=True) if np.isfinite(row).any()]  # fmt: skip

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        steps = np.array([line["step"] for line in lines], float)
        thin = [_thin(steps, row)[1] for row in values]
        x = _thin(steps, values[0])[0]
        mesh = axes.pcolormesh(
            x, np.arange(len(names)), np.array(thin), shading="nearest", cmap="cividis",
            norm="log", rasterized=True,
        )  # fmt: skip
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.grid(False)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        bar = figure.colorbar(
            mesh, ax=axes, location="top" if narrow else "right", aspect=30,
            ticks=LogLocator(subs=(1, 2, 5)), format=FuncFormatter(lambda value, _: f"{value:g}"),
        )  # fmt: skip
        bar.outline.set_visible(False)
        bar.minorticks_off()
        bar.ax.tick_params(labelsize=8)

    return Drawing(
        f"trust_ratios_{file_name(label)}",
        f"LAMB's trust ratios, {label}",
        f"Median trust ratio of each layer of {label} over the steps, as colours. Last: {', '.join(ends)}.",
        draw,
        height=1.1 + 0.3 * len(names),
        narrow_height=1.7 + 0.3 * len(names),
        note="The median over the layer's parameters; empty: the layer didn't train.",
    )


# ---- values ------------------------------------------------------------------------------------


def _values(key: str, run: RunRecord) -> np.ndarray:
    return np.array([_float(line.get(key)) for line in run.steps])


def _float(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _has(run: RunRecord, key: str) -> bool:
    return any(line.get(key) is not None for line in run.steps)


def _positions(run: RunRecord, over: str) -> np.ndarray:
    if over == "steps":
        return np.array([line["step"] + 1 for line in run.steps], float)
    return np.array(run.training_seconds)


def _held_out_points(run: RunRecord, over: str) -> tuple[np.ndarray, np.ndarray]:
    """Where and how high the held-out losses are."""
    found = []
    x = _positions(run, over)
    for index, end in run.stage_ends.items():
        loss = token_loss(end)
        inside = [i for i, line in enumerate(run.steps) if line.get("stage") == index]
        if loss is not None and inside:
            found.append((x[inside[-1]], loss))
    return np.array([a for a, _ in found]), np.array([b for _, b in found])


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_POINTS` points: the median of every few."""
    each = -(-len(x) // _POINTS) if len(x) else 1
    if each == 1:
        return x, y
    pad = -len(x) % each
    rows = [np.concatenate([v, np.full(pad, np.nan)]).reshape(-1, each) for v in (x, y)]
    empty = ~np.isfinite(rows[1]).any(1)
    rows[1][empty] = 0.0
    medians = np.nanmedian(rows[1], 1)
    medians[empty] = np.nan
    return np.nanmax(rows[0], 1), medians


def _unit(seconds: float) -> tuple[float, str]:
    """A unit that suits a duration, in seconds, and its name."""
    if seconds >= 7200:
        return 3600.0, "hours"
    return (60.0, "minutes") if seconds >= 120 else (1.0, "seconds")


def _few_ticks(logarithmic: bool) -> Locator:
    return LogLocator(subs=(1, 2, 5)) if logarithmic else MaxNLocator(4)


def _thousands(value: float, _: int) -> str:
    return f"{value:,.0f}"


def _si(value: float, _: int) -> str:
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g}{prefix}"
    return f"{value:g}"


def _short(label: str, narrow: bool) -> str:
    return label if not narrow or len(label) <= 14 else f"{label[:13]}…"


def file_name(label: str) -> str:
    """A label as part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in label)
