"""The words of the sticker world, and the icons or phrases of each. Data only; imports no torch.

*Rare* nouns, and *common* nouns that are not in PICTURED, are drawn only for pretraining the text encoder and the autoencoder,
so that the text encoder knows more words than the denoiser. Icon names are those of the Iconify packages.
"""

# word -> (icon name shared by the four art sets, other words for the same thing)
COMMON: dict[str, tuple[str, tuple[str, ...]]] = {
    "dog": ("dog", ("puppy", "hound")),
    "cat": ("cat", ("kitten", "kitty")),
    "car": ("automobile", ("automobile", "vehicle")),
    "fox": ("fox", ()),
    "penguin": ("penguin", ()),
    "frog": ("frog", ("toad",)),
    "turtle": ("turtle", ("tortoise",)),
    "elephant": ("elephant", ()),
    "robot": ("robot", ("android",)),
    "guitar": ("guitar", ()),
    "backpack": ("backpack", ("rucksack", "knapsack")),
    "mushroom": ("mushroom", ("toadstool",)),
    "boat": ("sailboat", ("sailboat", "yacht")),
    "teapot": ("teapot", ()),
    "rocket": ("rocket", ("spaceship", "spacecraft")),
    "owl": ("owl", ()),
    "horse": ("horse", ("stallion",)),
    "cow": ("cow", ("cattle",)),
    "pig": ("pig", ("hog",)),
    "lion": ("lion", ()),
    "tiger": ("tiger", ()),
    "bear": ("bear", ()),
    "panda": ("panda", ()),
    "monkey": ("monkey", ("ape",)),
    "rabbit": ("rabbit", ("bunny", "hare")),
    "duck": ("duck", ()),
    "fish": ("tropical-fish", ()),
    "bird": ("bird", ()),
    "snake": ("snake", ("serpent",)),
    "butterfly": ("butterfly", ()),
    "bee": ("honeybee", ("honeybee",)),
    "snail": ("snail", ()),
    "whale": ("spouting-whale", ()),
    "octopus": ("octopus", ()),
    "crab": ("crab", ()),
    "apple": ("red-apple", ()),
    "banana": ("banana", ()),
    "strawberry": ("strawberry", ()),
    "watermelon": ("watermelon", ()),
    "pineapple": ("pineapple", ()),
    "carrot": ("carrot", ()),
    "pizza": ("pizza", ()),
    "hamburger": ("hamburger", ("burger",)),
    "cupcake": ("cupcake", ("muffin",)),
    "bus": ("bus", ("coach",)),
    "train": ("locomotive", ("locomotive",)),
    "bicycle": ("bicycle", ("bike",)),
    "airplane": ("airplane", ("plane", "aircraft")),
    "house": ("house", ("home", "cottage")),
    "tree": ("deciduous-tree", ()),
    "cactus": ("cactus", ()),
    "sunflower": ("sunflower", ()),
    "tulip": ("tulip", ()),
    "football": ("soccer-ball", ()),
    "clock": ("alarm-clock", ()),
    "lamp": ("light-bulb", ("bulb",)),
    "balloon": ("balloon", ()),
    "umbrella": ("umbrella", ("parasol",)),
    "key": ("key", ()),
    "chair": ("chair", ("seat",)),
    "ghost": ("ghost", ("spirit",)),
    "drum": ("drum", ()),
    "book": ("closed-book", ()),
    "gift": ("wrapped-gift", ("present", "parcel")),
}

# Nouns that are drawn with all looks and have names for some; those of the example subjects are among them.
LOOKED: tuple[str, ...] = (
    "dog", "cat", "car", "fox", "frog", "turtle", "elephant", "robot", "backpack", "teapot", "rocket", "owl",
)  # fmt: skip
# Nouns that are mostly drawn as their artist made them, next to the others.
OTHERS: tuple[str, ...] = ("banana", "balloon", "cactus", "gift", "apple", "umbrella")
# The common nouns in pictures. Other nouns are only read: a denoiser this small learns fewer things from far fewer pictures.
PICTURED: tuple[str, ...] = (*LOOKED, *OTHERS)

# Nouns that are the names of their icons.
RARE: tuple[str, ...] = tuple(
    """
    accordion ambulance anchor ant avocado axe bacon bagel bank basket bat bathtub beaver bed bell bomb bone
    bouquet bread brick briefcase broccoli broom bucket butter calendar camel camera candle candy canoe castle
    cherries chicken church cloud coat coconut coin cookie crocodile croissant cucumber deer dolphin donkey
    door doughnut dragon dress egg eggplant envelope feather fire flamingo flute fly fountain garlic giraffe
    glasses goat goose gorilla grapes hammer hamster handbag hedgehog helicopter hospital hotel jar jeans
    jellyfish kangaroo keyboard kite koala ladder laptop lemon lizard lobster lollipop magnet mango melon
    microphone mirror motorcycle mountain newspaper notebook onion otter ox package paintbrush pancakes
    parachute parrot peach peacock pear pen pencil pie popcorn potato pretzel purse raccoon radio rainbow rat
    ring rock rooster rose sandwich saxophone scarf school scissors scorpion seal shark ship shrimp skateboard
    skull sloth snowflake snowman socks spider spoon squid star sun sunglasses swan taco taxi telephone
    telescope television tent ticket tomato toothbrush tractor tram trophy trumpet unicorn violin volcano
    waffle watch window wolf worm zebra
    """.split()  # noqa: SIM905
)

SIZES = ("tiny", "huge")
SIZE_SYNONYMS = {"tiny": ("small", "little"), "huge": ("large", "giant", "big")}

ACCESSORIES: dict[str, str] = {
    "hat": "top-hat",
    "crown": "crown",
    "bow": "ribbon",
    "cap": "billed-cap",
    "flower": "hibiscus",
}

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (246, 246, 246),
    "black": (28, 28, 30),
    "grey": (140, 142, 146),
    "red": (214, 52, 52),
    "orange": (244, 140, 40),
    "yellow": (248, 216, 72),
    "green": (74, 172, 82),
    "teal": (44, 160, 160),
    "blue": (66, 118, 222),
    "purple": (142, 84, 192),
    "pink": (246, 150, 190),
    "brown": (134, 92, 60),
}

PATTERNS = ("striped", "dotted", "checkered")

# drawn scene -> the phrases that name it
PLACES: dict[str, tuple[str, ...]] = {
    "beach": ("on the beach", "on a sandy beach", "by the sea"),
    "snow": ("in the snow", "in a snowy landscape", "on a winter day"),
    "jungle": ("in the jungle", "in a tropical forest"),
    "city": ("in the city", "on a city street", "in front of skyscrapers"),
    "night": ("under a starry night", "at night under the stars"),
    "desert": ("in the desert", "among the sand dunes"),
    "underwater": ("under the sea", "deep under water", "at the bottom of the ocean"),
    "sunset": ("at sunset", "in front of a sunset", "in the evening light"),
    "meadow": ("in a field of flowers", "in a flowery meadow"),
    "mountains": ("in the mountains", "in front of the mountains"),
}

# style -> the phrases that name it
STYLES: dict[str, tuple[str, ...]] = {
    "cartoon": ("a cartoon of", "a cartoon drawing of"),
    "icon": ("an icon of", "a simple icon of"),
    "render": ("a 3d render of",),
    "sticker": ("a flat sticker of",),
    "sketch": ("a pencil sketch of", "a pencil drawing of"),
    "pixel": ("pixel art of", "a pixel art of"),
}

RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "beneath"),
    "beside": ("next to", "beside", "near"),
}

SIDES = ("left", "right", "top", "bottom")
COUNTS = {2: ("two", "a pair of"), 3: ("three",), 4: ("four",)}
IRREGULAR_PLURALS = {
    "fish": "fish", "octopus": "octopuses", "butterfly": "butterflies", "strawberry": "strawberries",
    "cactus": "cactuses", "bus": "buses", "fox": "foxes",
}  # fmt: skip


def icon(noun: str) -> str:
    """Icon name of a common or rare noun."""
    return COMMON[noun][0] if noun in COMMON else noun


def plural(noun: str) -> str:
    """Plural of a common noun."""
    return IRREGULAR_PLURALS.get(noun, noun + "s")
