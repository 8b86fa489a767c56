"""Step `text-encoder`: pretrain a pre-norm CLIPTextModel against an image tower; it is then frozen for the denoiser.

The loss is CLIP's (Radford et al., arXiv:2103.00020) with hard negative captions as extra columns (Yuksekgonul et al.,
arXiv:2210.01936), and a ranking loss for these. Both towers also classify the scene's elements. At first, only the text tower is
trained, to classify captions without pictures, because several times as many captions fit into the time.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dticli.bundled.judge import WIDTH, DualEncoder
from dticli.bundled.world import elements, grammar, names
from dticli.bundled.world.elements import UNKNOWN

from . import cache, shards, vocabulary
from .autoencoder import to_tensor
from .negatives import almost
from .training import RecipeLog, fast, rate, train

BLOCKS = 8
BATCH = 64
READING_BATCH = 32
READING_SHARE = 0.45  # share of the time with captions only
PEAK_RATE = 1e-3
WEIGHT_DECAY = 0.05
# During training, rows and positions are this many times larger than usual, with as many times the learning rate. Otherwise the
# first block adds two hundred times their norm, and even an inflated row would have no effect after it, unlike in CLIP.
ROW_SCALE = 32.0
NAME_NOISE = 0.7  # norm of the noise in a name's initial row, relative to its noun's row
BRIEF = 0.15  # share of captions without the background


class Towers(nn.Module):
    """Text tower and judge A, with a common space of WIDTH dimensions."""

    def __init__(self, text: CLIPTextModel) -> None:
        super().__init__()
        self.text = text
        self.judge = DualEncoder()


def new_encoder(tokens: CLIPTokenizer) -> CLIPTextModel:
    """An untrained encoder: pre-norm blocks, learned absolute positions, pooled at the first EOS; unused rows are zero."""
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            hidden_act="gelu",  # one kernel; quick_gelu is three
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
    with torch.no_grad():
        for table in _tables(encoder):
            table.mul_(ROW_SCALE)
        encoder.get_input_embeddings().weight[vocabulary.silent_ids(tokens, grammar.every_caption_word())] = 0
    return encoder


def _tables(encoder: CLIPTextModel) -> list[nn.Parameter]:
    """The embeddings of tokens and of positions."""
    embeddings = encoder.embeddings
    return [embeddings.token_embedding.weight, embeddings.position_embedding.weight]


def folder() -> Path:
    """The folder of tokenizer, encoder and judge A."""
    return cache.folder("text-encoder")


def load() -> tuple[CLIPTokenizer, CLIPTextModel]:
    """The tokenizer, and the pretrained encoder in float32."""
    tokens = CLIPTokenizer.from_pretrained(folder() / "tokenizer")
    return tokens, CLIPTextModel.from_pretrained(folder() / "text_encoder").float().eval()


def begin(start: Path, seed: int) -> None:
    """Start from the encoder of a model folder instead of pretraining, with new rows for words that it does not know.

    A name's row starts near that of its noun, and those of other words in random directions; their norms are drawn from the
    vocabulary's.
    """
    before = CLIPTokenizer.from_pretrained(start / "tokenizer")
    old = CLIPTextModel.from_pretrained(start / "text_encoder").float()
    tokens = _tokenizer()
    encoder = new_encoder(tokens)
    table = old.get_input_embeddings().weight.detach()
    known = before.get_vocab()
    live = table[table.norm(dim=1) > 0]
    random = torch.Generator().manual_seed(seed)
    state = old.state_dict()
    rows = torch.zeros(len(tokens), WIDTH)
    nouns = {name.word: name.noun for name in names.all_names()}
    spoken = set(range(len(tokens))) - set(vocabulary.silent_ids(tokens, grammar.every_caption_word()))
    unread = []
    for piece, index in tokens.get_vocab().items():
        place = known.get(piece)
        if index not in spoken:
            continue
        word = piece.removesuffix(vocabulary.WORD_END)
        if place is not None and table[place].norm() > 0:
            rows[index] = table[place]
            unread += [index] if word in nouns else []  # learned with an earlier denoiser, and trained again
            continue
        length = live[torch.randint(len(live), (1,), generator=random)].norm()
        row = torch.randn(WIDTH, generator=random)
        if word in nouns:
            noun = functional.normalize(table[known[nouns[word] + vocabulary.WORD_END]], dim=0)
            row = noun + NAME_NOISE * functional.normalize(row, dim=0)
        rows[index] = length * functional.normalize(row, dim=0)
        unread.append(index)
    key = next(key for key in state if key.endswith("token_embedding.weight"))
    encoder.load_state_dict(state | {key: rows})
    cache.write_folder(folder() / "text_encoder", encoder.save_pretrained)
    cache.write_bytes(_unread_file(), json.dumps(sorted(unread)).encode())


def _unread_file() -> Path:
    return folder() / "unread.json"


def unread_ids() -> list[int]:
    """Ids of words on which the encoder was not pretrained; their rows are trained with the denoiser."""
    return json.loads(_unread_file().read_bytes()) if _unread_file().is_file() else []


def weights() -> Path:
    """The file of the pretrained encoder's weights."""
    return folder() / "text_encoder" / "model.safetensors"


def judge_file() -> Path:
    """The file of judge A after pretraining."""
    return folder() / "judge-a.safetensors"


@dataclass(frozen=True)
class CaptionBatch:
    """Pictures, their captions, negative captions for every second one, and the labels of pictures and captions."""

    pictures: Tensor
    captions: list[str]
    negatives: list[str]
    picture_labels: Tensor
    caption_labels: Tensor


def draw_batch(pictures: shards.Pictures, seed: int, index: int) -> CaptionBatch:
    """The batch of a step; a pure function of (seed, index)."""
    random = Random(f"reading {seed} {index}")
    picks = [random.randrange(len(pictures.scenes)) for _ in range(BATCH)]
    scenes = [pictures.scenes[pick] for pick in picks]
    told = [random.random() >= BRIEF for _ in scenes]
    pairs = list(zip(scenes, told, strict=True))
    return CaptionBatch(
        to_tensor(pictures.pixels[np.array(picks)]),
        [grammar.caption(scene, random, background=known) for scene, known in pairs],
        [grammar.caption(almost(scene, random), random, background=known) for scene, known in pairs[::2]],
        torch.tensor([elements.labels(scene).indices for scene in scenes]),
        torch.tensor([elements.caption_labels(scene, known).indices for scene, known in pairs]),
    )


def run(minutes: float, seed: int, log: RecipeLog) -> None:
    """Pretrain, and write encoder, tokenizer and judge A."""
    torch.manual_seed(seed)
    tokens = _tokenizer()
    towers = Towers(new_encoder(tokens)).train()
    optimiser = torch.optim.AdamW(_groups(towers), PEAK_RATE, betas=(0.9, 0.98))
    pictures = shards.read("reading")
    log(f"text-encoder: {len(tokens)} ids, {len(pictures.scenes)} pictures")

    def step(index: int, progress: float) -> dict[str, float]:
        for group in optimiser.param_groups:
            group["lr"] = PEAK_RATE * group["pace"] * rate(progress)
        if progress < READING_SHARE:
            losses = _reading_losses(towers, tokens, seed, index)
        else:
            losses = _losses(towers, tokens, draw_batch(pictures, seed, index))
        optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        optimiser.step()
        return {key: value.item() for key, value in losses.items()}

    train(
        "text-encoder",
        {"towers": towers, "optimiser": optimiser},
        step,
        minutes,
        log,
        lambda: _publish(towers),
    )


def _tokenizer() -> CLIPTokenizer:
    where = folder() / "tokenizer"
    if not where.is_dir():
        cache.write_folder(where, vocabulary.tokenizer(grammar.every_caption_word()).save_pretrained)
    return CLIPTokenizer.from_pretrained(where)


def _groups(towers: Towers) -> list[dict]:
    """Weight decay on matrices and embeddings, none on gains and biases; `pace` multiplies the learning rate."""
    tables = _tables(towers.text)
    decayed = [
        value for value in towers.parameters() if value.ndim > 1 and not any(value is t for t in tables)
    ]
    free = [value for value in towers.parameters() if value.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": WEIGHT_DECAY, "pace": 1.0},
        {"params": free, "weight_decay": 0.0, "pace": 1.0},
        # AdamW's decay is learning rate x weight decay.
        {"params": tables, "weight_decay": WEIGHT_DECAY / ROW_SCALE, "pace": ROW_SCALE},
    ]


def token_ids(tokens: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids, padded to the longest caption, (captions, length)."""
    return tokens(captions, padding="longest", truncation=True, return_tensors="pt").input_ids


def _reading_losses(towers: Towers, tokens: CLIPTokenizer, seed: int, index: int) -> dict[str, Tensor]:
    """Loss of classifying the elements of captions, without pictures."""
    random = Random(f"captions {seed} {index}")
    scenes = [grammar.training_scene(random, grammar.READING) for _ in range(READING_BATCH)]
    told = [random.random() >= BRIEF for _ in scenes]
    captions = [
        grammar.caption(scene, random, background=known) for scene, known in zip(scenes, told, strict=True)
    ]
    labels = [
        elements.caption_labels(scene, known).indices for scene, known in zip(scenes, told, strict=True)
    ]
    with fast():
        text = towers.text(token_ids(tokens, captions)).pooler_output
    logits, wanted = towers.judge.text_namer(text.float()), torch.tensor(labels)
    names = naming(logits, wanted)
    return {"loss": names, "text names": names, "nouns right": _right(logits[0], wanted[:, 0])}


def _losses(towers: Towers, tokens: CLIPTokenizer, batch: CaptionBatch) -> dict[str, Tensor]:
    judge = towers.judge
    ids = token_ids(tokens, batch.captions + batch.negatives)
    with fast():
        text = towers.text(ids).pooler_output
        image = judge.image(batch.pictures.contiguous(memory_format=torch.channels_last))
    text, image = text.float(), image.float()
    logits = judge.similarity(functional.normalize(judge.image_out(image), dim=-1), text)
    targets = torch.arange(BATCH)
    contrast = functional.cross_entropy(logits, targets) + functional.cross_entropy(
        logits[:, :BATCH].T, targets
    )
    own, wrong = logits[:, :BATCH].diagonal()[::2], logits[::2, BATCH:].diagonal()
    ranking = functional.softplus(wrong - own).mean()
    named_text = naming(judge.text_namer(text[:BATCH]), batch.caption_labels)
    named_image = naming(judge.image_namer(image), batch.picture_labels)
    return {
        "loss": contrast + ranking + named_text + named_image,
        "contrast": contrast,
        "ranking": ranking,
        "text names": named_text,
        "image names": named_image,
        "right over almost": (own > wrong).float().mean(),
        "nouns right": _right(judge.text_namer(text[:BATCH])[0], batch.caption_labels[:, 0]),
    }


def _right(logits: Tensor, wanted: Tensor) -> Tensor:
    """Share of known labels that are predicted."""
    known = wanted != UNKNOWN
    return (logits.argmax(dim=1) == wanted)[known].float().mean()


def naming(logits: list[Tensor], labels: Tensor) -> Tensor:
    """Cross entropy summed over elements; elements that are UNKNOWN in all rows are left out."""
    losses = [
        functional.cross_entropy(predicted, wanted, ignore_index=UNKNOWN)
        for predicted, wanted in zip(logits, labels.T, strict=True)
        if (wanted != UNKNOWN).any()
    ]
    return torch.stack(losses).sum()


def _publish(towers: Towers) -> None:
    usual = copy.deepcopy(towers.text)
    shorten(usual)
    cache.write_folder(folder() / "text_encoder", usual.save_pretrained)
    cache.write_bytes(
        judge_file(), save({key: value.contiguous() for key, value in towers.judge.state_dict().items()})
    )


@torch.no_grad()
def shorten(encoder: CLIPTextModel) -> None:
    """Divide everything that is added to the residual stream by ROW_SCALE, for usual norms of rows; layer norms cancel it."""
    added = _tables(encoder)
    for block in encoder.encoder.layers:
        for layer in (block.self_attn.out_proj, block.mlp.fc2):
            added += [layer.weight, layer.bias]
    for value in added:
        value.div_(ROW_SCALE)
