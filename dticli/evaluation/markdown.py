"""Tables of results as Markdown."""

from collections.abc import Iterable, Iterator, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A line for the head, for the rule below it, and for each row."""
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"
