"""Step `text-encoder`: a deep pre-norm CLIPTextModel, pretrained against an image tower, then frozen for the denoiser.

The loss is CLIP's (Radford et al., arXiv:2103.00020) with hard negative captions as extra columns (Yuksekgonul et al.,
arXiv:2210.01936), and both towers also name the scene's elements, so that binding and order are learned within minutes.
"""

from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from . import cache, elements, grammar, vocabulary, world
from .autoencoder import to_tensor
from .elements import CLASSES, UNKNOWN
from .negatives import almost
from .training import Log, rate, train

WIDTH = 256
BLOCKS = 8
BATCH = 48
PEAK_RATE = 8e-4
WEIGHT_DECAY = 0.05
BRIEF = 0.15  # captions that leave the background out
SPELLED = 0.25  # batches whose words are spelled in pieces
MERGE_DROPOUT = 0.1


class ImageTower(nn.Module):
    """Small convnet on (batch, 3, 64, 64) in [-1, 1]; keeps where things are. Output (batch, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 192)
        layers: list[nn.Module] = []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()] if after > 32 else []
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Sequential(nn.Linear(widths[-1] * 16, 512), nn.ReLU(), nn.Linear(512, WIDTH))

    def forward(self, pictures: Tensor) -> Tensor:
        """(batch, 3, 64, 64) -> (batch, WIDTH)."""
        return self.head(self.trunk(pictures))


class Namer(nn.Module):
    """One linear classifier an element on a tower's features."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(names)) for names in CLASSES.values())

    def forward(self, features: Tensor) -> list[Tensor]:
        """(batch, WIDTH) -> logits by element, in the order of CLASSES."""
        return [head(features) for head in self.heads]


class Towers(nn.Module):
    """Text and image towers meeting in one space of WIDTH dimensions."""

    def __init__(self, text: CLIPTextModel) -> None:
        super().__init__()
        self.text = text
        self.image = ImageTower()
        self.text_out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.image_out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.text_namer, self.image_namer = Namer(), Namer()
        self.log_scale = nn.Parameter(torch.tensor(2.66))

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """Scaled cosines, (images, texts)."""
        scale = self.log_scale.clamp(max=4.6).exp()
        return scale * functional.normalize(self.image_out(image), dim=-1) @ functional.normalize(self.text_out(text), dim=-1).T


def new_encoder(tokens: CLIPTokenizer) -> CLIPTextModel:
    """Untrained: pre-norm blocks, learned absolute positions, pooled at the first EOS."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=BLOCKS,
            num_attention_heads=4,
            max_position_embeddings=vocabulary.LENGTH,
            projection_dim=WIDTH,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
            attn_implementation="eager",
        )
    )


def folder() -> Path:
    """Where tokenizer, encoder and towers lie."""
    return cache.folder("text-encoder")


def load() -> tuple[CLIPTokenizer, CLIPTextModel]:
    """The pretrained encoder, float32, and its tokenizer."""
    tokens = CLIPTokenizer.from_pretrained(folder() / "tokenizer")
    return tokens, CLIPTextModel.from_pretrained(folder() / "text_encoder", dtype=torch.float32).eval()


def load_towers() -> tuple[CLIPTokenizer, Towers]:
    """Both towers, for judging."""
    tokens, text = load()
    towers = Towers(text)
    towers.load_state_dict(load_file(folder() / "towers.safetensors"))
    return tokens, towers.eval()


@dataclass(frozen=True)
class Batch:
    """Pictures, their captions and as many almost-right ones, with the labels of pictures and captions."""

    pictures: Tensor
    captions: list[str]
    negatives: list[str]
    picture_labels: Tensor
    caption_labels: Tensor


def draw_batch(pictures: world.Pictures, seed: int, index: int) -> Batch:
    """The batch of one step; a pure function of (seed, index)."""
    random = Random(f"reading {seed} {index}")
    picks = [random.randrange(len(pictures.scenes)) for _ in range(BATCH)]
    scenes = [pictures.scenes[pick] for pick in picks]
    told = [random.random() >= BRIEF for _ in scenes]
    pairs = list(zip(scenes, told, strict=True))
    return Batch(
        to_tensor(pictures.pixels[np.array(picks)]),
        [grammar.caption(scene, random, background=known) for scene, known in pairs],
        [grammar.caption(almost(scene, random), random, background=known) for scene, known in pairs],
        torch.tensor([elements.labels(scene).indices for scene in scenes]),
        torch.tensor([elements.labels(scene, known).indices for scene, known in pairs]),
    )


def run(minutes: float, seed: int, log: Log) -> None:
    """Pretrain and write encoder, tokenizer and towers."""
    torch.manual_seed(seed)
    tokens = _tokenizer()
    towers = Towers(new_encoder(tokens)).train()
    optimiser = torch.optim.AdamW(_groups(towers), PEAK_RATE, betas=(0.9, 0.98))
    pictures = world.read("reading")
    log(f"text-encoder: {len(tokens)} ids, {len(pictures.scenes)} pictures")

    def step(index: int, progress: float) -> dict[str, float]:
        for group in optimiser.param_groups:
            group["lr"] = PEAK_RATE * rate(progress)
        losses = _losses(towers, tokens, draw_batch(pictures, seed, index), spelled=index % 100 < 100 * SPELLED)
        optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        optimiser.step()
        return {key: value.item() for key, value in losses.items()}

    train("text-encoder", {"towers": towers, "optimiser": optimiser}, step, minutes, log, lambda: _publish(towers))


def _tokenizer() -> CLIPTokenizer:
    where = folder() / "tokenizer"
    if not where.is_dir():
        vocabulary.tokenizer(grammar.every_caption_word()).save_pretrained(where)
    return CLIPTokenizer.from_pretrained(where)


def _groups(towers: Towers) -> list[dict]:
    """Weight decay on matrices and embeddings, none on gains and biases."""
    decayed = [value for value in towers.parameters() if value.ndim > 1]
    free = [value for value in towers.parameters() if value.ndim <= 1]
    return [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": free, "weight_decay": 0.0}]


def token_ids(tokens: CLIPTokenizer, captions: list[str], dropout: float = 0.0) -> Tensor:
    """Ids padded to the longest caption; with `dropout`, merges fail at random and words come in pieces."""
    tokens.backend_tokenizer.model.dropout = dropout or None
    ids = tokens(captions, padding="longest", truncation=True, return_tensors="pt").input_ids
    tokens.backend_tokenizer.model.dropout = None
    return ids


def _losses(towers: Towers, tokens: CLIPTokenizer, batch: Batch, spelled: bool) -> dict[str, Tensor]:
    ids = token_ids(tokens, batch.captions + batch.negatives, MERGE_DROPOUT if spelled else 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        text = towers.text(ids).pooler_output
        image = towers.image(batch.pictures)
    text, image = text.float(), image.float()
    logits = towers.similarity(image, text)
    targets = torch.arange(BATCH)
    contrast = functional.cross_entropy(logits, targets) + functional.cross_entropy(logits[:, :BATCH].T, targets)
    own, wrong = logits[:, :BATCH].diagonal(), logits[:, BATCH:].diagonal()
    named_text = _naming(towers.text_namer(text[:BATCH]), batch.caption_labels)
    named_image = _naming(towers.image_namer(image), batch.picture_labels)
    return {
        "loss": contrast + named_text + named_image,
        "contrast": contrast,
        "text names": named_text,
        "image names": named_image,
        "right over almost": (own > wrong).float().mean(),
    }


def _naming(logits: list[Tensor], labels: Tensor) -> Tensor:
    """Mean cross entropy over elements; an element no row knows costs nothing."""
    losses = [
        functional.cross_entropy(predicted, wanted, ignore_index=UNKNOWN)
        for predicted, wanted in zip(logits, labels.T, strict=True)
        if (wanted != UNKNOWN).any()
    ]
    return torch.stack(losses).mean()


def _publish(towers: Towers) -> None:
    towers.text.save_pretrained(folder() / "text_encoder")
    cache.write_bytes(folder() / "towers.safetensors", save(towers.state_dict()))
