"""`dti inspect-norms`: shows the norms of a model's embeddings, and where learned words lie among them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dticli import console
from dticli.commands import completion
from dticli.commands.options import Base, Debug, Force, Json
from dticli.errors import UsageError

if TYPE_CHECKING:
    from dticli.charts import Panel
    from dticli.models.choice import Model
    from dticli.models.embeddings import Table
    from dticli.models.families import Theory
    from dticli.words.learned_word import Token
    from dticli.words.norms import Position, Summary
    from dticli.words.probe import Probed

BAR = 40
ROWS = 20


@dataclass(frozen=True)
class Standing:
    """A vector of a word, compared with an encoder's vocabulary; `cosine_to_init` is None if the init is not a single row."""

    token: str
    file: str
    encoder: str
    vector: int
    cosine_to_init: float | None
    position: "Position"

    def lines(self) -> Iterator[str]:
        position = self.position
        verdict = "in distribution" if position.in_distribution else "OUT OF DISTRIBUTION"
        cosine = "" if self.cosine_to_init is None else f", cosine to init {self.cosine_to_init:.3f}"
        nearest = ", ".join(f"{console.printable(each.name)} {each.cosine:.2f}" for each in position.nearest)
        yield (
            f"{self.token} in {self.encoder}, vector {self.vector}: norm {position.norm:.4f}, "
            f"percentile {position.percentile:.1f}, z-score {position.z_score:+.1f}, {verdict}{cosine}"
        )
        yield f"  nearest words: {nearest}"
        closest = ", ".join(
            f"{console.printable(each.name)} {each.distance:.2f}" for each in position.closest
        )
        yield f"  closest by distance: {closest}"


@dataclass(frozen=True)
class Inspected:
    """A model's vocabularies, and words compared with them.

    Attributes:
        theory: component to which of the paper's arguments for a fixed norm apply.
        keys: the encoder's key in token files, for each vocabulary.
    """

    model: str
    vocabularies: "tuple[Summary, ...]"
    theory: "Mapping[str, Theory]"
    standings: tuple[Standing, ...]
    keys: tuple[str, ...]
    probes: "tuple[Probed, ...]" = ()

    def lines(self) -> Iterator[str]:
        for summary in self.vocabularies:
            yield from _summary_lines(self.model, summary)
            yield f"  theory: {self.theory[summary.encoder]}"
            # The histogram is left out if words are shown.
            if not self.standings:
                yield from _histogram(summary)
        for standing in self.standings:
            yield from standing.lines()
        for probed in self.probes:
            yield from probed.lines()

    def panels(self) -> "Iterator[Panel]":
        from dticli.charts import Panel, Series

        by_encoder = {each.encoder: key for each, key in zip(self.vocabularies, self.keys, strict=True)}
        for summary in self.vocabularies:
            centres = [(low + high) / 2 for low, high in pairwise(summary.edges)]
            bars = Series("", list(zip(centres, summary.counts, strict=True)), "bars")
            marks = {
                f"{each.token} of {each.file}"
                + (f", vector {each.vector}" if each.vector else ""): each.position.norm
                for each in self.standings
                if each.encoder == by_encoder[summary.encoder]
            }
            yield Panel(f"{self.model}, {summary.encoder}", "norm", "words", [bars], marks)
        for probed in self.probes:
            marks = {label: reading.multiple for label, reading in probed.words.items()}
            curves = {
                "share of places known": ("place_read", "place_encoded"),
                "degrees a block": ("turned",),
                "relative to what came in": ("moved", "added"),
            }
            for unit, names in curves.items():
                series = [
                    Series(
                        name.replace("_", " "),
                        [(each.multiple, getattr(each, name)) for each in probed.vocabulary],
                    )
                    for name in names
                ]
                yield Panel(
                    f"{probed.encoder}: {', '.join(each.name for each in series)}",
                    "norm / mean",
                    unit,
                    series,
                    marks,
                    True,
                )


@dataclass(frozen=True)
class Followed:
    """Norm and direction of a word along its run: the entries of the log."""

    run: str
    steps: tuple[Mapping[str, Any], ...]

    def lines(self) -> Iterator[str]:
        yield f"{self.run}: {len(self.steps)} steps logged"
        # Only some rows; JSON has all of them.
        every = -(-len(self.steps) // ROWS) if self.steps else 1
        for entry in dict.fromkeys([*range(every - 1, len(self.steps), every), len(self.steps) - 1]):
            step = self.steps[entry]
            norms = "  ".join(
                f"{key} norm {norm:.4f} cosine to init {step['cosine_to_init'][key]:.3f}"
                for key, norm in step["norm"].items()
            )
            yield f"  step {step['step']:6d}  loss {step['smoothed']:.4f}  angle {step['angle']:5.1f} deg  {norms}"

    def panels(self) -> "Iterator[Panel]":
        from dticli.charts import Panel, Series

        keys = list(self.steps[0]["norm"])
        norms = [Series(key, [(each["step"], each["norm"][key]) for each in self.steps]) for key in keys]
        yield Panel(f"{self.run}: norm", "step", "norm", norms)
        angles = Series("angle", [(each["step"], each["angle"]) for each in self.steps])
        yield Panel(f"{self.run}: angle from the start", "step", "degrees", [angles])


@dataclass(frozen=True)
class NormsReport:
    """All requested models and runs."""

    models: tuple[Inspected, ...]
    runs: tuple[Followed, ...] = ()

    def lines(self) -> Iterator[str]:
        for inspected in self.models:
            yield from inspected.lines()
        for followed in self.runs:
            yield from followed.lines()

    def panels(self) -> "Iterator[Panel]":
        """The panels of the chart of --plot."""
        for inspected in self.models:
            yield from inspected.panels()
        for followed in self.runs:
            yield from followed.panels()


def command(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models (hub id, folder, file, 'stickers'), token files of any tool or their hub ids, and .run folders.",
            autocompletion=completion.measured,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model whose vocabulary the token files are compared with.", autocompletion=completion.models
        ),
    ] = None,
    base: Base = None,
    variant: Annotated[str | None, typer.Option(help="Weight files to read, such as fp16.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never contact the hub.")] = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Also load the text encoders and measure the effect of a row's norm in them, for words also at the "
            "vocabulary's mean norm.",
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Also write a chart to this .svg file: the vocabulary's norms with the words marked, probes, and runs."
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the norms of a model's vocabulary, and where learned words lie among them. Reads only the embedding tables.

    Example: dti inspect-norms dog.safetensors
    """
    from dticli import atomic, paths
    from dticli.models import choice, contents
    from dticli.words import base_model, repositories

    if plot:
        if plot.suffix != ".svg":
            raise UsageError(
                f"cannot write a chart to {plot.name}: expected a name that ends in .svg; rename it"
            )
        atomic.require_writable([plot], force=force)

    folders = [each for each in targets or [] if Path(each).suffix == ".run"]
    runs = tuple(_followed(Path(each)) for each in folders)
    targets = [each for each in targets or [] if each not in folders]
    if runs and not targets:
        _finish(NormsReport((), runs), plot, json)
        return
    files = [each for each in targets if repositories.holds_token(each, offline=offline)]
    tokens = [repositories.read(each, offline=offline).token for each in files]
    labels = paths.told_apart(files, lambda file: Path(file).name)
    names = [each for each in targets if each not in files]
    # Tokens are compared with all models on the command line, or else each with its own model.
    wanted: dict[str | None, list[int]] = {name: list(range(len(tokens))) for name in names}
    recorded = [base_model.usable_model(token.metadata) for token in tokens]
    if not names:
        for index in range(len(tokens)):
            wanted.setdefault(model or recorded[index], []).append(index)
        wanted = wanted or {model: []}
    reports = []
    for name, indices in wanted.items():
        option = name if names or model else None
        chosen = choice.choose(option, recorded=name, base=base, variant=variant, offline=offline)
        console.notice(contents.announcement(chosen, "text_encoder"))
        for each in () if option else base_model.strangers([tokens[i] for i in indices], chosen):
            console.warn(each)
        reports.append(_inspect(chosen, [(labels[i], tokens[i]) for i in indices], probe))
    _finish(NormsReport(tuple(reports), runs), plot, json)


def _finish(report: NormsReport, plot: Path | None, json: bool) -> None:
    from dticli import atomic, charts

    if plot:
        atomic.write_text(plot, charts.svg([*report.panels()]))
    console.show(report, as_json=json)


def _followed(folder: Path) -> Followed:
    """Read a run's log.

    Raises:
        InputError: there is none.
    """
    from dticli.errors import InputError
    from dticli.learn.run_folder import read_log

    entries = read_log(folder)
    if not entries:
        raise InputError(
            f"no log in {folder}: expected the folder of a run; pass the .run folder beside a token file"
        )
    return Followed(folder.name, tuple(entries))


def _inspect(model: "Model", tokens: "Sequence[tuple[str, Token]]", probe: bool) -> Inspected:
    from dticli.models import contents, embeddings
    from dticli.words import learned_word, norms

    encoders = contents.family(model).encoders
    tables = embeddings.by_key(contents.tables(model), encoders)
    widths = {key: table.width for key, table in tables.items()}
    standings = [
        standing
        for label, token in tokens
        for key, rows in learned_word.fit(token, widths).rows.items()
        for standing in _standings(label, token, key, rows, tables[key])
    ]
    summaries = tuple(norms.summary(table) for table in tables.values())
    theory = {encoder.component: encoder.theory for encoder in encoders}
    probes = _probed(model, tables, tokens) if probe else ()
    return Inspected(model.label, summaries, theory, tuple(standings), tuple(tables), probes)


def _probed(
    model: "Model", tables: "Mapping[str, Table]", tokens: "Sequence[tuple[str, Token]]"
) -> "tuple[Probed, ...]":
    """Probe each encoder with its vocabulary, the words, and the words at the vocabulary's mean norm."""
    from dticli import sphere
    from dticli.models import contents, devices, loading
    from dticli.words import learned_word, norms
    from dticli.words.probe import probe

    device = devices.pick_device("auto")
    pipe = loading.text_encoders(model, device, devices.pick_dtype("auto", device))
    probes = []
    for encoder in contents.family(model).encoders:
        table = tables[encoder.key]
        mean = norms.magnitude(norms.summary(table), "mean")
        words = {}
        for label, token in tokens:
            fitted = learned_word.fit(token, {key: each.width for key, each in tables.items()})
            rows = fitted.vectors[encoder.key]
            words[f"{token.name} of {label}"] = rows
            words[f"{token.name} of {label} at the mean"] = mean * sphere.normalize(rows)
        probes.append(probe(getattr(pipe, encoder.component), encoder.tokenizer_of(pipe), table, words))
    return tuple(probes)


def _standings(label: str, token: "Token", key: str, rows: Any, table: "Table") -> Iterator[Standing]:
    from dticli.words import norms

    cosines = _cosines_to_init(token.metadata, rows, table)
    for index, position in enumerate(norms.positions(rows, table)):
        yield Standing(token.name, label, key, index, cosines[index], position)


def _cosines_to_init(metadata: Mapping[str, str], rows: Any, table: "Table") -> list[float | None]:
    import numpy as np

    from dticli.words import norms

    row = norms.row_of(table, metadata.get("dti.init", ""))
    if row is None:
        return [None] * len(rows)
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1) * np.linalg.norm(row)
    return (rows @ row / lengths).tolist()


def _summary_lines(model: str, summary: "Summary") -> Iterator[str]:
    from dticli.words.norms import readable

    yield (
        f"{model}, {summary.encoder}: {summary.rows} rows of width {summary.width} "
        f"({summary.spare} spare and {summary.zero} zero rows left out)"
    )
    yield (
        f"  norm: min {summary.min:.4f} ({readable(summary.argmin)})  mean {summary.mean:.4f} +- {summary.std:.4f}  "
        f"median {summary.median:.4f}  max {summary.max:.4f} ({readable(summary.argmax)})"
    )
    yield "  percentiles: " + "  ".join(
        f"{percent}% {value:.4f}" for percent, value in summary.percentiles.items()
    )


def _histogram(summary: "Summary") -> Iterator[str]:
    most = max(summary.counts)
    # Pairs of bins; JSON has all of them.
    for index in range(0, len(summary.counts), 2):
        count = sum(summary.counts[index : index + 2])
        bar = "#" * -(-BAR * count // (2 * most)) if count else ""
        yield f"  {summary.edges[index]:8.4f} {count:7d} {bar}"
