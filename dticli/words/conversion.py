"""A word in and out of other programs: read from a file or a folder, completed, rescaled, and written for a program."""

import dataclasses
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dticli.errors import InputError, UsageError
from dticli.paths import RUN, SUFFIXES, names_token_file
from dticli.words import learned_word, programs, token_reading, token_writing
from dticli.words.learned_word import Token
from dticli.words.programs import SOLE, Described, Program
from dticli.words.token_reading import Layout

if TYPE_CHECKING:
    from dticli.words.norms import Summary

IDENTIFIER = "token_identifier.txt"
"""Holds the word in repositories of the sd-concepts-library."""
DIRECTION_ONLY = (
    "its length is repaired, its direction is as it was: prompt following returns only as far as the direction is still "
    "good, and a likeness that fades shows that it had already gone astray (arXiv:2512.13672); if so, train the word again"
)

_LEARNED = re.compile(r"learned_embeds(_\d+)?\.(safetensors|bin|pt)")
_SAFE = ".safetensors"
_DESCRIBED = ("title", "author", "license", "date")


@dataclass(frozen=True, eq=False)
class Source:
    """A word, and the files it was read from.

    Attributes:
        stem: what the file is called without its suffix; programs that go by file names type this.
        layouts: file name to how it holds the word.
        others: names of files beside it that hold the word for other encoders.
    """

    token: Token
    stem: str
    layouts: Mapping[str, Layout]
    others: tuple[str, ...] = ()

    @property
    def families(self) -> tuple[str, ...]:
        """Families it can be for; the recorded one if there is one."""
        return programs.candidates(widths(self.token), self.token.metadata.get("dti.family"))

    def of_family(self, family: str) -> "Source":
        """The same as a word for that family."""
        return dataclasses.replace(self, token=of_family(self.token, family))

    @property
    def repairs(self) -> tuple[str, ...]:
        """Repairs made while reading, one phrase each."""
        found = [repair for layout in self.layouts.values() for repair in layout.repairs]
        renamed = self.token.metadata.get("dti.original_name")
        if renamed and programs.stem_of(self.token.name) != renamed:
            found.append(f"the name {renamed!a} became {self.token.name}")
        return tuple(dict.fromkeys(found))

    def described(self) -> Described:
        """What programs see of it."""
        stored = [each for layout in self.layouts.values() for each in layout.tensors.values()]
        first = next(iter(self.layouts.values()))
        return Described(
            word=self.token.name,
            stem=self.stem,
            family=sole_family(self.families),
            names=dict(zip(self.token.rows, (each.name for each in stored), strict=True)),
            widths=widths(self.token),
            flat=any(len(each.shape) == 1 for each in stored),
            halves=any(each.dtype != "float32" for each in stored),
            container=first.container,
            split=len(self.layouts) > 1,
            count=count(self.token),
            called=first.called,
            partial=bool(self.others),
        )


def widths(token: Token) -> dict[str, int]:
    """Encoder key to the width of its vectors."""
    return {key: rows.shape[1] for key, rows in token.rows.items()}


def count(token: Token) -> int:
    """How many vectors the word has in each encoder."""
    return len(next(iter(token.rows.values())))


def sole_family(names: Collection[str]) -> str | None:
    """The family, where there is only one to choose from."""
    return next(iter(names)) if len(names) == 1 else None


# Reading


def read(path: Path, name: str | None = None, pick: str | None = None) -> Source:
    """Read a word from a file, or from a folder that holds one: one file, or diffusers' file for each encoder.

    Args:
        name: stands in for the word's where the files do not say it; else the file's or the folder's name does.
        pick: which word, of files with several.

    Raises:
        InputError: no word, several, or files that do not belong together.
    """
    if not os.path.isdir(path):
        token, layout = token_reading.read_with_layout(path, name, pick)
        others = tuple(name for name in _beside(path) if _is_other_part(path.name, name))
        return Source(
            _named_by_encoder(_of_its_program(token, layout)), path.stem, {path.name: layout}, others
        )
    if path.suffix == RUN:
        raise InputError(
            f"{path} is the folder of a run: expected a word; name {path.with_suffix('.safetensors')}, or a state the run "
            f"keeps, such as {path}@200"
        )
    try:
        names = [each.name for each in path.iterdir()]
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; expected a readable folder; check its permissions"
        ) from None
    files = files_of_a_word(names, str(path))
    if _LEARNED.fullmatch(files[0]):
        name = _identifier(path / IDENTIFIER) or name or path.resolve().name
    read = {file: token_reading.read_with_layout(path / file, name, pick) for file in files}
    token = _joined([token for token, _ in read.values()], str(path))
    layouts = {file: layout for file, (_, layout) in read.items()}
    token = _of_its_program(token, next(iter(layouts.values())))
    return Source(_named_by_encoder(token), Path(files[0]).stem, layouts)


def _beside(path: Path) -> list[str]:
    """Names of the files in a file's folder; none if the folder may be entered but not listed."""
    try:
        return [each.name for each in path.parent.iterdir()]
    except OSError:
        return []


def files_of_a_word(names: Iterable[str], place: str) -> list[str]:
    """Which files of a folder or repository hold its word.

    Args:
        names: relative paths; those below other folders are left out.
        place: for messages.

    Raises:
        InputError: none, or those of several words.
    """
    files = sorted(filter(is_token_file, names))
    parts = sorted((name for name in files if _LEARNED.fullmatch(name)), key=_part)
    safe = [name for name in parts if name.endswith(_SAFE)]
    named = [name for name in files if name not in parts]
    if named and not (parts and not any(name.endswith(_SAFE) for name in named)):
        preferred = [name for name in named if name.endswith(_SAFE)] or named
        if len(preferred) == 1:
            return preferred
        listed = ", ".join(ascii(name) for name in preferred[:5])
        raise InputError(f"{place} holds several token files ({listed}): expected one; name the one you mean")
    if not parts:
        raise InputError(f"{place} holds no token file: expected {', '.join(SUFFIXES)}; check the name")
    return safe or parts


def is_token_file(name: str) -> bool:
    """Whether a relative path looks like a token file at the top of its folder."""
    return names_token_file(name) and not re.search(r"[/\\]", name) and not name.startswith(".")


def _is_other_part(name: str, other: str) -> bool:
    """Whether two files of one folder are diffusers' for two encoders."""
    both = [_LEARNED.fullmatch(each) for each in (name, other)]
    return all(both) and _part(name) != _part(other)


def _of_its_program(token: Token, layout: Layout) -> Token:
    """The token as one for the family whose words alone are stored under such a name."""
    found = [programs.ONLY[name] for name in layout.names.values() if name in programs.ONLY]
    return of_family(token, found[0]) if found and "dti.family" not in token.metadata else token


def _part(name: str) -> int:
    """Which encoder a file of diffusers' is for, from 1."""
    match = _LEARNED.fullmatch(name)
    return int(match[1][1:]) if match and match[1] else 1


def _identifier(path: Path) -> str | None:
    """The word that stands in a file, if it is there."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(4 * learned_word.MAX_NAME).strip() or None
    except OSError:
        return None


def _joined(tokens: list[Token], place: str) -> Token:
    """One word of the files for each of its encoders."""
    if len(tokens) == 1:
        return tokens[0]
    rows = [rows for token in tokens for rows in token.rows.values()]
    keys = [key for token in tokens for key in token.rows]
    if SOLE in keys:
        keys = list(programs.in_order(tuple(each.shape[1] for each in rows)) or ())
    named = {token.name for token in tokens}
    if len(named) > 1 or len(set(keys)) != len(rows):
        shown = ", ".join(str(each.shape[1]) for each in rows)
        raise InputError(
            f"{place} holds {len(rows)} files of {' and '.join(sorted(named))}, widths {shown}: "
            "expected one word's, a file for each encoder of a model; name the file you mean"
        )
    return Token(tokens[0].name, dict(zip(keys, rows, strict=True)), tokens[0].metadata)


def _named_by_encoder(token: Token) -> Token:
    """The token under its encoder's key where all families it can be for agree on that."""
    if len(token.rows) > 1:
        return token
    ((key, rows),) = token.rows.items()
    names = programs.candidates(widths(token), token.metadata.get("dti.family"))
    return dataclasses.replace(token, rows={programs.encoder_of(key, rows.shape[1], names): rows})


# Changing


def described(token: Token, given: Mapping[str, str | None] | None = None) -> Token:
    """The token with what programs look for in its metadata filled in; nothing the file says is changed.

    Only the usage hint is written anew, because it follows from name and family.

    Args:
        given: title, author, license and date to say instead.
    """
    family = sole_family(programs.candidates(widths(token), token.metadata.get("dti.family")))
    said = programs.modelspec(token.name, family, widths(token), count(token))
    hint = {"modelspec.usage_hint": said["modelspec.usage_hint"]}
    own = {f"modelspec.{name}": text for name, text in (given or {}).items() if text and name in _DESCRIBED}
    return dataclasses.replace(token, metadata={**said, **token.metadata, **hint, **own})


def renamed(token: Token, name: str) -> Token:
    """The token under another name; a title that was only its name changes along.

    Raises:
        UsageError: prompts cannot use the name.
    """
    title = "modelspec.title"
    own = token.metadata.get(title) == programs.stem_of(token.name)
    kept = {key: text for key, text in token.metadata.items() if not (own and key == title)}
    return dataclasses.replace(token, name=name, metadata=kept)


def of_family(token: Token, family: str | None) -> Token:
    """The token as one for that family; None leaves it as it is."""
    if family is None:
        return token
    return _named_by_encoder(dataclasses.replace(token, metadata={**token.metadata, "dti.family": family}))


def rescaled(token: Token, vocabulary: "Mapping[str, Summary]", rule: str) -> Token:
    """The token with every vector brought to the length the rule asks for; directions stay.

    Args:
        vocabulary: of the model it is for, by encoder key.
        rule: as `norms.magnitude`.

    Raises:
        InputError: the token is not for that model.
        UsageError: no such rule.
    """
    from dticli.words.norms import magnitude

    fitted = learned_word.fit(token, {key: each.width for key, each in vocabulary.items()})
    scaled = {key: _with_length(each, magnitude(vocabulary[key], rule)) for key, each in fitted.rows.items()}
    return dataclasses.replace(token, rows=scaled, metadata={**token.metadata, "dti.rescaled": rule})


def _with_length(rows: np.ndarray, length: float) -> np.ndarray:
    # In double precision, so that rescaling twice is rescaling once.
    wide = rows.astype(np.float64)
    return (wide * (length / np.linalg.norm(wide, axis=1, keepdims=True))).astype(np.float32)


# Writing


def is_everyday(stem: str, metadata: Mapping[str, str], vocabularies: Iterable[Collection[str]]) -> bool:
    """Whether prompts that do not mean the word are likely to hold it: a program that goes by file names takes them for it.

    Args:
        metadata: of the word; what it started from is a word of everyday.
        vocabularies: pieces of tokenizers. Letters and syllables are no words, so a piece must end one.
    """
    if stem in metadata.get("dti.init", "").lower().split():
        return True
    return any(
        spelling in pieces for pieces in vocabularies for spelling in (f"{stem}</w>", f"▁{stem}", f"Ġ{stem}")
    )


def export(token: Token, target: str) -> dict[str, bytes]:
    """Relative file name to content, for a program or for dti.

    Raises:
        UsageError: the program cannot use the word; says why, and which can.
    """
    stem = programs.stem_of(token.name)
    if target == "dti":
        return {f"{stem}{_SAFE}": token_writing.to_bytes(token)}
    program = programs.program(target)
    candidates = programs.candidates(widths(token), token.metadata.get("dti.family"))
    family = _whichever(token, program, candidates) if candidates else None
    programs.require_usable(program, token.name, family, widths(token))
    assert family
    names = programs.layout(program, family, token.name, widths(token))
    if program.split:
        return {
            f"{stem}/learned_embeds{f'_{number}' if number > 1 else ''}{_SAFE}": token_writing.to_bytes_as(
                token, {key: name}
            )
            for number, (key, name) in enumerate(names.items(), start=1)
        }
    return {f"{stem}{_SAFE}": token_writing.to_bytes_as(token, names)}


def files(token: Token, target: str | None, folder: Path) -> dict[Path, bytes]:
    """Path to content of the files for a program, in a folder of its name; none for no program.

    Raises:
        UsageError: as `export`.
    """
    contents = export(token, target) if target else {}
    return {folder / str(target) / name: content for name, content in contents.items()}


def _whichever(token: Token, program: Program, candidates: Collection[str]) -> str:
    """One of the families, where the choice makes no difference to the program."""
    if len({tuple(program.writes.get(each, {}).values()) for each in candidates}) > 1:
        raise UsageError(
            f"{token.name} may be for {' or '.join(candidates)}, which {program.title} stores differently: "
            "expected one; name its model with --model"
        )
    return next(iter(candidates))
