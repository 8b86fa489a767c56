"""Evaluation of words: likeness of pictures to the photos, and alignment with the rest of the prompt."""

from pathlib import Path

# Defaults: the judges of the paper, the simple prompts, and pictures per prompt.
IMAGE_JUDGE, TEXT_JUDGE, PROMPT_SET, COUNT = "dinov2", "siglip", "simple", 4
PLANS = Path(__file__).parent / "plans"


def plans() -> list[str]:
    """Names of the plans that come with dti."""
    return sorted(each.stem for each in PLANS.glob("*.toml"))
