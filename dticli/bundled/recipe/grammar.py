"""Scenes by chance, and the captions that describe them.

Captions put the context before the subject as often as after it, so that where a word stands carries meaning:
`left of a blue cat, a red dog` is not `left of a red dog, a blue cat`.
"""

import hashlib
from dataclasses import dataclass
from random import Random

from dticli.bundled import subjects

from . import words
from .scenes import Background, Scene, Thing

SUBJECT_NOUNS = frozenset(subject.class_word for subject in subjects())
HELD_OUT_SHARE = 0.1

# Words that say nothing about the picture. Prompt templates used elsewhere lean on them, and they move every other word along.
ADJECTIVES = (
    "cute",
    "nice",
    "lovely",
    "good",
    "cool",
    "clean",
    "bright",
    "weird",
    "funny",
    "pretty",
    "happy",
    "strange",
)
ARTICLES = ("a", "a", "a", "the", "one", "my", "this")
OPENINGS = ("there is", "we see", "here is", "look at", "this is")
PHOTO_STEMS = (
    "a photo of", "a picture of", "an image of", "a close-up of", "a rendering of", "a good photo of", "a bright photo of",
    "a cropped photo of", "a close-up photo of", "a photo of", "the photo of", "a dark photo of", "a rendition of",
    "a nice picture of", "a painting of", "a depiction of", "a cool photo of", "a portrait of",
)  # fmt: skip
STYLE_SUFFIXES = {
    "cartoon": ("as a cartoon", "in the style of a cartoon"),
    "icon": ("as an icon", "in the style of an icon"),
    "render": ("as a 3d render", "in the style of a 3d render"),
    "sticker": ("as a flat sticker", "in the style of a flat sticker"),
    "sketch": ("as a pencil sketch", "in the style of a pencil sketch"),
    "pixel": ("as pixel art", "in the style of pixel art"),
}
SIDE_PHRASES = {
    "left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom",
}  # fmt: skip


@dataclass(frozen=True)
class Mix:
    """How often each kind of scene is drawn: shares of 1.

    `rare` is the chance that a noun is a rare one, not of `nouns`; `plain` that a scene is one undressed, untinted thing.
    `withheld` are the nouns never drawn in the Noto hand.
    """

    nouns: tuple[str, ...] = words.PICTURED
    rare: float = 0.0
    plain: float = 0.25
    pair: float = 0.38
    count: float = 0.04
    side: float = 0.05
    styled: float = 0.4
    withheld: frozenset[str] = SUBJECT_NOUNS


PICTURES = Mix(styled=0.55)  # rims and shadows are fine detail: two pictures in five did not teach them
JUDGING = Mix(withheld=frozenset())  # a judge must know the look it is to recognise
READING = Mix(tuple(words.COMMON), rare=0.3, plain=0.15, pair=0.4, count=0.08, side=0.08)


# --------------------------------------------------------------------- scenes


def held_out(scene: Scene) -> bool:
    """Whether the scene's combination of noun, style, setting and relation is kept for evaluation."""
    behind = scene.background
    setting = behind.place or behind.pattern or "plain"
    key = "|".join((scene.things[0].noun, scene.style, setting, scene.relation))
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**32


def training_scene(random: Random, mix: Mix = PICTURES) -> Scene:
    """A scene whose combination is not held out."""
    while held_out(scene := any_scene(random, mix)):
        pass
    return scene


def unseen_scene(random: Random, mix: Mix = PICTURES) -> Scene:
    """A scene whose combination no training picture shows."""
    while not held_out(scene := any_scene(random, mix)):
        pass
    return scene


def any_scene(random: Random, mix: Mix = PICTURES) -> Scene:
    """A scene by chance, whatever combination is held out."""
    style = random.choice(sorted(words.STYLES)) if random.random() < mix.styled else ""
    kind = _kind(random, mix)
    things = _things(kind, random, mix, style)
    return Scene(
        things=things,
        background=_background(random),
        art_set=_art_set(style, things, mix, random),
        style=_style_for(style, things, mix),
        relation=random.choice(sorted(words.RELATIONS)) if kind == "pair" else "",
        side=random.choice(words.SIDES) if kind == "side" else "",
        count=random.choice(sorted(words.COUNTS)) if kind == "count" else 1,
    )


def _kind(random: Random, mix: Mix) -> str:
    kinds = {"plain": mix.plain, "pair": mix.pair, "count": mix.count, "side": mix.side}
    dressed = 1 - sum(kinds.values())
    return random.choices([*kinds, "dressed"], [*kinds.values(), dressed])[0]


def _noun(random: Random, mix: Mix) -> str:
    return random.choice(words.RARE if random.random() < mix.rare else mix.nouns)


def _things(kind: str, random: Random, mix: Mix, style: str) -> tuple[Thing, ...]:
    noun = _noun(random, mix)
    if kind == "plain":
        return (Thing(noun),)
    if kind == "count":
        return (Thing(random.choice(mix.nouns), tint=_tint(random, style)),)
    if kind == "side":
        return (Thing(noun, size=random.choice(("", "tiny")), tint=_tint(random, style)),)
    if kind == "dressed":
        return (_dressed(noun, random, style),)
    other = _noun(random, mix)
    while other == noun:
        other = _noun(random, mix)
    sizes = [random.choice(words.SIZES) if random.random() < 0.15 else "" for _ in range(2)]
    return tuple(
        Thing(each, size, _tint(random, style)) for each, size in zip((noun, other), sizes, strict=True)
    )


def _dressed(noun: str, random: Random, style: str) -> Thing:
    return Thing(
        noun,
        size=random.choice(words.SIZES) if random.random() < 0.35 else "",
        tint=_tint(random, style),
        accessory=random.choice(sorted(words.ACCESSORIES)) if random.random() < 0.65 else "",
    )


def _tint(random: Random, style: str) -> str:
    """No tint in a pencil sketch: it would not be seen."""
    return random.choice(sorted(words.TINTS)) if style != "sketch" and random.random() < 0.5 else ""


def _style_for(style: str, things: tuple[Thing, ...], mix: Mix) -> str:
    """Pixel art swallows what is tiny, and a withheld noun has no cartoon the model may see."""
    swallowed = style == "pixel" and any(thing.size == "tiny" for thing in things)
    forbidden = style == "cartoon" and _withheld(things, mix)
    return "" if swallowed or forbidden else style


def _withheld(things: tuple[Thing, ...], mix: Mix) -> bool:
    return any(thing.noun in mix.withheld for thing in things)


def _art_set(style: str, things: tuple[Thing, ...], mix: Mix, random: Random) -> str:
    style = _style_for(style, things, mix)
    wanted = words.STYLES[style][1] if style else None
    allowed = [art_set for art_set in words.ART_SETS if art_set != "noto" or not _withheld(things, mix)]
    return wanted or random.choice(allowed)


def _background(random: Random) -> Background:
    roll = random.random()
    if roll < 0.45:
        return Background(place=random.choice(sorted(words.PLACES)))
    colours = tuple(random.sample(sorted(words.COLOURS), 2))
    if roll < 0.8:
        return Background(colours=colours[:1])
    return Background(pattern=random.choice(words.PATTERNS), colours=colours)


# ------------------------------------------------------------------- captions


def caption(scene: Scene, random: Random, *, background: bool = True) -> str:
    """One way to say the scene, with or without its background."""
    behind = background_phrase(scene.background, random) if background else ""
    prefix, suffix = _style_phrases(scene.style, random)
    subject = (
        _inverted_pair(scene, random) if _may_invert(scene, prefix, random) else subject_phrase(scene, random)
    )
    return _assemble(f"{prefix} {subject}".strip(), suffix, behind, random)


def _assemble(core: str, suffix: str, behind: str, random: Random) -> str:
    """Core, style suffix and background in one of several orders, context first as often as last."""
    before, after = (behind, "") if random.random() < 0.5 else ("", behind)
    if before and suffix and random.random() < 0.5:
        before, suffix = f"{before}, {suffix}", ""
    return ", ".join(part for part in (before, f"{core} {after}".strip(), suffix) if part)


def _style_phrases(style: str, random: Random) -> tuple[str, str]:
    """(prefix, suffix); at most one of them is filled."""
    if not style:
        roll = random.random()
        if roll < 0.5:
            return random.choice(PHOTO_STEMS), ""
        return (random.choice(OPENINGS), "") if roll < 0.65 else ("", "")
    if random.random() < 0.7:
        return random.choice(words.STYLES[style][0]), ""
    return "", random.choice(STYLE_SUFFIXES[style])


def subject_phrase(scene: Scene, random: Random) -> str:
    """The things, with count, side or relation."""
    first = scene.things[0]
    if scene.count > 1:
        tint = [first.tint] if first.tint else []
        return " ".join([random.choice(words.COUNTS[scene.count]), *tint, words.plural(first.noun)])
    if len(scene.things) == 2:
        return _pair_phrase(scene, random)
    phrase = noun_phrase(first, random)
    return f"{phrase} {SIDE_PHRASES[scene.side]}" if scene.side else phrase


def _may_invert(scene: Scene, prefix: str, random: Random) -> bool:
    """`a photo of left of a cat, a dog` is no English."""
    return len(scene.things) == 2 and not prefix and random.random() < 0.6


def _inverted_pair(scene: Scene, random: Random) -> str:
    """`left of a blue cat, a red dog`: the second thing is named first."""
    first, second = (noun_phrase(thing, random) for thing in scene.things)
    return f"{random.choice(words.RELATIONS[scene.relation])} {second}, {first}"


def _pair_phrase(scene: Scene, random: Random) -> str:
    first, second = (noun_phrase(thing, random) for thing in scene.things)
    relation = random.choice(words.RELATIONS[scene.relation])
    if scene.relation == "beside" and random.random() < 0.3:
        return f"{first} and {second}"
    return f"{first} {relation} {second}"


def noun_phrase(thing: Thing, random: Random) -> str:
    """`a tiny red dog wearing a hat`, in one of several wordings."""
    qualities = []
    if random.random() < 0.12:
        qualities.append(random.choice(ADJECTIVES))
    if thing.size:
        qualities.append(random.choice((thing.size, *words.SIZE_SYNONYMS[thing.size])))
    if thing.tint:
        qualities.append(thing.tint)
    names = (thing.noun, *words.COMMON[thing.noun][1]) if thing.noun in words.COMMON else (thing.noun,)
    name = thing.noun if random.random() < 0.8 else random.choice(names)
    phrase = " ".join([*qualities, name])
    article = random.choice(ARTICLES) if random.random() < 0.3 else "a"
    worn = f" {random.choice(('wearing', 'with'))} a {thing.accessory}" if thing.accessory else ""
    return f"{_agree(article, phrase)} {phrase}{worn}"


def _agree(article: str, phrase: str) -> str:
    return "an" if article == "a" and phrase[0] in "aeiou" and not phrase.startswith("uni") else article


def background_phrase(behind: Background, random: Random) -> str:
    """`in the snow`, `on a blue background`, `on a striped red and pink background`."""
    if behind.place:
        return random.choice(words.PLACES[behind.place])
    if not behind.pattern:
        colour = random.choice(("", "plain ")) + behind.colours[0]
        return f"{random.choice(('on', 'against'))} {_agree('a', colour)} {colour} background"
    first, second = random.sample(behind.colours, 2)
    return f"on a {behind.pattern} {first} and {second} background"


def every_caption_word() -> set[str]:
    """Every word the grammar can say, lower case, punctuation apart."""
    random = Random("every word")
    said = {noun for noun in (*words.COMMON, *words.RARE)}
    for noun, (_, others) in words.COMMON.items():
        said.update((*others, words.plural(noun)))
    for _ in range(20_000):
        said.update(caption(any_scene(random, READING), random).replace(",", " ").replace("-", " ").split())
    return said
