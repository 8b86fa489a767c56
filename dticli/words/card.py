"""What a repository of a word holds: its files, a model card, and pictures."""

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dticli.words import conversion, programs, token_writing
from dticli.words.learned_word import Token

README = "README.md"
LICENCES = frozenset(
    {
        *("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
        *("openrail", "creativeml-openrail-m", "openrail++", "unlicense"),
    }
)
"""Licences the hub knows by these ids and that pictures and weights are often under; others go by name."""


@dataclass(frozen=True)
class CardPicture:
    """An example picture: its file name, content, and the prompt it was drawn from, if it says."""

    name: str
    content: bytes
    prompt: str | None


def contents(name: str, token: Token, pictures: Sequence[CardPicture]) -> dict[str, bytes]:
    """What a repository of a word holds: our file, diffusers' for each encoder, a card and pictures."""
    families = programs.candidates(conversion.widths(token), token.metadata.get("dti.family"))
    split = conversion.export(token, "diffusers") if families else {}
    return (
        conversion.export(token, "dti")
        | {Path(path).name: content for path, content in split.items()}
        | {f"images/{picture.name}": picture.content for picture in pictures}
        | {README: text(name, token, pictures).encode()}
    )


def text(name: str, token: Token, pictures: Sequence[CardPicture]) -> str:
    """The model card, made from the word's metadata. Strangers wrote that: everything of it is escaped."""
    from huggingface_hub import ModelCardData

    said = token.metadata
    base = said.get("dti.model", "") if said.get("dti.model_kind") == "hub" else ""
    data = ModelCardData(
        base_model=base.partition("@")[0] or None,
        instance_prompt=token.name,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["textual_inversion", "text-to-image", "diffusers", "dti"],
        widget=[
            {"text": picture.prompt or token.name, "output": {"url": f"images/{picture.name}"}}
            for picture in pictures
        ]
        or None,
        **_licence(said.get("modelspec.license")),
    )
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(_body(name, token, pictures))


def _licence(text: str | None) -> dict[str, Any]:
    if not text:
        return {}
    plain = text.strip().lower()
    return {"license": plain} if plain in LICENCES else {"license": "other", "license_name": text.strip()}


def _body(name: str, token: Token, pictures: Sequence[CardPicture]) -> Iterator[str]:
    said = token.metadata
    stem = programs.stem_of(token.name)
    word = escaped(token.name)
    count = conversion.count(token)
    yield f"# {escaped(said.get('modelspec.title') or stem)}\n"
    if said.get("modelspec.description"):
        yield f"{escaped(said['modelspec.description'])}\n"
    vectors = f"{count} {'vector' if count == 1 else 'vectors'} for {_encoders(token)}"
    yield f"A word for a text-to-image model: **{word}**, {vectors}.\n"
    for picture in pictures:
        caption = escaped(picture.prompt or token.name)
        yield f"![{caption}](images/{picture.name})\n"
    yield "## Use\n"
    yield f'```sh\ndti generate "a photo of {token.name}" -t {name}\n```\n'
    families = programs.candidates(conversion.widths(token), said.get("dti.family"))
    if families:
        yield f"```python\n{_python(name, token, families[0])}\n```\n"
    yield f"{escaped(said.get('modelspec.usage_hint') or f'dti: {token.name}')}\n"
    facts = {key: said[key] for key in sorted(said) if key.startswith("dti.")} | {
        f"modelspec.{key}": said[f"modelspec.{key}"]
        for key in ("author", "license", "date", "architecture", "resolution")
        if f"modelspec.{key}" in said
    }
    if facts:
        yield "## How it was made\n"
        yield "| | |\n|---|---|"
        yield from (f"| {escaped(key)} | {escaped(value)} |" for key, value in facts.items())
        yield ""
    yield f"SHA-256 of the vectors: `{token_writing.content_hash(token)}`"


def _encoders(token: Token) -> str:
    return " and ".join(
        f"an encoder of width {rows.shape[1]}" if key == programs.SOLE else f"{key} (width {rows.shape[1]})"
        for key, rows in token.rows.items()
    )


def _python(name: str, token: Token, family: str) -> str:
    """Loading the word with diffusers alone; one call per encoder."""
    from dticli.models import families

    row = families.of_name(family)
    encoders = [each for each in row.encoders if each.key in token.rows] if row else []
    if len(token.rows) == 1 or not encoders:
        return f'pipe.load_textual_inversion("{name}")  # the prompt says {token.name}'
    lines = []
    for number, encoder in enumerate(encoders, start=1):
        file = f"learned_embeds{f'_{number}' if number > 1 else ''}.safetensors"
        parts = f"text_encoder=pipe.{encoder.component}, tokenizer=pipe.{encoder.tokenizer}"
        lines.append(f'pipe.load_textual_inversion("{name}", weight_name="{file}", {parts})')
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Foreign text as it looks, in Markdown that may hold HTML: one line, nothing of it is markup."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", html.escape(line))
