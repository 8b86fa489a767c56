"""Normalises words, sizes and names of samplers as users and other programs write them. Imports no torch."""

import math
import re

MAX_TEXT = 20_000
"""Most characters of a prompt or caption. Models read some hundreds; tokenizers take minutes for millions."""

SAMPLERS = {
    "ddim": ("DDIM", "ddim_uniform"),
    "ddpm": ("DDPM",),
    "dpm++": ("dpm++ 2m", "dpmpp 2m", "DPMSolver++", "DPMSolver", "dpm solver multistep"),
    "dpm++-karras": ("dpm++ 2m karras", "dpmpp 2m karras", "dpmpp 2m k"),
    "dpm++-sde": ("dpm++ 2m sde", "dpmpp 2m sde", "dpmpp sde", "dpmpp 2m sde gpu"),
    "dpm++-sde-karras": ("dpm++ 2m sde karras", "dpmpp 2m sde karras", "dpm++ sde karras", "dpmpp 2m sde k"),
    "euler": ("euler",),
    "euler-a": ("euler a", "euler ancestral"),
    "heun": ("heun",),
    "pndm": ("pndm", "plms"),
    "unipc": ("uni pc", "uni pc bh2", "unipc multistep"),
}
"""Our names of samplers to those in A1111, ComfyUI, InvokeAI and diffusers; case and punctuation do not matter."""


def _bare(name: str) -> str:
    """A name's letters and digits, without the additions of class names and k-diffusion."""
    bare = re.sub(r"[^a-z0-9]", "", name.lower().replace("++", "pp"))
    return re.sub(r"scheduler$|discrete|multistep|^sample|^k(?=euler|heun|dpm)", "", bare)


_BY_SPELLING = {_bare(each): name for name, others in SAMPLERS.items() for each in (name, *others)}


def sampler(name: str) -> str:
    """Our name of a sampler; unknown names are unchanged."""
    return _BY_SPELLING.get(_bare(name), name)


def size(text: str) -> str:
    """`64x96` for two numbers separated by a mark or space; other text is unchanged except for outer spaces."""
    found = re.fullmatch(r"\s*(\d+)(?:\s*[xX×*,:]\s*|\s+)(\d+)\s*", text)
    return f"{found[1]}x{found[2]}" if found else text.strip()


def word(name: str) -> str:
    """The name in angle brackets; unchanged if it has any or is empty."""
    return name if not name or "<" in name or ">" in name else f"<{name}>"


LENGTHS = ("mean", "median", "min", "max")
"""Statistics of a vocabulary's norms that are valid as the norm of a row."""
_LENGTH = re.compile(r"(?P<number>\d+\.?\d*|\.\d+)(?P<times>x?)")


def length(rule: str) -> tuple[str | None, float]:
    """Parse a rule for a row's norm: a statistic and its factor, or None and the norm itself.

    Raises:
        ValueError: another rule, or a number that is not positive and finite; says what was expected.
    """
    if rule in LENGTHS:
        return rule, 1.0
    match = _LENGTH.fullmatch(rule)
    number = float(match["number"]) if match else 0.0
    if match is None or not 0 < number < math.inf:
        raise ValueError(
            f"expected {', '.join(LENGTHS)}, a length above 0 such as 0.4, or a multiple of the mean such as 2x"
        )
    return "mean" if match["times"] else None, number


def flaw(text: str) -> str | None:
    """Why tokenizers cannot process a text, as a clause that follows its name; None if they can.

    Command-line arguments that are not UTF-8 contain surrogates.
    """
    if "\0" in text:
        return "holds a NUL character"
    if any("\ud800" <= each <= "\udfff" for each in text):
        return "is not UTF-8; write it in a terminal that is"
    if len(text) > MAX_TEXT:
        return f"has {len(text)} characters: expected at most {MAX_TEXT}"
    return None
