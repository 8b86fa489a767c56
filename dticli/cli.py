"""The table of commands, and the place where errors become a message and an exit code.

For a fast `dti --help`, the module of a command, which may import torch or pydantic, is imported only when the command runs or
its own help is shown.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Any, TypeGuard

import typer
from typer.core import TyperCommand, TyperGroup

from dticli import console, signals
from dticli.errors import DtiError, EnvironmentProblem, Stopped, is_out_of_memory
from dticli.paths import RUN
from dticli.version import __version__

WIDTH = 120
"""Greatest width of help, in columns."""

COMMANDS = {
    "train": "Learn a word from photos; writes a token file.",
    "generate": "Draw pictures with learned words.",
    "interpolate": "Draw the path from one learned word to another.",
    "mix": "Write a new word between several learned ones.",
    "compare": "Draw words and states of a run in one grid.",
    "best": "Find the best of a run's states, by judges.",
    "evaluate": "Evaluate words: likeness to photos, alignment with prompts.",
    "convert": "Write token files for other programs, rescale norms.",
    "report": "Write an HTML report about a word and its run.",
    "info": "Show what a token file contains, and where it loads.",
    "push": "Upload a word to the hub, with a card and pictures.",
    "inspect-norms": "Show vocabulary norms, and where a word lies.",
    "models": "List model families, or describe a model.",
    "doctor": "Check the installation, devices and hub.",
    "example": "Write five example photos of a subject to a folder.",
}

INTERRUPTED, TERMINATED = 130, 143


class _Lazy(TyperCommand):
    """A command whose module is imported when it is called."""

    def load(self) -> Any:
        """Import the command."""
        from dticli.help_page import GroupedCommand, with_all_behind

        assert self.name
        module = importlib.import_module(f"dticli.commands.{self.name.replace('-', '_')}")
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        app.command(self.name, cls=GroupedCommand)(with_all_behind(module.command))
        return typer.main.get_command(app)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        return self.load().make_context(*args, **kwargs)


class _Group(TyperGroup):
    """The commands of `COMMANDS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        match args:
            case ["help", *rest]:
                args = [*rest, "--help"]
            case ["version"]:
                args = ["--version"]
            case [run, *rest] if run.rstrip("/").endswith(RUN) and "--best" in rest:
                args = ["best", run, *(each for each in rest if each != "--best")]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in COMMANDS:
            return _Lazy(cmd_name, help=COMMANDS[cmd_name])
        import difflib

        if near := difflib.get_close_matches(cmd_name, COMMANDS, n=1):
            ctx.fail(f"no command {cmd_name!r}: did you mean {near[0]}?")
        return None


app = typer.Typer(
    cls=_Group,
    invoke_without_command=True,
    epilog="dti help COMMAND, or dti COMMAND --help, shows a command's options.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"dti {__version__}")
        raise typer.Exit


@app.callback()
def dti(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """Teach a text-to-image model a new word from a handful of photos, by Directional Textual Inversion."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; errors of users are printed as one line."""
    signals.install()
    console.listen()
    try:
        code = app(args=arguments, prog_name="dti", standalone_mode=False) or 0
        if code == INTERRUPTED:
            # Typer returns this code after Ctrl-C.
            console.stopped("stopped")
        with console.heard():
            pass
        return code
    except Stopped as error:
        console.stopped(str(error))
        return error.exit_code
    except DtiError as error:
        if console.tracebacks_shown():
            raise
        console.error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        console.stopped("stopped")
        return INTERRUPTED
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            # The reader of the help closed the pipe, which is not an error; Typer exits with another code.
            return 0
        if error.code == TERMINATED:
            console.stopped("stopped")
        raise
    except Exception as error:
        if is_out_of_memory(error) and not console.tracebacks_shown():
            console.error("out of memory: close other programs, or choose something smaller")
            return EnvironmentProblem.exit_code
        if _is_of_a_descriptor(error) and not console.tracebacks_shown():
            # Typer prints help and version itself.
            console.silence(sys.stdout)
            console.error(f"cannot write to standard output ({error.strerror}): send it somewhere else")
            return EnvironmentProblem.exit_code
        # Typer's usage errors come from its own copy of click, so they are recognised by their method, not by class.
        if not hasattr(error, "format_message") or console.tracebacks_shown():
            raise
        console.error(f"{_plain(error.format_message())}; see {_help_of(error)}")
        return 2


def _is_of_a_descriptor(error: Exception) -> TypeGuard[OSError]:
    """Whether an operation on an open descriptor failed; libraries also raise OSError, but without an errno."""
    return isinstance(error, OSError) and error.errno is not None and error.filename is None


def _plain(message: str) -> str:
    """A usage message, worded like other messages."""
    from dticli.settings import plain

    option, colon, reason = message.rstrip(".").partition("': ")
    return option + colon + plain(reason)


def _help_of(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context else "dti --help"
