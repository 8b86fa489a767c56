"""Checks of prompts, negative prompts and captions before a model is loaded."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence

from dticli import spelling
from dticli.errors import UsageError

SYNTAX = re.compile(
    r"""
    <\w+:[^<>]+>                        # <lora:name:0.8>
    | \bembedding:[\w.-]+               # ComfyUI's way to name a word
    | \([^()]*:\s*[+-]?[\d.]+\s*\)      # (dog:1.2)
    | \({2,}[^()]+\){2,} | \[{2,}[^][]+\]{2,} | \{{2,}[^{}]+\}{2,}
    | \[[^][]*[:|][^][]*\]              # [cat:dog:0.5], [cat|dog]
    | \{[^{}]+\|[^{}]*\}                # {red|blue}
    | [(\[]\s*<[\w-]+>\s*[)\]]          # (<dog>), [<dog>]
    | (?<=[\w>)])(?:\+{1,}|-{2,})(?![\w+-]) | \)[\d.]*\d    # dog++, (dog)1.2
    | (?<=[\w>)])::[\d.-]* | <[\w-]+>:[\d.]*\d | (?<!\S)--[a-z]+\s+[\d:.]+    # dog::2, <dog>:1.2, --ar 16:9
    | \)\.(?:and|blend|swap)\(  | \.swap\( | \{[^{}]*\$\$[^{}]*\}       # ("a", "b").blend(1, 2), {2$$a|b}
    | (?<!\S)__[\w/*-]+__ | \\[()]                                # __animal__, \(plain\)
    | \b(?:BREAK|AND(?:_[A-Z]+)?|ADD(?:BASE|COL|COMM|ROW))\b
    """,
    re.VERBOSE,
)
"""Prompt syntax of other programs, which models do not understand."""


def require(texts: Iterable[str]) -> None:
    """Raise UsageError for a text that tokenizers cannot process."""
    for text in texts:
        if flaw := spelling.flaw(text):
            raise UsageError(f"the text {text[:60]!a} {flaw}")


def complaints(names: Iterable[str], texts: Sequence[str]) -> Iterator[str]:
    """Warnings about parts of these texts that the model will not read as intended.

    Args:
        names: words that are loaded.
    """
    yield from strangers(names, texts)
    if complaint := unread(texts):
        yield complaint


def holds(text: str, name: str) -> bool:
    """Whether a word is in a text, ignoring case (tokenizers differ in that)."""
    return name.lower() in text.lower()


def require_used(names: Sequence[str], prompts: Sequence[str], negative: str | None = None) -> None:
    """Raise UsageError for a word that is in none of the texts; suggests a likely spelling."""
    texts = [*prompts, *([negative] if negative else [])]
    spoken = dict.fromkeys(re.findall(r"<[^<>\s]*>|[\w-]+", " ".join(texts)))
    plain = {each.lower().strip("<>"): each for each in spoken}
    for name in names:
        if any(holds(text, name) for text in texts):
            continue
        near = difflib.get_close_matches(name.strip("<>"), plain, n=1)
        meant = f"; did you write {plain[near[0]]} for {name}?" if near else ""
        raise UsageError(
            f"no text contains {name} ({texts[0][:60]!r}): write it where the subject should appear, or leave its file "
            f"out{meant}"
        )
    lacking = [prompt for prompt in prompts if not any(holds(prompt, name) for name in names)]
    if names and lacking and len(prompts) > 1 and not any(" " in prompt for prompt in prompts):
        raise UsageError(
            f"the prompts are {', '.join(prompts)[:60]!r}: expected sentences; a sentence goes into quotes"
        )


def strangers(names: Iterable[str], texts: Sequence[str]) -> Iterator[str]:
    """Warnings about words in brackets that are not loaded, which a model reads as ordinary text.

    Args:
        names: words that are loaded.
    """
    known = {name.lower() for name in names}
    for word in dict.fromkeys(word for text in texts for word in re.findall(r"<[^<>\s:]+>", text)):
        if word.lower() not in known:
            yield f"{word} is read as ordinary text, because no token file defines it; pass one with -t FILE"


def unread(texts: Iterable[str]) -> str | None:
    """A warning about prompt syntax of other programs in these texts, or None."""
    # A text in capitals says AND.
    found = dict.fromkeys(part for text in texts if not text.isupper() for part in SYNTAX.findall(text))
    if not found:
        return None
    shown = ", ".join([*found][:3]) + (", ..." if len(found) > 3 else "")
    return f"prompt weights and similar syntax are not supported, and the model reads them as text: {shown}"
