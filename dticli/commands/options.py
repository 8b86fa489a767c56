"""Command-line options generated from `settings`, which defines name, type, range, help and default."""

import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import annotated_types
import typer
from pydantic.fields import FieldInfo

from dticli import console, files
from dticli.commands import completion
from dticli.errors import UsageError
from dticli.settings import ANY_SEED, GenerateSettings, Group, ModelSettings, Settings, model_layer, resolve

if TYPE_CHECKING:
    from dticli.words.base_model import Opened

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=Group.OUTPUT)]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Show the traceback of an error.",
        callback=console.show_tracebacks,
        rich_help_panel=Group.OUTPUT,
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Overwrite existing files.", rich_help_panel=Group.OUTPUT)
]
Base = Annotated[str | None, typer.Option(help=str(ModelSettings.model_fields["base"].description))]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.", rich_help_panel=Group.OUTPUT)]
Noun = Annotated[
    str | None,
    typer.Option(
        help="Class noun of the subject, for the judge; default: the word it was learned from.",
        rich_help_panel=Group.METHOD,
    ),
]
Together = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Words trained in the same batches, if there are several: more words per hour, more memory. Default: 1.",
        rich_help_panel=Group.OUTPUT,
    ),
]
Prompts = Annotated[
    str | None,
    typer.Option(help="File with one prompt per line; - reads stdin.", rich_help_panel=Group.DRAWING),
]


def read_prompts(given: Sequence[str], source: str | None) -> list[str]:
    """Prompts of the command line, then those of the file, without empty ones.

    Raises:
        UsageError: the file cannot be read, or tokenizers cannot process a prompt.
    """
    from dticli.words import texts

    prompts = [text.strip() for text in [*given, *(_lines(source) if source else [])]]
    texts.require(prompts)
    return list(filter(None, prompts))


def read_templates(given: Sequence[str], source: str | None, default: Sequence[str]) -> list[str]:
    """As `read_prompts`, for prompts with a place for the word; `default` if there are none.

    Raises:
        UsageError: as `read_prompts`, or a prompt lacks `{}`.
    """
    templates = read_prompts(given, source) or list(default)
    for text in templates:
        if "{}" not in text:
            raise UsageError(
                f"the prompt {text!r} has no {{}}: expected it where the word goes; write 'a photo of {{}}'"
            )
    return templates


def drawing_settings(given: Mapping[str, Any], opened: "Opened") -> GenerateSettings:
    """Settings of drawing from the command line, then from the model's folder. Prints a random seed."""
    settings = resolve(GenerateSettings, given, model_layer(opened.model.folder, "generate"))
    if given["seed"] == ANY_SEED:
        console.notice(f"seed: {settings.seed}")
    return settings


def _lines(source: str) -> list[str]:
    advice = "expected a text file with one prompt per line; check --prompts"
    if source != "-":
        return files.read_text(source, UsageError, advice).splitlines()
    try:
        text = sys.stdin.read(files.MAX_TEXT)
        # In some locales, Python decodes invalid bytes as surrogates, which this refuses.
        text.encode()
        return text.splitlines()
    except (OSError, ValueError) as error:
        # Closed, or not UTF-8.
        raise UsageError(f"cannot read the prompts on standard input ({error}): {advice}") from None


def with_settings(
    kind: type[Settings], defaults: Mapping[str, str] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator that adds an option for each field of `kind` to those that a command declares.

    The command's parameter `given` gets a dict of all fields, with None for options that were not set.

    Args:
        defaults: defaults to show in help, for fields whose default depends on the model.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(command, eval_str=True).parameters
        fields = {name: field for name, field in kind.model_fields.items() if not field.exclude}

        def wrapped(**values: Any) -> Any:
            # Typer passes an empty list for a list option that was not set.
            given = {name: None if (value := values.pop(name)) == [] else value for name in fields}
            return command(given=given, **values)

        declared = [parameter for name, parameter in own.items() if name != "given"]
        made = [_parameter(kind, name, field, (defaults or {}).get(name)) for name, field in fields.items()]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*declared, *made)]
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        wrapped.__doc__ = command.__doc__
        return wrapped

    return decorate


def _parameter(kind: type[Settings], name: str, field: FieldInfo, shown: str | None) -> inspect.Parameter:
    """The option of a field; its default is None, so that lower layers of settings apply."""
    flag = f"--{name.replace('_', '-')}"
    base = _base_type(field.annotation)
    names = [f"{flag}/--no-{flag[2:]}"] if base is bool else [flag]
    option = typer.Option(
        *names,
        help=f"{field.description}{_default(field, shown)}",
        show_default=False,
        autocompletion=completion.OF_SETTINGS.get(name),
        rich_help_panel=_group(kind, name, field),
        **_range(field, base),
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[base | None, option]
    )


def _group(kind: type[Settings], name: str, field: FieldInfo) -> Group:
    """The group of a field, or that of the class which declares it."""
    own = next((each for each in field.metadata if isinstance(each, Group)), None)
    owners = (base for base in kind.__mro__ if issubclass(base, Settings))
    return own or next(base.group for base in owners if name in inspect.get_annotations(base))


def _base_type(annotation: Any) -> Any:
    """A field's type without None and constraints; a list for a tuple."""
    if typing.get_origin(annotation) is Annotated:
        return _base_type(typing.get_args(annotation)[0])
    arguments = [each for each in typing.get_args(annotation) if each is not type(None)]
    if typing.get_origin(annotation) is tuple:
        return list[arguments[0]]  # type: ignore[valid-type]
    if type(None) in typing.get_args(annotation):
        return _base_type(arguments[0])
    return annotation


def _default(field: FieldInfo, shown: str | None) -> str:
    """The default as shown in help; empty if there is none, or it is None, False or ()."""
    if shown is None and (field.is_required() or any(field.default is each for each in (None, False, ()))):
        return ""
    return f" Default: {shown or field.default}."


def _range(field: FieldInfo, base: Any) -> dict[str, Any]:
    """Typer's options for inclusive bounds; exclusive bounds are checked by the settings only."""
    if base not in (int, float):
        return {}
    bounds = {}
    for constraint in _constraints(field):
        if isinstance(constraint, annotated_types.Ge):
            bounds["min"] = base(constraint.ge)
        elif isinstance(constraint, annotated_types.Le):
            bounds["max"] = base(constraint.le)
    return bounds


def _constraints(field: FieldInfo) -> list[Any]:
    """Constraints of a field, also those inside of an optional type."""
    found = list(field.metadata)
    for part in typing.get_args(field.annotation):
        for extra in getattr(part, "__metadata__", ()):
            found += extra.metadata if isinstance(extra, FieldInfo) else [extra]
    return found
