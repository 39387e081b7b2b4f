"""The picture of a model in docs/: throughput, p50 and p99 by the number of clients.

It is an SVG of 880 points, the width of a README on GitHub. It brings its own background, light or dark as the reader's system.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

from benchmarks.results import Curves, Summary

_WIDTH, _HEIGHT = 880, 400
_TOP, _BOTTOM = 140, 342
_PANELS, _PANEL_WIDTH = (18, 304, 590), 272
_AXIS, _NAMES = 50, 84
"""Points of a panel left of its lines, for the values of its axis, and right of them, for the names of the lines."""

_LINE_GAP = 17
"""Least points between two names."""

_INSET = 8
"""Points between the ends of an axis and the first and last number of clients."""

_STYLE = """\
text { font: 14px -apple-system, "Segoe UI", "Noto Sans", "Liberation Sans", Helvetica, Arial, sans-serif; fill: #1f2328 }
.title, .panel, .name { font-weight: 600 } .title { font-size: 19px } .panel { font-size: 16px } .name { font-size: 13px }
.quiet { fill: #59636e } .card { fill: #ffffff; stroke: #d1d9e0 } .grid { stroke: #d1d9e0 } .tick { stroke: #818b98 }
path { fill: none; stroke-width: 2.5; stroke-linejoin: round } .best, .one { stroke-width: 2 } .one { stroke-dasharray: 5 4 }
.runed { stroke: #0072b2 } .best { stroke: #c04e00 } .one { stroke: #6e7781 }
.dot { stroke-dasharray: none; fill: #ffffff } .dot.runed { fill: #0072b2 }
.name.runed { fill: #0072b2; stroke: none } .name.best { fill: #b34900; stroke: none } .name.one { fill: #59636e; stroke: none }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .quiet { fill: #9198a1 } .card { fill: #0d1117; stroke: #3d444d } .grid { stroke: #2f353d }
.tick { stroke: #656c76 } .runed { stroke: #56b4e9 } .best { stroke: #f0a030 } .one { stroke: #9198a1 }
.dot { fill: #0d1117 } .dot.runed { fill: #56b4e9 }
.name.runed { fill: #56b4e9 } .name.best { fill: #f0a030 } .name.one { fill: #9198a1 }
}"""
"""Blue, orange and grey differ also for the colour-blind. So do the shapes of the points and the dashes of the grey line."""

_Place = Callable[[float], float]
"""Returns the place of a value on an axis, in points."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a panel: its class in the style, its name, and its value by the number of clients."""

    kind: str
    name: str
    points: dict[int, float]


def draw(title: str, origin: str, curves: Curves) -> str:
    """Return the picture of a model as SVG. The same figures give the same text.

    Args:
        title: The name of the model.
        origin: The machine and the date.
        curves: The figures.
    """
    milliseconds = [[*_times(curves, "p50")], [*_times(curves, "p99")]]
    scale = _logarithmic(value for lines in milliseconds for line in lines for value in line.points.values())
    rates = [*_lines(curves, lambda summary: summary.rate)]
    panels = [
        _panel(_PANELS[0], "Texts per second", "more is better", rates, _linear(rates)),
        _panel(_PANELS[1], "Milliseconds, p50", "less is better", milliseconds[0], scale),
        _panel(_PANELS[2], "Milliseconds, p99", "less is better", milliseconds[1], scale),
    ]
    elements = [
        f'<rect class="card" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{_HEIGHT - 1}" rx="6"/>',
        _text(18, 36, title, "title"),
        _text(18, 60, f"Clients send one short text after the other to runed, or to raw llama-server. {origin}", "quiet"),
        *(element for panel in panels for element in panel),
    ]
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title figures">',
            f'<title id="title">{escape(title)}: throughput, p50 and p99 by the number of clients</title>',
            f'<desc id="figures">{escape(_in_words(curves))}</desc>',
            f"<style>\n{_STYLE}\n</style>",
            *elements,
            "</svg>\n",
        ]
    )


def _lines(curves: Curves, value: Callable[[Summary], float]) -> Iterator[_Line]:
    """Yield the lines of a panel. The last one is drawn over the others."""
    for kind, name, points in (
        ("one", "raw, 1 slot", curves.one_slot),
        ("best", f"raw, {curves.slots} slots", curves.best),
        ("runed", "runed", curves.runed),
    ):
        yield _Line(kind, name, {clients: value(summary) for clients, summary in points.items()})


def _times(curves: Curves, percentile: str) -> Iterator[_Line]:
    return _lines(curves, lambda summary: float(getattr(summary, percentile)) * 1000)


def _in_words(curves: Curves) -> str:
    """Return all figures, for those who cannot see the picture."""
    return " ".join(
        f"{name}: {'; '.join(f'{clients} clients {summary}' for clients, summary in points.items())}."
        for name, points in (
            ("runed", curves.runed),
            (f"Raw with {curves.slots} slots", curves.best),
            ("Raw with one slot", curves.one_slot),
        )
    )


def _panel(left: int, title: str, hint: str, lines: Sequence[_Line], scale: tuple[_Place, Sequence[float]]) -> Iterator[str]:
    begin, end = left + _AXIS, left + _PANEL_WIDTH - _NAMES
    up, ticks = scale
    counts = [*lines[0].points]
    step = (end - begin - 2 * _INSET) / (len(counts) - 1)
    across = {clients: begin + _INSET + number * step for number, clients in enumerate(counts)}
    yield _text(left, _TOP - 42, title, "panel")
    yield _text(left, _TOP - 21, hint, "quiet")
    for tick in ticks:
        yield f'<line class="grid" x1="{begin}" x2="{end}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>'
        yield _text(begin - 8, up(tick) + 5, f"{tick:,g}", "quiet", anchor="end")
    for clients, x in across.items():
        yield f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{_BOTTOM}" y2="{_BOTTOM + 5}"/>'
        yield _text(x, _BOTTOM + 22, str(clients), "quiet", anchor="middle")
    yield _text((begin + end) / 2, _BOTTOM + 43, "clients", "quiet", anchor="middle")
    for line in lines:
        places = [(across[clients], up(value)) for clients, value in line.points.items()]
        yield f'<path class="{line.kind}" d="M{" L".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'
        yield from (_dot(line.kind, x, y) for x, y in places)
    heights = _apart([up([*line.points.values()][-1]) for line in lines])
    for line, height in zip(lines, heights, strict=True):
        yield _text(end + 6, height + 5, line.name, f"name {line.kind}")


def _dot(kind: str, x: float, y: float) -> str:
    if kind == "runed":
        return f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
    if kind == "best":
        return f'<rect class="dot {kind}" x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"/>'
    return f'<path class="dot {kind}" d="M{x:.1f},{y - 4:.1f} l4,7 h-8 z"/>'


def _apart(heights: Sequence[float]) -> list[float]:
    """Move names apart that would cover each other."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = list(heights)
    for _ in heights:
        for upper, lower in pairwise(order):
            if (missing := _LINE_GAP - (moved[lower] - moved[upper])) > 0:
                moved[upper] -= missing / 2
                moved[lower] += missing / 2
    return moved


def _linear(lines: Iterable[_Line]) -> tuple[_Place, Sequence[float]]:
    """Return an axis from 0, with three to six values on it."""
    highest = max(value for line in lines for value in line.points.values())
    power = 10 ** math.floor(math.log10(highest))
    step = next(power * part for part in (0.2, 0.5, 1, 2) if highest / (power * part) <= 6)
    ticks = [step * number for number in range(math.ceil(highest / step) + 1)]
    return lambda value: _BOTTOM - (_BOTTOM - _TOP) * value / ticks[-1], ticks


def _logarithmic(values: Iterable[float]) -> tuple[_Place, Sequence[float]]:
    """Return a logarithmic axis, with some of the values 1, 2, 5, 10 and so on on it."""
    known = sorted(values)
    wide = known[-1] / known[0] > 300
    ticks = [part * 10**power for power in range(-3, 7) for part in ((1,) if wide else (1, 2, 5))]
    lowest = max(tick for tick in ticks if tick <= known[0])
    highest = min(tick for tick in ticks if tick >= known[-1])
    length = math.log(highest / lowest)
    return (
        lambda value: _BOTTOM - (_BOTTOM - _TOP) * math.log(value / lowest) / length,
        [tick for tick in ticks if lowest <= tick <= highest],
    )


def _text(x: float, y: float, words: str, kind: str, *, anchor: str = "start") -> str:
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{place}>{escape(words)}</text>'
