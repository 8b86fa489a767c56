"""Prompts for evaluation; `{}` is the place of the word.

Simple prompts add one element to the word. Complex prompts name a context first; neither the word nor the context may be lost.
"""

from pathlib import Path

from dticli import files
from dticli.errors import UsageError
from dticli.evaluation.prompt import Prompt
from dticli.words import texts

SIMPLE = (
    "a photo of {}",
    "{} in the snow",
    "{} on the beach",
    "{} in the jungle",
    "{} in a city street",
    "{} on a wooden floor",
    "{} on a blue carpet",
    "{} on green grass",
    "{} with mountains behind",
    "{} with a wheat field behind",
    "{} floating on water",
    "{} at sunset",
    "{} under a starry sky",
    "{} next to a red car",
    "{} beside a stack of books",
    "a red {}",
    "a golden {}",
    "a pencil sketch of {}",
    "a watercolour painting of {}",
    "a stained glass window of {}",
)
COMPLEX = (
    "in heavy rain at night, lit by a street lamp, a photo of {}",
    "an old library with candles on every shelf, and on the desk {}",
    "on a crowded market square, between stalls of oranges, {}",
    "through a frosted window with paper stars, {}",
    "a long empty road in the desert, a blue pickup truck, and {}",
    "in a kitchen full of steam, beside a copper kettle, {}",
    "under a cherry tree in blossom, on a chequered blanket, {}",
    "a lighthouse on a cliff, waves below, and in front of it {}",
    "on the deck of a sailing ship in a storm, {}",
    "in a greenhouse of ferns, with sun rays through the glass, {}",
    "an oil painting of a winter village, with smoke over the roofs and {}",
    "a pencil drawing of a railway station, a clock, two suitcases and {}",
    "a pixel art cave with green crystals, a torch on the wall, and {}",
    "a woodcut of a harbour, with gulls over the masts and {}",
    "in the style of a travel poster, a lake, a red canoe and {}",
    "a silver robot with a yellow umbrella, walking beside {}",
    "a black cat asleep on a purple cushion, left of {}",
    "three white balloons above, a striped rug below, and between them {}",
    "a birthday table with a green cake and five candles, and behind it {}",
    "seen from above, a stone path through tulips, and at its end {}",
)
SETS = ("simple", "complex", "stickers", "stickers-complex")


def read(name: str) -> tuple[Prompt, ...]:
    """The prompts of a set, or of a file with one prompt per line.

    Raises:
        UsageError: the set or file does not exist, the file has no prompts, or a prompt does not contain {} exactly once.
    """
    match name:
        case "simple" | "complex":
            prompts = tuple(map(Prompt, SIMPLE if name == "simple" else COMPLEX))
        case "stickers" | "stickers-complex":
            from dticli.evaluation import stickers

            prompts = stickers.simple() if name == "stickers" else stickers.complex()
        case _:
            prompts = tuple(map(Prompt, _lines(Path(name))))
    wrong = next((prompt.template for prompt in prompts if prompt.template.count("{}") != 1), None)
    if wrong:
        raise UsageError(
            f"prompt {wrong[:60]!r}: expected exactly one {{}} where the word stands; correct {name}"
        )
    return prompts


def _lines(path: Path) -> tuple[str, ...]:
    advice = (
        f"no prompt set has that name; expected {', '.join(SETS)} or a text file with a prompt on each line"
    )
    lines = files.read_text(path, UsageError, advice).splitlines()
    prompts = tuple(line.strip() for line in lines if line.strip())
    texts.require(prompts)
    if not prompts:
        raise UsageError(f"{path} is empty: expected one prompt per line, with {{}} where the word stands")
    return prompts
