"""Charts: well-formed SVG whose marks stand where the numbers say, and whose names stay text."""

import xml.etree.ElementTree as ElementTree

import pytest

from dticli import charts
from dticli.charts import Panel, Series

SPACE = "{http://www.w3.org/2000/svg}"


def drawn(*panels: Panel) -> ElementTree.Element:
    return ElementTree.fromstring(charts.svg(panels))


def test_points_stand_where_their_axes_say() -> None:
    """Each point's place, read back through the labels of the grid, gives its numbers, and so do the ends of its interval."""
    series = [
        Series("one", [(1.0, 10.0)], "points", [(0.5, 1.5, 8.0, 12.0)]),
        Series("two", [(3.0, 40.0)], "points"),
    ]
    root = drawn(Panel("t", "across", "up", series))
    labels = {text.text: text for text in root.iter(f"{SPACE}text")}

    def reader(axis: str, names: tuple[str, str], offset: float) -> tuple[float, float]:
        (low, high) = (float(labels[name].get(axis, "")) + offset for name in names)
        span = float(names[1]) - float(names[0])
        return span / (high - low), float(names[0]) - low * span / (high - low)

    circles = list(root.iter(f"{SPACE}circle"))
    kx, bx = reader("x", ("1", "3"), 0)
    ky, by = reader("y", ("10", "40"), -4)
    for circle, (x, y) in zip(circles, [(1.0, 10.0), (3.0, 40.0)], strict=True):
        assert kx * float(circle.get("cx", "")) + bx == pytest.approx(x, abs=0.02)
        assert ky * float(circle.get("cy", "")) + by == pytest.approx(y, abs=0.3)
    coloured = [line for line in root.iter(f"{SPACE}line") if line.get("stroke") == circles[0].get("fill")]
    assert [kx * float(coloured[0].get(end, "")) + bx for end in ("x1", "x2")] == pytest.approx(
        [0.5, 1.5], abs=0.02
    )
    assert [ky * float(coloured[1].get(end, "")) + by for end in ("y1", "y2")] == pytest.approx(
        [8, 12], abs=0.3
    )


def test_bars_stand_on_zero_and_lines_visit_every_point() -> None:
    """Bars' heights are in the ratio of their numbers; a mark stands at its own x; logarithmic axes space powers evenly."""
    root = drawn(
        Panel("bars", "x", "y", [Series("", [(0.0, 2.0), (1.0, 6.0)], "bars")], {"<dog>": 1.0}),
        Panel("lines", "x", "y", [Series("a", [(1.0, 5.0), (2.0, 6.0), (4.0, 5.0)]), Series("b", [(1.0, 0.0)])],
              logarithmic=True),
    )  # fmt: skip
    bars = [rect for rect in root.iter(f"{SPACE}rect") if rect.get("x")]
    heights = [float(bar.get("height", "")) for bar in bars]
    assert heights[1] / heights[0] == pytest.approx(3, abs=0.02)
    feet = [float(bar.get("y", "")) + float(bar.get("height", "")) for bar in bars]
    assert feet[0] == pytest.approx(feet[1], abs=0.11)
    mark = next(line for line in root.iter(f"{SPACE}line") if line.get("stroke-width") == "2")
    centre = float(bars[1].get("x", "")) + float(bars[1].get("width", "")) / 2
    assert float(mark.get("x1", "")) == pytest.approx(centre, abs=0.11)
    line = next(root.iter(f"{SPACE}polyline")).get("points", "")
    xs = [float(point.split(",")[0]) for point in line.split()]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)


def test_names_stay_text() -> None:
    """Markup and control characters of a file's name neither steer the page nor break it."""
    name = '</text><script>alert("1")</script>\x1b[2J & \N{RIGHT-TO-LEFT OVERRIDE}'
    root = drawn(Panel(name, name, name, [Series(name, [(0.0, 0.0)], "points")], {name: 0.0}))
    assert not list(root.iter(f"{SPACE}script"))
    shown = [text.text for text in root.iter(f"{SPACE}text")]
    assert sum('<script>alert("1")</script>[2J & ' in (each or "") for each in shown) == 5
