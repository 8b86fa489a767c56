"""Judges of sticker pictures, which classify the elements of a picture.

There are two, trained independently, so that figures can be checked against a second judge:
A, the image tower with which the text encoder was pretrained (as in CLIP; it also scores a picture against a prompt);
B, a classifier that was trained without captions.
"""

from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeVar

import torch  # noqa: TID253
from safetensors.torch import load_file
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional  # noqa: TID253

from dticli.bundled.world.elements import CLASSES
from dticli.errors import ModelError

WIDTH = 256
SIDE = 64
Eyes = TypeVar("Eyes", "DualEncoder", "Observer")


class ImageTower(nn.Module):
    """Small convolutional network on (batch, 3, 64, 64) in [-1, 1], without pooling over positions. Output (batch, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 192)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            layers += (
                [nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
                if after > 32
                else []
            )
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Sequential(nn.Linear(widths[-1] * 16, 512), nn.ReLU(), nn.Linear(512, WIDTH))

    def forward(self, pictures: Tensor) -> Tensor:
        """(batch, 3, 64, 64) -> (batch, WIDTH)."""
        return self.head(self.trunk(pictures))


class Namer(nn.Module):
    """A linear classifier for each element."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(names)) for names in CLASSES.values())

    def forward(self, features: Tensor) -> list[Tensor]:
        """(batch, WIDTH) -> logits by element, in the order of CLASSES."""
        return [head(features) for head in self.heads]


class _Residual(nn.Module):
    def __init__(self, before: int, after: int):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.SiLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.skip = nn.Conv2d(before, after, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(self.main(x) + self.skip(x))


class Observer(nn.Module):
    """Judge B: a residual convolutional network with a classifier for each element."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 224)
        blocks = [_Residual(before, after) for before, after in pairwise(widths)]
        self.trunk = nn.Sequential(
            *blocks, nn.Flatten(), nn.Dropout(0.1), nn.Linear(widths[-1] * 16, WIDTH), nn.SiLU()
        )
        self.namer = Namer()

    def features(self, pictures: Tensor) -> Tensor:
        """(batch, 3, 64, 64) -> (batch, WIDTH)."""
        return self.trunk(pictures)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """(batch, 3, 64, 64) in [-1, 1] -> logits by element, in the order of CLASSES."""
        return self.namer(self.trunk(pictures))


class DualEncoder(nn.Module):
    """Judge A: maps pictures and pooled text states into one space, and classifies the elements of both."""

    def __init__(self) -> None:
        super().__init__()
        self.image = ImageTower()
        self.text_out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.image_out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.text_namer, self.image_namer = Namer(), Namer()
        self.log_scale = nn.Parameter(torch.tensor(2.66))

    def features(self, pictures: Tensor) -> Tensor:
        """(batch, 3, 64, 64) -> unit rows, (batch, WIDTH)."""
        return functional.normalize(self.image_out(self.image(pictures)), dim=-1)

    def similarity(self, features: Tensor, pooled: Tensor) -> Tensor:
        """Scaled cosines, (pictures, texts), of picture features (pictures, WIDTH) and pooled text states (texts, WIDTH)."""
        texts = functional.normalize(self.text_out(pooled), dim=-1)
        return self.log_scale.clamp(max=4.6).exp() * features @ texts.T

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """(batch, 3, 64, 64) in [-1, 1] -> logits by element, in the order of CLASSES."""
        return self.image_namer(self.image(pictures))


def weights(name: Literal["a", "b"]) -> Path:
    """The file of a judge's weights in the package."""
    return Path(__file__).parent / "judges" / f"{name}.safetensors"


def load_a(file: Path | None = None) -> DualEncoder:
    """Load judge A for evaluation, from the package or a file of the recipe.

    Raises:
        ModelError: the weights are missing.
    """
    return _filled(DualEncoder(), file or weights("a"))


def load_b(file: Path | None = None) -> Observer:
    """Load judge B for evaluation, from the package or a file of the recipe.

    Raises:
        ModelError: the weights are missing.
    """
    return _filled(Observer(), file or weights("b"))


def _filled(judge: Eyes, file: Path) -> Eyes:
    if not file.is_file():
        raise ModelError(
            f"a judge's weights are missing from {file}: make them with the recipe's `judges` step"
        )
    judge.load_state_dict(load_file(file))  # copies float16 into float32
    return judge.eval()


@torch.no_grad()
def likely(judge: DualEncoder | Observer, pictures: Tensor) -> dict[str, Tensor]:
    """A judge's probabilities of the classes of every element: element to (count, classes).

    Args:
        pictures: (count, 3, 64, 64) in [-1, 1].
    """
    batches = [judge(batch) for batch in pictures.split(64)]
    return {
        element: torch.cat([batch[place].softmax(dim=1) for batch in batches])
        for place, element in enumerate(CLASSES)
    }


@torch.no_grad()
def names(judge: DualEncoder | Observer, pictures: Tensor) -> dict[str, list[str]]:
    """The most likely class of every element of every picture: element to names, by picture.

    Args:
        pictures: (count, 3, 64, 64) in [-1, 1].
    """
    batches = [judge(batch) for batch in pictures.split(64)]
    return {
        element: [known[index] for batch in batches for index in batch[place].argmax(dim=1).tolist()]
        for place, (element, known) in enumerate(CLASSES.items())
    }
