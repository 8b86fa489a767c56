"""Charts: where their points lie, and what their axes say."""

import re
from xml.etree import ElementTree

import pytest

from dticli.report import charts
from dticli.report.charts import Line


def test_lines_lie_where_their_points_are() -> None:
    """The first point of a rising line is at the lower left of the frame, the last at the upper right, the middle between."""
    svg = ElementTree.fromstring(
        charts.lines([Line("a", [(0, 1.0), (5, 2.0), (10, 3.0)])], title="t", x="x", y="y")
    )
    (line,) = svg.iter("polyline")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
    top, bottom = charts.TOP, charts.HEIGHT - charts.BOTTOM
    assert points[0] == (left, bottom)
    assert points[1] == pytest.approx(((left + right) / 2, (top + bottom) / 2), abs=0.1)
    assert points[2] == (right, top)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 400, [0, 100, 200, 300, 400]),
        (0.012, 0.031, [0.015, 0.02, 0.025, 0.03]),
        (-3, 3, [-2, 0, 2]),
        (1, 1000001, [200000, 400000, 600000, 800000, 1000000]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    """One, two or five times a power of ten apart, and inside."""
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_a_chart_of_one_value_or_many_is_drawn() -> None:
    """A single point, a flat line and ten thousand points: numbers all, and no more points than a page can show."""
    for points in ([(1, 0.0)], [(1, 5.0), (2, 5.0)], [(step, step % 7.0) for step in range(10_000)]):
        svg = charts.lines([Line("a", points, [0.5] * len(points))], title="t", x="x", y="y")
        assert "nan" not in svg
        found = re.search(r'<polyline[^>]*points="([^"]*)"', svg)
        assert found
        assert len(found[1].split()) <= charts.POINTS + 1


def test_texts_of_strangers_stay_texts() -> None:
    """In titles, legends and marks."""
    bad = '"><script>alert(1)</script>'
    line = Line(bad, [(0, 1), (1, 2)])
    marks = [(bad, 0.5)]
    for svg in (
        charts.lines([line, line], title=bad, x=bad, y=bad),
        charts.histogram([1, 2], [0, 0.5, 1], marks, title=bad, x=bad),
    ):
        tree = ElementTree.fromstring(svg)
        assert {each.tag for each in tree.iter()} <= {"svg", "title", "line", "text", "polyline", "rect"}
        assert tree.attrib["aria-label"] == bad
