"""Words inside pictures, as A1111 saves previews of a training: in a text chunk, or in the low bits beside the picture.

Read as plain data: the JSON of a pickle's content, with tensors as nested lists.

Source: AUTOMATIC1111/stable-diffusion-webui, modules/textual_inversion/image_embedding.py (the format).
"""

import base64
import json
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dticli.errors import InputError

CHUNK = "sd-ti-embedding"
TENSOR = "TORCHTENSOR"
FORMATS = ("PNG", "WEBP", "AVIF")
STARTS = (b"\x89PNG\r\n\x1a\n", b"RIFF")
MAX_JSON = 64 * 2**20
_MULTIPLIER, _INCREMENT = 1664525, 1013904223


def is_picture(head: bytes) -> bool:
    """Whether a file that begins like this may hold a word in a picture."""
    return head.startswith(STARTS) or head[4:12] == b"ftypavif"


def read(path: Path) -> Any:
    """The content of the pickle that the picture stands for.

    Raises:
        InputError: not a picture, or one without a word.
    """
    try:
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as picture:
            # Pillow warns of half of its pixel limit.
            warnings.simplefilter("ignore")
            picture.load()
            chunk = picture.info.get(CHUNK)
            data = (
                base64.b64decode(chunk)
                if isinstance(chunk, str)
                else _beside(np.asarray(picture.convert("RGB")))
            )
        return json.loads(data, object_hook=_tensor)
    except Exception:
        # Damaged and hostile pictures raise whatever their bytes lead the decoders to.
        raise InputError(
            "a picture without a word in it: expected a token file, or a preview that A1111 saved with its embedding; "
            "pass the .pt or .safetensors file"
        ) from None


def _tensor(entry: dict[str, Any]) -> Any:
    return np.array(entry[TENSOR], np.float32) if TENSOR in entry else entry


def _beside(pixels: np.ndarray) -> bytes:
    """The data in the low bits of two blocks that black columns part from the picture between them.

    Args:
        pixels: (height, width, 3) uint8.

    Raises:
        ValueError: there are no such blocks.
        zlib.error: they hold no data.
    """
    lit = pixels.min(axis=2) > 0
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    nibbles = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & 0x0F
    black = np.flatnonzero(~nibbles.any(axis=(0, 2)))
    if len(black) < 2:
        raise ValueError("no black columns")
    low, high = _clear(nibbles[:, : black[0]]), _clear(nibbles[:, black[-1] + 1 :])
    return zlib.decompressobj().decompress((high << 4 | low).tobytes(), MAX_JSON)


def _clear(block: np.ndarray) -> np.ndarray:
    """The block without the pattern laid over it: a linear congruential generator's numbers, from 0."""
    powers = np.full(block.size, _MULTIPLIER, dtype=np.uint32)
    powers[:1] = 1
    sums = np.add.accumulate(np.multiply.accumulate(powers), dtype=np.uint32)
    pattern = (sums * np.uint32(_INCREMENT) % 255).astype(np.uint8).reshape(block.shape)
    return block ^ (pattern & 0x0F)
