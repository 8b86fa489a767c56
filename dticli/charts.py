"""Charts as SVG text: panels of bars, lines and points, one below the other. Needs no library."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 320, 64, 16, 34, 46
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
"""Distinguishable with colour blindness (Okabe and Ito)."""


@dataclass(frozen=True)
class Series:
    """Data drawn in one colour under one name.

    Attributes:
        points: (x, y).
        kind: bars start at y = 0; points are labelled with the name, and several lines above the panel.
        spans: (low x, high x, low y, high y) of every point, drawn as error bars; empty for none.
    """

    name: str
    points: Sequence[tuple[float, float]]
    kind: Literal["bars", "line", "points"] = "line"
    spans: Sequence[tuple[float, float, float, float]] = ()


@dataclass(frozen=True)
class Panel:
    """A pair of axes.

    Attributes:
        marks: name to x of a vertical line.
        logarithmic: whether x is logarithmic, for x above 0.
    """

    title: str
    x: str
    y: str
    series: Sequence[Series]
    marks: Mapping[str, float] = field(default_factory=dict)
    logarithmic: bool = False


def svg(panels: Sequence[Panel]) -> str:
    """The text of an SVG file with all panels, one below the other."""
    height = HEIGHT * len(panels)
    parts = "\n".join(
        f'<g transform="translate(0 {HEIGHT * index})">\n' + "\n".join(_panel(panel)) + "\n</g>"
        for index, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12" fill="#222">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{parts}\n</svg>\n'
    )


def _panel(panel: Panel) -> Iterator[str]:
    points = [point for series in panel.series for point in series.points]
    spans = [span for series in panel.series for span in series.spans]
    xs = [x for x, _ in points] + [x for span in spans for x in span[:2]] + list(panel.marks.values())
    ys = [y for _, y in points] + [y for span in spans for y in span[2:]]
    if any(series.kind == "bars" for series in panel.series):
        ys.append(0.0)
    across = _scale(xs, LEFT, WIDTH - RIGHT, panel.logarithmic)
    up = _scale(ys, HEIGHT - BOTTOM, TOP)
    yield _text(LEFT, 18, panel.title, "font-weight='bold'")
    for value in _ticks(xs, panel.logarithmic):
        x = across(value)
        yield f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>'
        yield _text(x, HEIGHT - BOTTOM + 16, f"{value:.6g}", "text-anchor='middle'")
    for value in _ticks(ys):
        y = up(value)
        yield f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>'
        yield _text(LEFT - 6, y + 4, f"{value:.6g}", "text-anchor='end'")
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, panel.x, "text-anchor='middle'")
    middle = (TOP + HEIGHT - BOTTOM) / 2
    yield _text(14, middle, panel.y, f"text-anchor='middle' transform='rotate(-90 14 {middle})'")
    named = WIDTH - RIGHT
    for index, series in enumerate(panel.series):
        colour = COLOURS[index % len(COLOURS)]
        yield from _series(series, colour, across, up)
        if series.kind == "line" and len(panel.series) > 1:
            yield _text(named, 18, series.name, f"text-anchor='end' fill='{colour}'")
            named -= 8 * len(series.name) + 12
    for index, (name, value) in enumerate(panel.marks.items()):
        x, colour = across(value), COLOURS[(index + len(panel.series)) % len(COLOURS)]
        yield f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" stroke="{colour}" stroke-width="2"/>'
        side = ("end", -5) if x > WIDTH / 2 else ("start", 5)
        yield _text(x + side[1], TOP + 14 + 15 * index, name, f"text-anchor='{side[0]}' fill='{colour}'")


def _series(
    series: Series, colour: str, across: Callable[[float], float], up: Callable[[float], float]
) -> Iterator[str]:
    places = [(across(x), up(y)) for x, y in series.points]
    match series.kind:
        case "bars":
            width = max(1.0, (places[-1][0] - places[0][0]) / max(1, len(places) - 1))
            for x, y in places:
                yield f'<rect x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" height="{up(0) - y:.1f}" fill="{colour}"/>'
        case "line":
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        case "points":
            for x, y in places:
                yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
                side = ("end", -8) if x > 0.8 * WIDTH else ("start", 8)
                yield _text(x + side[1], y - 6, series.name, f"text-anchor='{side[0]}' fill='{colour}'")
    for (x, y), (left, right, low, high) in zip(places, series.spans, strict=False):
        for x1, y1, x2, y2 in ((across(left), y, across(right), y), (x, up(low), x, up(high))):
            yield f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _scale(
    values: Sequence[float], start: float, end: float, logarithmic: bool = False
) -> Callable[[float], float]:
    """A map from values to positions, with the least near `start` and the greatest near `end`."""
    along = math.log if logarithmic else float
    low, high = along(min(values)), along(max(values))
    room = (high - low) * 0.05 or max(abs(high), 1.0) * 0.05
    low, high = low - room, high + room
    return lambda value: start + (along(value) - low) / (high - low) * (end - start)


def _ticks(values: Sequence[float], logarithmic: bool = False) -> list[float]:
    """Round numbers within the values' range: at most seven, or all powers of two if logarithmic."""
    low, high = min(values), max(values)
    if logarithmic:
        return [2.0**power for power in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
    if low == high:
        return [low]
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(each for each in (1, 2, 5, 10) if each * power >= rough)
    return [
        round(index * step, 12) for index in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)
    ]


def _text(x: float, y: float, text: str, style: str) -> str:
    shown = "".join(letter for letter in text if letter.isprintable())
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(shown)}</text>'
