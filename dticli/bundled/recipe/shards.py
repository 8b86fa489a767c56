"""Step `world`: draw pictures with their scenes, in shards that are written atomically."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from dticli.bundled.world import grammar
from dticli.bundled.world.looks import Look
from dticli.bundled.world.scenes import Background, Scene, Thing

from . import art, cache, drawing
from .training import RecipeLog

SHARD = 5_000
SAMPLE = 50  # pictures of a shard that are drawn again to check whether the rules have changed
SIDE = 64
COARSE = 16  # side of masks, as of latents

KINDS: dict[str, Callable[[Random], Scene]] = {
    "pictures": grammar.training_scene,
    "reading": lambda random: grammar.training_scene(random, grammar.READING),
    # Judges see all combinations and art sets, because they judge the model's pictures and are not tested themselves.
    "judging": lambda random: grammar.any_scene(random, grammar.JUDGING),
}


@dataclass(frozen=True)
class Pictures:
    """Drawn pictures, (count, 64, 64, 3) uint8, masks of their things, (count, 16, 16) uint8, and their scenes."""

    pixels: np.ndarray
    masks: np.ndarray
    scenes: tuple[Scene, ...]


def make(kind: str, count: int, seed: int, log: RecipeLog) -> None:
    """Draw at least `count` pictures of a kind in whole shards, shared among the ranks; shards that are up to date are kept."""
    icons = art.load()
    for number in range(log.ranks.rank, -(-count // SHARD), log.ranks.size):
        random = Random(f"{kind} {seed} {number}")
        scenes = tuple(KINDS[kind](random) for _ in range(SHARD))
        drawn = _drawn(scenes, icons, random)
        first = list(islice(drawn, SAMPLE))
        if not _lies_there(_file(kind, number), scenes, [pixels for pixels, _ in first]):
            pixels, masks = zip(*first, *drawn, strict=True)
            _write(_file(kind, number), Pictures(np.stack(pixels), np.stack(masks), scenes))
            log(f"world {kind}: {(number + 1) * SHARD} pictures")
    for left in shard_files(kind)[-(-count // SHARD) :]:
        left.unlink()  # shards of a larger world, perhaps drawn by other rules


def draw(scenes: Sequence[Scene], seed: int) -> list[np.ndarray]:
    """Draw scenes, as (64, 64, 3) uint8 pictures."""
    return [pixels for pixels, _ in _drawn(scenes, art.load(), Random(f"scenes {seed}"))]


def read(*kinds: str) -> Pictures:
    """All drawn pictures of some kinds, in the order of kinds."""
    shards = [read_shard(file) for kind in kinds for file in shard_files(kind)]
    return Pictures(
        np.concatenate([shard.pixels for shard in shards]),
        np.concatenate([shard.masks for shard in shards]),
        tuple(scene for shard in shards for scene in shard.scenes),
    )


def shard_files(kind: str) -> list[Path]:
    """The drawn shards of a kind, in order."""
    return sorted(cache.folder("world").glob(f"{kind}-*.npz"))


def _file(kind: str, number: int) -> Path:
    return cache.folder("world") / f"{kind}-{number:03d}.npz"


def _lies_there(file: Path, scenes: tuple[Scene, ...], first: list[np.ndarray]) -> bool:
    """Whether a shard exists with these scenes and first pictures."""
    if not file.is_file():
        return False
    kept = read_shard(file)
    return kept.scenes == scenes and np.array_equal(kept.pixels[: len(first)], np.stack(first))


def _drawn(
    scenes: Sequence[Scene], icons: art.Art, random: Random
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for scene in scenes:
        picture, mask = drawing.masked(scene, icons, random, SIDE)
        yield np.asarray(picture), np.asarray(mask.resize((COARSE, COARSE), Image.Resampling.BOX))


def _write(file: Path, pictures: Pictures) -> None:
    lines = "\n".join(json.dumps(asdict(scene)) for scene in pictures.scenes)
    cache.write(
        file,
        lambda out: np.savez(
            out, pixels=pictures.pixels, masks=pictures.masks, scenes=np.frombuffer(lines.encode(), np.uint8)
        ),
    )


def read_shard(file: Path) -> Pictures:
    """Read a shard."""
    with np.load(file) as packed:
        lines = packed["scenes"].tobytes().decode().splitlines()
        return Pictures(
            packed["pixels"], packed["masks"], tuple(scene_from(json.loads(line)) for line in lines)
        )


def scene_from(row: dict) -> Scene:
    """The scene whose `dataclasses.asdict` this is."""
    behind = row["background"]
    return Scene(
        **{
            **row,
            "things": tuple(_thing(thing) for thing in row["things"]),
            "background": Background(behind["place"], behind["pattern"], tuple(behind["colours"])),
        }
    )


def _thing(row: dict) -> Thing:
    look = Look(**row["look"]) if row["look"] else None
    return Thing(**{**row, "look": look, "told": tuple(row["told"])})
