"""How well a word does what it was learned for: is the picture the thing, and does it follow the rest of the prompt."""

from pathlib import Path

# What stands for these where nothing is said: the judges and prompts of the paper.
IMAGE_JUDGE, TEXT_JUDGE, PROMPT_SET, COUNT = "dinov2", "siglip", "simple", 4
PLANS = Path(__file__).parent / "plans"


def plans() -> list[str]:
    """Names of the plans that come with dti."""
    return sorted(each.stem for each in PLANS.glob("*.toml"))
