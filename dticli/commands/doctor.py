"""`dti doctor`: is everything there?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from dticli import console
from dticli.errors import EnvironmentProblem
from dticli.options import Debug, Json

if TYPE_CHECKING:
    from dticli.doctor import Finding


@dataclass(frozen=True)
class Examined:
    """All findings, in the order of looking."""

    findings: "tuple[Finding, ...]"

    def lines(self) -> Iterator[str]:
        width = max(len(finding.name) for finding in self.findings)
        for finding in self.findings:
            advice = f"; {finding.advice}" if finding.advice else ""
            yield f"{finding.state:8}{finding.name:{width}}  {finding.found}{advice}"


def command(
    offline: Annotated[bool, typer.Option("--offline", help="Do not look for the hub.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check Python, torch, device, memory, versions, cache and hub, and say what to do.

    Example: dti doctor
    """
    from dticli import doctor

    findings = tuple(doctor.examine(offline=offline))
    console.show(Examined(findings), as_json=json)
    problems = [finding.name for finding in findings if finding.state == "problem"]
    if problems:
        raise EnvironmentProblem(f"{', '.join(problems)}: expected them to work; do what is said above")
