"""What people write who come from other programs, in our spelling: words, sizes, samplers. Imports no torch."""

import re

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
"""Our names of samplers, and what A1111, ComfyUI, InvokeAI and diffusers' classes call them, but for case and marks."""


def _bare(name: str) -> str:
    """Letters and digits alone, without what classes and k-diffusion add."""
    bare = re.sub(r"[^a-z0-9]", "", name.lower().replace("++", "pp"))
    return re.sub(r"scheduler$|discrete|multistep|^sample|^k(?=euler|heun|dpm)", "", bare)


_BY_SPELLING = {_bare(each): name for name, others in SAMPLERS.items() for each in (name, *others)}


def sampler(name: str) -> str:
    """Our name of a sampler; as it is where none is known by it."""
    return _BY_SPELLING.get(_bare(name), name)


def size(text: str) -> str:
    """`64x96` for two numbers with a mark or a space between them; anything else as it is."""
    found = re.fullmatch(r"\s*(\d+)(?:\s*[xX×*,:]\s*|\s+)(\d+)\s*", text)
    return f"{found[1]}x{found[2]}" if found else text.strip()


def word(name: str) -> str:
    """The name in angle brackets, where it has none."""
    return name if not name or "<" in name or ">" in name else f"<{name}>"
