"""How figures look, and their two forms: files (SVG, PNG) and SVG inside of a page.

Figures are drawn in a few named colours on white. Inside of a page the same SVG has the page's custom
properties in their place, so it follows the page's light or dark theme; its text is text, in the
page's font. A page has two drawings of a figure, for wide and for narrow windows.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID, SURFACE = "#1f2430", "#586070", "#e1e5eb", "#ffffff"
# Told apart also where colours aren't: each has its own dashes. At least 3:1 on white.
SERIES = ("#1d5fa8", "#c14f12", "#2a7d4f", "#8446a6", "#9a6b00", "#b0346a", "#0f7f86", "#5a5f6b")
DASHES = ("-", (0, (6, 2)), (0, (2, 1.4)), (0, (7, 2, 1.5, 2)))

_PROPERTIES = {INK: "ink", MUTED: "muted", GRID: "grid", SURFACE: "surface"} | {
    color: f"series-{index}" for index, color in enumerate(SERIES, start=1)
}
_RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "mslt-ds",  # the same figure is the same file
    "savefig.facecolor": SURFACE,
    "figure.facecolor": "none",
}


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn in any size.

    name: of its files; title: a few words; alt: what a reader sees in it, a sentence or two
    draw: fills a figure; height, narrow_height: inches, at a width of 8.6 and 3.9
    """

    name: str
    title: str
    alt: str
    draw: Callable[[Figure, bool], None]
    """(figure, whether it's the narrow form)."""
    height: float = 3.6
    narrow_height: float | None = None
    note: str = ""

    def write(self, folder: Path) -> None:
        """`<name>.svg` and `<name>.png` in `folder`."""
        with mpl.rc_context(_RC):
            figure = self._wide
            figure.savefig(
                folder / f"{self.name}.svg", metadata={"Date": None, "Title": self.title}
            )
            figure.savefig(folder / f"{self.name}.png", dpi=200)

    def inline(self) -> Markup:
        """Both forms as SVG elements; style sheets show one of them."""
        return Markup("\n").join(self._svg(narrow=narrow) for narrow in (False, True))

    @cached_property
    def _wide(self) -> Figure:
        return self._figure(narrow=False)

    def _figure(self, *, narrow: bool) -> Figure:
        size = (3.9, self.narrow_height or self.height) if narrow else (8.6, self.height)
        figure = Figure(figsize=size, layout="constrained")
        self.draw(figure, narrow)
        figure.draw_without_rendering()
        # The layout holds from here on; each form that is saved would compute it anew.
        figure.set_layout_engine("none")
        return figure

    def _svg(self, *, narrow: bool) -> Markup:
        out = io.StringIO()
        with mpl.rc_context(_RC):
            # No dates or paths, and no white rectangle.
            figure = self._figure(narrow=True) if narrow else self._wide
            figure.savefig(out, format="svg", facecolor="none", metadata={"Date": None})
        svg = out.getvalue()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
        kind = "narrow" if narrow else "wide"
        prefix = f"{self.name}-{kind}-"
        svg = re.sub(r'\bid="', f'id="{prefix}', svg)
        svg = re.sub(r'(href="#|url\(#)', rf"\1{prefix}", svg)
        for color, name in _PROPERTIES.items():
            svg = svg.replace(color, f"var(--{name})")
        svg = re.sub(r"font: ([\d.]+)px '[^;\"]*", r"font-size: \1px", svg)
        label = Markup.escape(self.alt)
        return Markup(
            svg.replace("<svg ", f'<svg class="{kind}" role="img" aria-label="{label}" ', 1)
        )


def style_of(index: int) -> dict:
    """Colour and dashes of series number `index`."""
    return {
        "color": SERIES[index % len(SERIES)],
        "linestyle": DASHES[index % len(DASHES)],
    }


def legend(figure: Figure, axes: Axes, narrow: bool) -> None:
    """The legend above the plot, so that it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) > 1:
        figure.legend(
            handles, labels, loc="outside upper left", ncols=2 if narrow else 4, fontsize=9,
            handlelength=2.4, columnspacing=1.4,
        )  # fmt: skip
