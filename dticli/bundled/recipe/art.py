"""Step `art`: download the four emoji packages from npm, and render their icons as transparent pictures.

The SVG files stay in the cache folder; only renderings are in the package (see NOTICE.md).
"""

import io
import json
import shutil
import subprocess
import tarfile
from functools import lru_cache
from pathlib import Path

from PIL import Image

from dticli.errors import EnvironmentProblem, InputError

from . import cache

PACKAGES = {
    "fluent": ("@iconify-json/fluent-emoji", "1.2.7"),
    "flat": ("@iconify-json/fluent-emoji-flat", "1.2.6"),
    "noto": ("@iconify-json/noto", "1.2.9"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5"),
}
SPRITE = 160  # px; sprites are mostly reduced from this size


class Art:
    """Icons of several art sets, each rendered once and trimmed to its visible part.

    Args:
        icons: art set to icon name to complete SVG text.
    """

    def __init__(self, icons: dict[str, dict[str, str]]):
        self._icons = icons
        self.sprite = lru_cache(maxsize=None)(self._sprite)

    def has(self, art_set: str, icon: str) -> bool:
        """Whether the set holds an icon of this name."""
        return icon in self._icons.get(art_set, {})

    def _sprite(self, art_set: str, icon: str) -> Image.Image:
        """The icon as RGBA, trimmed to its visible part, longest side at most SPRITE px."""
        if not self.has(art_set, icon):
            raise InputError(
                f"no icon {icon!r} in the art set {art_set!r}: run the recipe's `art` step again"
            )
        return _trim(_rasterise(self._icons[art_set][icon]))


def _rasterise(svg: str) -> Image.Image:
    try:
        from resvg_py import svg_to_bytes
    except ImportError as missing:
        raise EnvironmentProblem("resvg-py is not installed: pip install 'dticli[recipe]'") from missing
    png = svg_to_bytes(svg_string=svg, width=SPRITE, height=SPRITE, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _trim(picture: Image.Image) -> Image.Image:
    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 12)).getbbox()
    return picture.crop(box) if box else picture


def load() -> Art:
    """The downloaded art sets. Raises EnvironmentProblem if step `art` has not run."""
    missing = [art_set for art_set in PACKAGES if not _icons_file(art_set).is_file()]
    if missing:
        raise EnvironmentProblem(
            f"no art for {', '.join(missing)}: run `python -m dticli.bundled.recipe art` first"
        )
    return Art({art_set: _read_icons(_icons_file(art_set)) for art_set in PACKAGES})


def fetch() -> None:
    """Download missing art sets in pinned versions with `npm pack`; needs the network and npm.

    Raises:
        EnvironmentProblem: npm is missing, or a download fails.
    """
    if shutil.which("npm") is None:
        raise EnvironmentProblem(
            "npm was not found: the recipe fetches its art with `npm pack`; install Node.js"
        )
    for art_set, (package, version) in PACKAGES.items():
        if not _icons_file(art_set).is_file():
            _unpack(_download(f"{package}@{version}"), _icons_file(art_set))


def _icons_file(art_set: str) -> Path:
    package, version = PACKAGES[art_set]
    return cache.folder("art") / f"{package.split('/')[1]}-{version}.json"


def _download(spec: str) -> Path:
    folder = cache.folder("art")
    done = subprocess.run(
        ["npm", "pack", "--silent", spec], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EnvironmentProblem(f"npm could not fetch {spec}: {reason}")
    return folder / done.stdout.strip().splitlines()[-1]


def _unpack(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as packed:
        member = packed.extractfile("package/icons.json")
        if member is None:
            raise EnvironmentProblem(f"{archive.name} holds no icons.json")
        cache.write_bytes(target, member.read())
    archive.unlink()


def _read_icons(file: Path) -> dict[str, str]:
    """Icon name to SVG text, including aliases."""
    packed = json.loads(file.read_text())
    width, height = packed.get("width", 16), packed.get("height", 16)
    icons = {
        name: _svg(icon["body"], icon.get("width", width), icon.get("height", height))
        for name, icon in packed["icons"].items()
    }
    aliases = {
        name: icons[of["parent"]] for name, of in packed.get("aliases", {}).items() if of["parent"] in icons
    }
    return aliases | icons


def _svg(body: str, width: float, height: float) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}">{body}</svg>'
    )
