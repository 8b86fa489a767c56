"""The programs that load learned words: which families each can use, its file layout there, and how the word is typed.

Everything about a program is a row of `PROGRAMS`, with where it was read. A *layout* maps encoder keys to the names
their tensors are stored under. Imports no torch.

Sources are commits of each program's own repository. *run*: its loader was run on such files; *read*: its source was read.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from dticli.errors import UsageError
from dticli.models import families

SOLE = "*"
"""Key of a tensor whose file does not say which encoder it belongs to."""
WORD = "<word>"
"""In a layout: the tensor is stored under the word's own name."""
STRING_TO_PARAM = "string_to_param.*"
"""How A1111's pickles, and LoRA bundles of them, call the one tensor."""
ANY = "*"
"""Among the names a program reads: whatever the one tensor is called."""
ONLY = {"gemma": "sana"}
"""Names of tensors that a single program writes, and for one family only: OneTrainer's of SANA."""
ALIASES = {"t5": "t5xxl", "gemma": "gemma2_2b", "chinese_roberta": "bert"}
"""Encoder keys of some program that differ from ours: OneTrainer's, and ComfyUI's of HunyuanDiT."""

Target = Literal["dti", "diffusers", "a1111", "comfyui", "kohya", "invoke", "onetrainer"]
TARGETS: tuple[str, ...] = get_args(Target)

Layout = Mapping[str, str]

PUBLISHED: Mapping[str, tuple[Mapping[str, int], ...]] = {
    family.name: tuple(
        {encoder.key: width for encoder, width in zip(family.encoders, widths, strict=True)}
        for widths in family.published
    )
    for family in families.TABLE
}
"""Family to the embedding widths of its public models, encoders in the pipeline's order."""

OPTIONAL = frozenset({("sd3", "t5xxl")})
"""Family and encoder that its models are used without."""

ARCHITECTURES = {
    ("sd", 768): "stable-diffusion-v1",
    ("sdxl", 768): "stable-diffusion-xl-v1-base",
    # Its encoders are those of 3.5 too.
    ("sd3", 768): "stable-diffusion-v3-medium",
}
"""`modelspec.architecture` by family and width of the narrowest encoder, where these two decide it."""

Container = Literal["safetensors", "pickle", "old pickle", "picture"]
"""Kinds of token files; an old pickle holds a `ParameterDict`, as torch before 1.12 wrote it, and a picture A1111's data."""


@dataclass(frozen=True)
class Program:
    """A program that loads token files.

    Attributes:
        name: what `--to` calls it, or would.
        title: what people call it.
        typed: the word in a prompt, made of `word` (`<dog>`) and `stem`, the file's name without its suffix.
        writes: family to the layout to write for it. Other families it cannot use.
        reads: names under which it takes the one tensor of a file, besides those it is written under.
        stems: file names whose word can be typed.
        flat: names under which it takes a 1-D tensor, the only one of its file.
        halves: whether it takes other dtypes than float32.
        pickles: names under which it takes the one tensor of a `.pt` or `.bin`; None for the same as of any file.
        containers: what it reads besides safetensors.
        split: whether it wants a file for each encoder.
        apart: families in whose prompts every vector of a word is typed by itself.
        remarks: family to what else there is to know.
        refusals: family to why it cannot use it, where more is known than that it does not.
        source: where this was read.
        export: the target that writes for it, where not `name` itself.
    """

    name: str
    title: str
    typed: str
    writes: Mapping[str, Layout]
    source: str
    reads: frozenset[str] = frozenset()
    stems: str = r".+"
    flat: frozenset[str] = frozenset()
    halves: bool = True
    pickles: frozenset[str] | None = None
    containers: frozenset[Container] = frozenset({"pickle", "old pickle"})
    split: bool = False
    apart: frozenset[str] = frozenset()
    remarks: Mapping[str, str] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)
    export: str | None = None

    @property
    def target(self) -> str:
        """What to pass to `--to` for it."""
        return self.export or self.name


_PARAMS = {"clip_l": "emb_params"}
_CLIPS = {"clip_l": "clip_l", "clip_g": "clip_g"}
_SD3 = {**_CLIPS, "t5xxl": "t5xxl"}
_FLUX = {"clip_l": "clip_l", "t5xxl": "t5xxl"}

_NEW: frozenset[Container] = frozenset({"pickle"})
_CONCEPTS = frozenset({WORD, "emb_params"})
"""A1111 turns a 1-D tensor into one vector, as the concepts library has them, but not in `string_to_param`."""
_MIXIN = "the pipeline class needs diffusers' TextualInversionLoaderMixin added"
_NO_MIXIN = frozenset(PUBLISHED) - {"sd", "sdxl", "flux", "chroma"}

PROGRAMS: tuple[Program, ...] = (
    Program(
        "diffusers",
        "diffusers",
        typed="{word}",
        writes={family: dict.fromkeys(variants[0], WORD) for family, variants in PUBLISHED.items()},
        reads=frozenset({WORD, STRING_TO_PARAM}),
        flat=frozenset({WORD, STRING_TO_PARAM}),
        containers=_NEW,
        split=True,
        # Without the mixin, a pipeline does not call `maybe_convert_prompt` either.
        apart=_NO_MIXIN,
        remarks=dict.fromkeys(sorted(_NO_MIXIN), _MIXIN),
        source="huggingface/diffusers 58eb52c0, src/diffusers/loaders/textual_inversion.py (run)",
    ),
    Program(
        "a1111",
        "A1111",
        typed="{stem}",
        writes={"sd": _PARAMS, "sdxl": _CLIPS, "sd3": _SD3},
        reads=frozenset({ANY}),
        flat=_CONCEPTS,
        stems=r"[^<>]+",
        containers=frozenset({"pickle", "old pickle", "picture"}),
        remarks={"sd3": "it reads the two CLIP encoders' vectors only"},
        refusals={"flux": "A1111 does not run FLUX.1"},
        source="AUTOMATIC1111/stable-diffusion-webui c8a5322d, modules/textual_inversion/textual_inversion.py (run)",
    ),
    Program(
        "forge",
        "Forge",
        typed="{stem}",
        writes={"sd": _PARAMS, "sdxl": _CLIPS},
        reads=frozenset({ANY}),
        flat=_CONCEPTS,
        stems=r"[^<>]+",
        containers=frozenset({"pickle", "picture"}),
        refusals={
            "sd3": "Forge expects the two CLIP encoders in separate files",
            "flux": "Forge reads a tensor of CLIP alone, and none of T5",
        },
        source="lllyasviel/stable-diffusion-webui-forge dfdcbab6, backend/text_processing/textual_inversion.py (run)",
        export="a1111",
    ),
    Program(
        "comfyui",
        "ComfyUI",
        typed="embedding:{stem}",
        writes={
            "sd": {"clip_l": "clip_l"},
            "sdxl": _CLIPS,
            "sd3": _SD3,
            "flux": _FLUX,
            "pixart_sigma": {"t5xxl": "t5xxl"},
            "chroma": {"t5xxl": "t5xxl"},
            "hunyuandit": {"bert": "chinese_roberta", "mt5xl": "mt5xl"},
        },
        reads=frozenset({ANY}),
        flat=frozenset({ANY}),
        stems=r"\S*[^\s.]",
        refusals=dict.fromkeys(
            ("sana", "sana_sprint", "lumina2", "wan", "flux2_klein", "z_image", "qwen_image"),
            "ComfyUI's tokenizers of Gemma, UMT5 and Qwen know no embeddings",
        ),
        source=(
            "comfyanonymous/ComfyUI a125cd84, comfy/sd1_clip.py (run); "
            "comfy/text_encoders/pixart_t5.py, hydit.py (read)"
        ),
    ),
    Program(
        "fooocus",
        "Fooocus",
        typed="embedding:{stem}",
        writes={"sdxl": _CLIPS},
        refusals=dict.fromkeys(sorted(set(PUBLISHED) - {"sdxl"}), "Fooocus runs SDXL alone"),
        stems=r"\S*[^\s.]",
        source="lllyasviel/Fooocus 59f183ab, ldm_patched/modules/sd1_clip.py (run)",
        export="comfyui",
    ),
    Program(
        "invoke",
        "InvokeAI",
        typed="<{stem}>",
        writes={"sd": _PARAMS, "sdxl": _CLIPS},
        reads=frozenset({STRING_TO_PARAM}),
        # Its probe takes the first dimension of what it does not know for the width.
        flat=frozenset({WORD}),
        containers=_NEW,
        stems=r"[a-zA-Z0-9., _-]+",
        source="invoke-ai/InvokeAI 8e71a8a5, invokeai/backend/textual_inversion.py and its model probe (run)",
    ),
    Program(
        "kohya",
        "kohya sd-scripts",
        typed="{stem}",
        writes={"sd": _PARAMS, "sdxl": _CLIPS},
        reads=frozenset({ANY}),
        source="kohya-ss/sd-scripts 48d368fa, train_textual_inversion.py (run), gen_img.py (read)",
    ),
    Program(
        "onetrainer",
        "OneTrainer",
        typed="{word}",
        writes={
            "sd": {"clip_l": "emp_params"},
            "sdxl": _CLIPS,
            "sd3": {**_CLIPS, "t5xxl": "t5"},
            "flux": {"clip_l": "clip_l", "t5xxl": "t5"},
            "sana": {"gemma2_2b": "gemma"},
            "pixart_sigma": {"t5xxl": "t5"},
            "chroma": {"t5xxl": "t5"},
        },
        containers=_NEW,
        remarks=dict.fromkeys(
            ("sd", "sdxl", "sd3", "flux", "sana", "pixart_sigma", "chroma"),
            "the placeholder of its configuration decides",
        ),
        source="Nerogar/OneTrainer 23df3832, modules/modelSaver and modelLoader (read)",
    ),
    Program(
        "sd.cpp",
        "stable-diffusion.cpp",
        typed="{stem}",
        writes={"sd": _PARAMS},
        reads=frozenset({ANY}),
        halves=False,
        refusals={"sdxl": "its loader appears to write CLIP-G's vectors over CLIP-L's"},
        source="leejet/stable-diffusion.cpp 97d29908, conditioner.hpp (read)",
        export="a1111",
    ),
    Program(
        "swarmui",
        "SwarmUI",
        typed="<embed:{stem}>",
        writes={"sd": _PARAMS, "sdxl": _CLIPS},
        reads=frozenset({WORD}),
        stems=r"\S*[^\s.]",
        containers=frozenset(),
        source="mcmonkeyprojects/SwarmUI 062407c7, T2IModelClassSorter.cs (read)",
        export="a1111",
    ),
    Program(
        "ai-toolkit",
        "ai-toolkit",
        typed="{word}",
        writes={"sd": _PARAMS, "sdxl": _CLIPS},
        reads=frozenset({ANY}),
        pickles=frozenset({ANY}),
        containers=_NEW,
        remarks=dict.fromkeys(("sd", "sdxl"), "the trigger of its configuration decides"),
        source="ostris/ai-toolkit 27a03a91, toolkit/embedding.py (read)",
        export="kohya",
    ),
    Program(
        "sdnext",
        "SD.Next",
        typed="{stem}",
        writes={"sd": _PARAMS, "sdxl": _CLIPS},
        reads=frozenset({ANY}),
        pickles=frozenset({STRING_TO_PARAM}),
        containers=_NEW,
        source="vladmandic/sdnext d4a67dd9, modules/textual_inversion/textual_inversion.py (read)",
        export="a1111",
    ),
)


def program(name: str) -> Program:
    """The program of that name."""
    return next(each for each in PROGRAMS if each.name == name)


# Which family


def candidates(widths: Mapping[str, int], recorded: str | None = None) -> tuple[str, ...]:
    """Families whose models a word can be for.

    Args:
        widths: encoder key, or `SOLE`, to the width of its vectors.
        recorded: the family the file names; decides if it has these encoders.
    """
    family = families.of_name(recorded) if recorded else None
    if family and widths.keys() <= {encoder.key for encoder in family.encoders} | {SOLE}:
        return (family.name,)
    return tuple(
        name for name, variants in PUBLISHED.items() if any(_matches(widths, variant) for variant in variants)
    )


def is_published(widths: Mapping[str, int], family: str) -> bool:
    """Whether a public model of the family has these widths; an encoder may have been left out, as SD3's T5 often is."""
    return any(
        _matches(widths, variant) or widths.items() <= variant.items()
        for variant in PUBLISHED.get(family, ())
    )


def _matches(widths: Mapping[str, int], variant: Mapping[str, int]) -> bool:
    """Whether encoders and widths agree; one CLIP encoder goes by its width, as its kind has no fixed name."""
    if len(widths) == len(variant) == 1:
        ((key, width),), ((encoder, expected),) = widths.items(), variant.items()
        return width == expected and _is_named(key, encoder)
    return dict(widths) == dict(variant)


def _is_named(key: str, encoder: str) -> bool:
    return key in (SOLE, encoder) or (encoder == "clip_l" and key == "clip_h")


def encoder_of(key: str, width: int, names: tuple[str, ...]) -> str:
    """What the families `names` call the one encoder of a word; `key` where they do not agree.

    Args:
        key: what the file calls it.
        names: of families.
    """
    found = {
        encoder.key
        for family in map(families.of_name, names)
        if family and len(family.encoders) == 1
        for encoder in family.encoders
        if _is_named(key, encoder.key)
    }
    return found.pop() if len(found) == 1 else key


def in_order(widths: tuple[int, ...]) -> tuple[str, ...] | None:
    """Encoder keys of files numbered in the pipeline's order, known by widths alone; None where these fit none or several."""
    found = {
        tuple(variant)
        for variants in PUBLISHED.values()
        for variant in variants
        if tuple(variant.values()) == widths
    }
    return found.pop() if len(found) == 1 else None


# What a program does with a file


@dataclass(frozen=True)
class Verdict:
    """What a program does with a word as it is stored.

    Attributes:
        program: its title.
        loads: whether it takes the files as they are, takes what `dti convert` makes of them, or cannot use the word.
        typed: the word in its prompts; None if it cannot be used.
        remark: what stands in the way, or what to mind.
    """

    program: str
    loads: Literal["as it is", "converted", "not"]
    typed: str | None
    remark: str | None = None

    def __str__(self) -> str:
        remark = f" ({self.remark})" if self.remark else ""
        return f"{self.program}: {'no' if self.typed is None else self.typed}{remark}"


@dataclass(frozen=True)
class Described:
    """A word's files, as far as programs care.

    Attributes:
        word: its name in brackets.
        stem: of the file.
        family: None if unknown or uncertain.
        names: encoder key to tensor name.
        widths: encoder key to width.
        flat: whether a tensor is 1-D.
        halves: whether a tensor is not float32.
        container: the kind of file.
        split: whether there is a file for each encoder.
        count: of vectors in each encoder.
        called: the word's name in the file itself, if it says one.
        partial: whether the word has vectors in other files, which are not here.
    """

    word: str
    stem: str
    family: str | None
    names: Mapping[str, str]
    widths: Mapping[str, int]
    flat: bool = False
    halves: bool = False
    container: Container = "safetensors"
    split: bool = False
    count: int = 1
    called: str | None = None
    partial: bool = False


def verdict(each: Program, word: Described, families: Collection[str] = ()) -> Verdict:
    """What a program does with a word as it is stored.

    Args:
        families: the word can be for, where that is not certain.
    """
    if word.partial:
        return Verdict(each.title, "not", None, PARTIAL)
    if word.family is None and len(families) > 1:
        found = {verdict(each, replace(word, family=family)) for family in families}
        if len(found) == 1:
            return found.pop()
        maybe = " or ".join(families)
        return Verdict(each.title, "not", None, f"the word may be for {maybe}; name its model with --model")
    reason = refusal(each, word.family, word.widths)
    if reason:
        return Verdict(each.title, "not", None, reason)
    assert word.family
    remark = each.remarks.get(word.family)
    called = word.called or word.word
    # Of a picture, programs take the name inside.
    stem = called if word.container == "picture" else word.stem
    if re.fullmatch(each.stems, stem) and _reads(each, word):
        return Verdict(each.title, "as it is", typed(each, called, stem, word.family, word.count), remark)
    advice = f"after dti convert --to {each.target}"
    remarks = "; ".join(filter(None, (advice, remark)))
    text = typed(each, word.word, stem_of(word.word), word.family, word.count)
    return Verdict(each.title, "converted", text, remarks)


def _reads(each: Program, word: Described) -> bool:
    assert word.family
    if word.halves and not each.halves:
        return False
    if word.container != "safetensors" and word.container not in each.containers:
        return False
    several = len(word.names) > 1
    if word.split != (each.split and several):
        return False
    pickles = each.pickles if word.container != "safetensors" else None
    names = {WORD if name in (word.called, word.word) else name for name in word.names.values()}
    if STRING_TO_PARAM in names and WORD in each.reads and not word.called:
        # It goes by the name in the file, which is none.
        return False
    if several and not each.split:
        alike = names == {each.writes[word.family][key] for key in word.names}
        return pickles is None and alike and not word.flat
    if word.flat:
        return ANY in each.flat or names <= each.flat
    accepted = pickles or each.reads | set(each.writes[word.family].values())
    return ANY in accepted or names <= accepted


PARTIAL = "some of the word's vectors are in another file: pass the folder that holds all"


def is_partial(widths: Mapping[str, int], family: str | None) -> bool:
    """Whether a word lacks vectors for an encoder of its family; where that is unknown, of every family with such widths."""
    row = families.of_name(family) if family else None
    if row is None:
        held = set(widths.values())
        known = [set(variant.values()) for variants in PUBLISHED.values() for variant in variants]
        return not candidates(widths) and any(held < each for each in known)
    if SOLE in widths:
        return len(row.encoders) > 1
    lacking = {encoder.key for encoder in row.encoders} - widths.keys()
    return any((row.name, key) not in OPTIONAL for key in lacking)


def refusal(each: Program, family: str | None, widths: Mapping[str, int]) -> str | None:
    """Why a program cannot use a word of these widths, or None if it can."""
    shown = " and ".join(map(str, widths.values()))
    if is_partial(widths, family):
        return PARTIAL
    if family is None:
        return (
            f"no program but dti knows a model of width {shown}; if it is one of theirs, name it with --model"
        )
    if family not in each.writes:
        return each.refusals.get(family, f"{each.title} loads no words for {family}")
    # diffusers is a library: it runs any model in its layout.
    if each.name != "diffusers" and not is_published(widths, family):
        return (
            f"the word is for a model of width {shown}, and {each.title} runs no {family} model of that width"
        )
    return None


def require_usable(each: Program, word: str, family: str | None, widths: Mapping[str, int]) -> None:
    """Raise UsageError unless the program can use the word."""
    reason = refusal(each, family, widths)
    if reason:
        usable = [other.name for other in PROGRAMS if not other.export and not refusal(other, family, widths)]
        raise UsageError(
            f"{word} cannot be used in {each.title}: {reason}; choose from {', '.join(['dti', *usable])}"
        )


def layout(each: Program, family: str, word: str, encoders: Mapping[str, int]) -> dict[str, str]:
    """Encoder key to the tensor name that a program expects, of the encoders the word has, in the pipeline's order."""
    names = each.writes[family]
    if SOLE in encoders:
        names = dict.fromkeys(encoders, next(iter(names.values())))
    return {key: word if name == WORD else name for key, name in names.items() if key in encoders}


def stem_of(word: str) -> str:
    """`<sks-dog>` to `sks-dog`: what files are called."""
    return word.removeprefix("<").removesuffix(">")


def typed(each: Program, word: str, stem: str, family: str | None, count: int) -> str:
    """The word in a prompt of the program.

    Args:
        count: of its vectors.
    """
    if family in each.apart:
        word = " ".join([word, *(f"{word}_{number}" for number in range(1, count))])
    return each.typed.format(word=word, stem=stem)


_TRAINERS = ("kohya", "onetrainer", "ai-toolkit")


def usage_hint(word: str, family: str | None, widths: Mapping[str, int], count: int) -> str:
    """How the word is typed in the programs that draw with it, in one line."""
    titles: dict[str, list[str]] = {word: ["dti"]}
    for each in PROGRAMS:
        if not refusal(each, family, widths) and each.name not in _TRAINERS:
            titles.setdefault(typed(each, word, stem_of(word), family, count), []).append(each.title)
    return "; ".join(f"{', '.join(programs)}: {typed}" for typed, programs in titles.items())


def modelspec(
    word: str, family: str | None, widths: Mapping[str, int], count: int, architecture: str | None = None
) -> dict[str, str]:
    """Metadata after the Stability model metadata specification, 1.0.1, which demands an architecture.

    Args:
        count: of the word's vectors.
        architecture: of the model; where it is None and the widths do not decide it, the specification is not claimed.
    """
    if family and is_published(widths, family):
        narrowest = min(widths.values())
        architecture = architecture or ARCHITECTURES.get((family, narrowest))
    said = {
        "modelspec.title": stem_of(word),
        "modelspec.is_negative_embedding": "false",
        "modelspec.usage_hint": usage_hint(word, family, widths, count),
    }
    if architecture:
        said |= {
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": f"{architecture}/textual-inversion",
            "modelspec.implementation": "diffusers",
        }
    return said
