"""Random scenes, and captions that describe them.

Captions mention the context before the subject as often as after it, so that word order matters:
`left of a blue cat, a red dog` is not `left of a red dog, a blue cat`.
"""

import hashlib
from dataclasses import dataclass, replace
from random import Random

from . import looks, names, words
from .looks import Look
from .scenes import Background, Scene, Thing

HELD_OUT_SHARE = 0.1

# Words without effect on the picture. Prompt templates of training contain them, and they shift the positions of other words.
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
    """Probabilities of kinds of scenes.

    Attributes:
        nouns: common nouns to draw from.
        looked: that a noun is one of words.LOOKED.
        rare: that a noun not so drawn is a rare one, and not one of `nouns`.
        plain: that a scene is one thing without size and accessory.
        pair, count, side: that it is two things, copies of one, or one at a side.
        styled: that a style is named.
        by_name, in_words: that a thing of words.LOOKED is called by a name, or its look is described; else only by its noun.
    """

    nouns: tuple[str, ...] = words.PICTURED
    rare: float = 0.0
    looked: float = 0.8
    plain: float = 0.32
    pair: float = 0.3
    count: float = 0.02
    side: float = 0.04
    styled: float = 0.35
    by_name: float = 0.45
    in_words: float = 0.3


PICTURES = Mix()
JUDGING = Mix(by_name=0.3)
READING = Mix(tuple(words.COMMON), rare=0.3, looked=0.1, plain=0.15, pair=0.4, count=0.08, side=0.08)
COLOURED = 0.3  # share of things without a look with a colour in words; half of it for named things
NATURAL = 0.1  # share of things called by their noun that look as the artist drew them
SPOKEN = {
    1: (("colour",), ("colour",), ("pattern",), ("build",)),
    2: (("colour", "pattern"), ("colour", "pattern"), ("colour", "build")),
    3: (("colour", "pattern", "build"),),
}
"""Combinations of parts of a look that are described, by their number."""


# --------------------------------------------------------------------- scenes


def held_out(scene: Scene) -> bool:
    """Whether a scene's combination of first noun, style, setting and relation is held out for evaluation."""
    behind = scene.background
    setting = behind.place or behind.pattern or "plain"
    key = "|".join((scene.things[0].noun, scene.style, setting, scene.relation))
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**32


def training_scene(random: Random, mix: Mix = PICTURES) -> Scene:
    """A random scene whose combination is not held out."""
    while held_out(scene := any_scene(random, mix)):
        pass
    return scene


def unseen_scene(random: Random, mix: Mix = PICTURES) -> Scene:
    """A random scene whose combination is held out."""
    while not held_out(scene := any_scene(random, mix)):
        pass
    return scene


def any_scene(random: Random, mix: Mix = PICTURES) -> Scene:
    """A random scene of any combination."""
    style = random.choice(sorted(words.STYLES)) if random.random() < mix.styled else ""
    kind = _kind(random, mix)
    things = _things(kind, random, mix)
    return Scene(
        things=things,
        background=_background(random),
        style=_style_for(style, things),
        relation=random.choice(sorted(words.RELATIONS)) if kind == "pair" else "",
        side=random.choice(words.SIDES) if kind == "side" else "",
        count=random.choice(sorted(words.COUNTS)) if kind == "count" else 1,
    )


def _kind(random: Random, mix: Mix) -> str:
    kinds = {"plain": mix.plain, "pair": mix.pair, "count": mix.count, "side": mix.side}
    dressed = 1 - sum(kinds.values())
    return random.choices([*kinds, "dressed"], [*kinds.values(), dressed])[0]


def _noun(random: Random, mix: Mix) -> str:
    if random.random() < mix.looked:
        return random.choice(words.LOOKED)
    return random.choice(words.RARE if random.random() < mix.rare else mix.nouns)


def _things(kind: str, random: Random, mix: Mix) -> tuple[Thing, ...]:
    noun = _noun(random, mix)
    if kind == "plain":
        return (any_thing(noun, random, mix),)
    if kind == "count":
        unnamed = replace(mix, by_name=0.0)  # a name has no plural
        return (any_thing(random.choice(mix.nouns), random, unnamed),)
    if kind == "side":
        return (any_thing(noun, random, mix, size=random.choice(("", "tiny"))),)
    if kind == "dressed":
        return (
            any_thing(
                noun,
                random,
                mix,
                size=random.choice(words.SIZES) if random.random() < 0.3 else "",
                accessory=random.choice(sorted(words.ACCESSORIES)) if random.random() < 0.8 else "",
            ),
        )
    other = _noun(random, mix)
    while other == noun:
        other = _noun(random, mix)
    sizes = [random.choice(words.SIZES) if random.random() < 0.12 else "" for _ in range(2)]
    return tuple(any_thing(each, random, mix, size) for each, size in zip((noun, other), sizes, strict=True))


def any_thing(noun: str, random: Random, mix: Mix = PICTURES, size: str = "", accessory: str = "") -> Thing:
    """A random thing of this noun, which captions call by a name, by a description of its look, or by the noun alone."""
    bare = Thing(noun, size=size, accessory=accessory, hand=random.choice(looks.HANDS))
    if noun not in words.LOOKED:
        if random.random() >= COLOURED:
            return bare
        hue = _spoken_hue(random)
        look = Look(hue, random.uniform(*looks.LIGHT), "plain", hue, 1.0, bare.hand)
        return replace(bare, look=look, told=("colour",))
    roll = random.random()
    if roll < mix.by_name:
        return _called(random.choice(names.of(noun)), random, bare)
    look = looks.any_look(random)
    if roll < mix.by_name + mix.in_words:
        told = random.choice(SPOKEN[random.choice((1, 1, 2, 2, 3))])
        return replace(bare, look=_said(look, told, random), told=told)
    return bare if random.random() < NATURAL else replace(bare, look=look)


def _called(name: names.Name, random: Random, bare: Thing) -> Thing:
    """A thing called by a name, sometimes in another colour."""
    look = names.strayed(name.look, random)
    if random.random() >= COLOURED / 2:
        return replace(bare, look=look, name=name.word)
    recoloured = looks.recoloured(look, _spoken_hue(random))
    return replace(bare, look=recoloured, name=name.word, told=("colour",))


def _spoken_hue(random: Random) -> float:
    """A hue near the centre of a colour word."""
    return (looks.HUES[random.choice(sorted(looks.HUES))] + random.uniform(-9, 9)) % 360


def _said(look: Look, told: tuple[str, ...], random: Random) -> Look:
    """The look, with unambiguous values for the parts that are described."""
    if "colour" in told:
        look = looks.recoloured(look, _spoken_hue(random))
    if "build" in told:
        tall = random.random() < 0.5
        look = replace(
            look, build=random.uniform(looks.SLIMMEST, 0.85) if tall else random.uniform(1.18, looks.WIDEST)
        )
    if "pattern" in told and look.pattern == "plain":
        look = looks.patterned(look, random.choice(looks.PATTERNS[1:]), _spoken_hue(random))
    return look


def _style_for(style: str, things: tuple[Thing, ...]) -> str:
    """The style; not pixel art for tiny things, which it cannot show."""
    return "" if style == "pixel" and any(thing.size == "tiny" for thing in things) else style


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
    """A random caption of a scene, with or without its background."""
    behind = background_phrase(scene.background, random) if background else ""
    prefix, suffix = _style_phrases(scene.style, random)
    subject = (
        _inverted_pair(scene, random) if _may_invert(scene, prefix, random) else subject_phrase(scene, random)
    )
    return _assemble(f"{prefix} {subject}".strip(), suffix, behind, random)


def _assemble(core: str, suffix: str, behind: str, random: Random) -> str:
    """Core, style suffix and background in a random order; the background comes first or last with equal probability."""
    before, after = (behind, "") if random.random() < 0.5 else ("", behind)
    if before and suffix and random.random() < 0.5:
        before, suffix = f"{before}, {suffix}", ""
    return ", ".join(part for part in (before, f"{core} {after}".strip(), suffix) if part)


def _style_phrases(style: str, random: Random) -> tuple[str, str]:
    """(prefix, suffix), at most one of them not empty."""
    if not style:
        roll = random.random()
        if roll < 0.5:
            return random.choice(PHOTO_STEMS), ""
        return (random.choice(OPENINGS), "") if roll < 0.65 else ("", "")
    if random.random() < 0.7:
        return random.choice(words.STYLES[style]), ""
    return "", random.choice(STYLE_SUFFIXES[style])


def subject_phrase(scene: Scene, random: Random) -> str:
    """A phrase for the things, with count, side or relation."""
    first = scene.things[0]
    if scene.count > 1:
        return " ".join(
            [random.choice(words.COUNTS[scene.count]), *_before(first, random), words.plural(first.noun)]
        )
    if len(scene.things) == 2:
        return _pair_phrase(scene, random)
    phrase = noun_phrase(first, random)
    return f"{phrase} {SIDE_PHRASES[scene.side]}" if scene.side else phrase


def _may_invert(scene: Scene, prefix: str, random: Random) -> bool:
    """Whether a pair is mentioned in reverse; not after a prefix: `a photo of left of a cat, a dog` is not English."""
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
    """`a tiny red dog wearing a hat`, `a striped zumar in blue`, in one of several wordings."""
    qualities, after = [], ""
    if random.random() < 0.1:
        qualities.append(random.choice(ADJECTIVES))
    if thing.size:
        qualities.append(random.choice((thing.size, *words.SIZE_SYNONYMS[thing.size])))
    spoken = _before(thing, random)
    if spoken and thing.told == ("colour",) and random.random() < 0.2:
        spoken, after = [], f" in {spoken[0]}"  # so that no one place in a caption means colour
    elif "pattern" in thing.told and thing.look and random.random() < 0.5:
        after = _second_colour(thing.look)
    phrase = " ".join([*qualities, *spoken, _called_by(thing, random)])
    article = random.choice(ARTICLES) if random.random() < 0.3 else "a"
    if thing.name and random.random() < 0.3:
        article = ""
    worn = f" {random.choice(('wearing', 'with'))} a {thing.accessory}" if thing.accessory else ""
    return f"{_agree(article, phrase)} {phrase}{after}{worn}".strip()


def in_words(noun: str, look: Look) -> str:
    """The full description of a look: `tall striped red dog with blue stripes`."""
    thing = Thing(noun, look, told=("colour", "pattern", "build"))
    patterned = look.pattern != "plain"
    spoken = [word for word in _before(thing, Random(0)) if word != "plain"]
    return " ".join([*spoken, noun]) + (_second_colour(look) if patterned else "")


def _called_by(thing: Thing, random: Random) -> str:
    if thing.name:
        return thing.name
    others = words.COMMON[thing.noun][1] if thing.noun in words.COMMON else ()
    return thing.noun if not others or random.random() < 0.8 else random.choice(others)


def _before(thing: Thing, random: Random) -> list[str]:
    """The described parts of the look, as words before the noun, build first."""
    look = thing.look
    if look is None:
        return []
    said = {
        "build": looks.build_word(look.build),
        "pattern": look.pattern,
        "colour": looks.colour_word(look.hue),
    }
    return [word for part, word in said.items() if part in thing.told and word]


def _second_colour(look: Look) -> str:
    colour = looks.colour_word(look.second)
    return f" with {colour} {'legs' if look.pattern == 'two-tone' else {'striped': 'stripes', 'spotted': 'spots'}[look.pattern]}"


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
    """The words of captions, in lower case and without punctuation; those of phrases from 20,000 random captions."""
    random = Random("every word")
    said = {noun for noun in (*words.COMMON, *words.RARE)}
    said |= {name.word for name in names.all_names()}
    for noun, (_, others) in words.COMMON.items():
        said.update((*others, words.plural(noun)))
    for _ in range(20_000):
        said.update(caption(any_scene(random, READING), random).replace(",", " ").replace("-", " ").split())
    return said
