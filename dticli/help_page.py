"""Help of a command: first what a first run needs, and everything else in groups with `--help-all`.

The group of an option is its `rich_help_panel`, which Typer stores and which has no other use here.
"""

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from dticli.settings import Group

FEW = 14
"""A command with at most this many options always shows all of them."""
FIRST = (Group.REQUIRED, Group.COMMON)
PLAIN = {
    "<str>": "<text>",
    "<list[str]>": "<text>",
    "<list[Path]>": "<path>",
    "<int range>": "<int>",
    "<float range>": "<float>",
}
"""Typer's names of types to simpler ones; bounds are shown at the end of the help text."""
HELP_ALL = "help_all"


MAY_BE_EMPTY = frozenset({"--negative", "--preview-negative"})
"""Options whose value may be empty."""


class GroupedCommand(TyperCommand):
    """A command with help in groups, which refuses empty values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse empty values: they often come from unset shell variables, and would mean `.` or a default."""
        for before, arg in pairwise(["", *args]):
            option, _, value = arg.partition("=")
            name = option if option.startswith("--") and option != arg else before if not arg else None
            if name is not None and not value and name not in MAY_BE_EMPTY and not ctx.resilient_parsing:
                what = name if name.startswith("-") else "an argument"
                ctx.fail(
                    f"{what} is empty: expected a value; leave it out, or set the variable it comes from"
                )
        return super().parse_args(ctx, args)

    def full_help(self, ctx: typer.Context) -> str:
        """The help page with all groups."""
        ctx.meta[HELP_ALL] = True
        return self.get_help(ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        titles = ("Arguments", *Group)
        groups: dict[str, list[tuple[str, str]]] = {title: [] for title in titles}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                title = "Arguments" if param.param_type_name == "argument" else _group(param)
                name, text = record
                groups[title].append((_plain(name), text))
        short = any(param.name == HELP_ALL for param in self.params) and not ctx.meta.get(HELP_ALL)
        for title, records in groups.items():
            if records and (title in ("Arguments", *FIRST) or not short):
                with formatter.section(title):
                    formatter.write_dl(records)


def _plain(name: str) -> str:
    for kind, word in PLAIN.items():
        name = name.replace(kind, word)
    return name


def _group(option: Any) -> str:
    # Options without a group, such as --help, are common.
    return getattr(option, "rich_help_panel", None) or Group.COMMON


def with_all_behind(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command, with `--help-all` added if it has more than FEW options."""
    parameters = inspect.signature(command).parameters
    options = [each for each in parameters.values() if _is_option(each)]
    if len(options) <= FEW:
        return command

    def show(ctx: typer.Context, wanted: bool) -> None:
        if wanted:
            assert isinstance(ctx.command, GroupedCommand)
            print(ctx.command.full_help(ctx))
            raise typer.Exit

    flag = typer.Option("--help-all", is_eager=True, callback=show, help=f"Show all {len(options)} options.")

    def wrapped(**values: Any) -> Any:
        del values[HELP_ALL]
        return command(**values)

    extra = inspect.Parameter(
        HELP_ALL, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, flag]
    )
    wrapped.__signature__ = inspect.Signature([*parameters.values(), extra])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {name: each.annotation for name, each in parameters.items()} | {
        HELP_ALL: extra.annotation
    }
    wrapped.__doc__ = command.__doc__
    return wrapped


def _is_option(parameter: inspect.Parameter) -> bool:
    return any(
        type(each).__name__ == "OptionInfo" for each in getattr(parameter.annotation, "__metadata__", ())
    )
