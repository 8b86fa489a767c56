"""Tables of results as Markdown."""

from collections.abc import Iterable, Iterator, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table: head, rule, and rows."""
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"
