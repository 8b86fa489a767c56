"""Generates docs/commands.md and the completion scripts from the commands.

`python -m dticli.command_reference` writes them into a source checkout; a test fails if they are out of date.
"""

from collections.abc import Iterator
from pathlib import Path

import typer
from typer.completion import get_completion_script

from dticli.cli import COMMANDS, app

WIDTH = 100
PAGE = "docs/commands.md"
SCRIPTS = {"bash": "dti.bash", "zsh": "_dti", "fish": "dti.fish", "powershell": "dti.ps1"}


def help_pages() -> Iterator[tuple[str, str]]:
    """Name and full help page of each command."""
    group = typer.main.get_command(app)
    root = group.make_context("dti", [next(iter(COMMANDS))], resilient_parsing=True, terminal_width=WIDTH)
    for name in COMMANDS:
        command = group.get_command(root, name).load()  # type: ignore[attr-defined]
        context = command.make_context(name, [], parent=root, resilient_parsing=True, terminal_width=WIDTH)
        yield f"dti {name}", command.full_help(context)


def reference() -> str:
    """The content of PAGE."""
    pages = "\n".join(f"## `{name}`\n\n```text\n{page.strip()}\n```\n" for name, page in help_pages())
    return (
        f"# Commands\n\nMade by `python -m dticli.command_reference` from the commands themselves.\n\n{pages}"
    )


def completions() -> dict[str, str]:
    """File name to completion script, for each shell."""
    return {
        file: get_completion_script(prog_name="dti", complete_var="_DTI_COMPLETE", shell=shell).strip() + "\n"
        for shell, file in SCRIPTS.items()
    }


def write(root: Path) -> None:
    """Write all generated files into a source checkout."""
    (root / PAGE).write_text(reference(), encoding="utf-8")
    for file, script in completions().items():
        (root / "completions" / file).write_text(script, encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).parents[1])
