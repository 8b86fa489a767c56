"""Line charts and histograms as SVG, with colours from the page's style sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 40
POINTS = 400
"""Lines with more points are thinned out, because the page is not wider."""


@dataclass(frozen=True)
class Line:
    """A series.

    Attributes:
        points: (x, y), with increasing x.
        band: half the height of the band around each point; empty for none.
    """

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[float] = ()


@dataclass(frozen=True)
class _Frame:
    """Maps data to pixels."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> str:
        return f"{self.across(x):.1f},{self.down(y):.1f}"

    def across(self, x: float) -> float:
        low, high = self.x
        return LEFT + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def down(self, y: float) -> float:
        low, high = self.y
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def lines(series: Sequence[Line], *, title: str, x: str, y: str) -> Markup:
    """Lines over a common x axis, with their bands, and a legend if there are several lines."""
    shown = [_thinned(each) for each in series]
    # A band may be far wider than its line wanders: the line decides the frame, with room for most of the band.
    edges = [
        value + sign * half
        for each in shown
        for (_, value), half in zip(each.points, each.band or [0.0] * len(each.points), strict=True)
        for sign in (-1, 1)
    ]
    frame = _Frame(_span([point[0] for each in shown for point in each.points]), _span(edges))
    parts = [_axes(frame, x, y)]
    for index, each in enumerate(shown):
        if each.band:
            above = [frame.at(px, py + half) for (px, py), half in zip(each.points, each.band, strict=True)]
            below = [frame.at(px, py - half) for (px, py), half in zip(each.points, each.band, strict=True)]
            parts.append(
                Markup('<polygon class="band c{}" points="{}"/>').format(
                    index, " ".join([*above, *below[::-1]])
                )
            )
        points = " ".join(frame.at(*point) for point in each.points)
        parts.append(Markup('<polyline class="line c{}" points="{}"/>').format(index, points))
    if len(shown) > 1:
        parts.append(_legend([each.name for each in shown]))
    return _svg(title, parts)


def histogram(
    counts: Sequence[int], edges: Sequence[float], marks: Sequence[tuple[str, float]], *, title: str, x: str
) -> Markup:
    """Bars of counts between edges, and a labelled vertical line at each mark.

    Args:
        edges: one more than `counts`.
        marks: (label, x).
    """
    places = [*edges, *(value for _, value in marks)]
    frame = _Frame(_span(places), (0.0, max(counts) * 1.05))
    parts = [_axes(frame, x, "rows")]
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        start, end, top = frame.across(left), frame.across(right), frame.down(count)
        parts.append(
            Markup('<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
                start, top, max(end - start - 0.5, 0.5), HEIGHT - BOTTOM - top
            )
        )
    for index, (name, value) in enumerate(marks):
        place = frame.across(value)
        anchor, aside = ("end", place - 4) if place > WIDTH / 2 else ("start", place + 4)
        parts.append(
            Markup(
                '<line class="line c1" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>'
                '<text x="{3:.1f}" y="{4}" text-anchor="{5}">{6}</text>'
            ).format(place, TOP, HEIGHT - BOTTOM, aside, TOP + 10 + 13 * index, anchor, name)
        )
    return _svg(title, parts)


def _svg(title: str, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>{}</svg>'
    ).format(WIDTH, HEIGHT, title, title, Markup("").join(parts))


def _axes(frame: _Frame, x: str, y: str) -> Markup:
    bottom = HEIGHT - BOTTOM
    parts = [
        Markup('<line class="axis" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>').format(LEFT, WIDTH - RIGHT, bottom)
    ]
    for value in ticks(*frame.x):
        parts.append(
            Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                frame.across(value), bottom + 14, f"{value:g}"
            )
        )
    for value in ticks(*frame.y):
        place = frame.down(value)
        parts.append(
            Markup(
                '<line class="grid" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>'
                '<text x="{3}" y="{4:.1f}" text-anchor="end">{5}</text>'
            ).format(LEFT, WIDTH - RIGHT, place, LEFT - 6, place + 4, f"{value:g}")
        )
    parts.append(
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x
        )
    )
    middle = (TOP + bottom) / 2
    parts.append(
        Markup('<text transform="rotate(-90)" x="{}" y="12" text-anchor="middle">{}</text>').format(
            -middle, y
        )
    )
    return Markup("").join(parts)


def _legend(names: Sequence[str]) -> Markup:
    parts, place = [], LEFT + 8
    for index, name in enumerate(names):
        parts.append(
            Markup(
                '<line class="line c{0}" x1="{1}" x2="{2}" y1="{3}" y2="{3}"/><text x="{4}" y="{5}">{6}</text>'
            ).format(index, place, place + 18, TOP + 6, place + 22, TOP + 10, name)
        )
        place += 34 + 7 * len(str(escape(name)))
    return Markup("").join(parts)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` + 1 round numbers from `low` to `high`, in steps of 1, 2 or 5 times a power of ten."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(each for each in (1, 2, 5, 10) if (high - low) / (step * each) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Least and greatest value, widened if they are equal."""
    low, high = min(values), max(values)
    if high > low:
        return low, high
    room = abs(low) / 2 or 0.5
    return low - room, high + room


def _thinned(line: Line) -> Line:
    every = -(-len(line.points) // POINTS)
    if every <= 1:
        return line
    chosen = sorted({*range(0, len(line.points), every), len(line.points) - 1})
    band = [line.band[index] for index in chosen] if line.band else ()
    return Line(line.name, [line.points[index] for index in chosen], band)
