"""A report as a single HTML file without scripts, which needs no network."""

from importlib import resources

from dticli.report.gathering import Report

TEMPLATE = "page.html.jinja"


def html(report: Report) -> str:
    """The page as HTML; all texts of the report are escaped."""
    from jinja2 import Environment, StrictUndefined

    source = resources.files("dticli.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source).render(report=report, sections=_sections(report)) + "\n"


def _sections(report: Report) -> list[tuple[str, str]]:
    """Anchors and titles of the sections that the page has."""
    there = {
        ("word", "The word"): True,
        ("film", "Previews"): bool(report.strips),
        ("gallery", "Gallery"): bool(report.strips),
        ("photos", "Photos"): bool(report.photos or report.photos_note),
        ("learning", "How it learned"): bool(report.charts),
        ("nearest", "Nearest words"): bool(report.nearest),
        ("norms", "Norms"): bool(report.histograms),
        ("evaluation", "Evaluation"): bool(report.evaluation),
        ("use", "How to use it"): True,
        ("settings", "Settings"): bool(report.settings),
        ("metadata", "Metadata"): True,
    }
    return [section for section, holds in there.items() if holds]
