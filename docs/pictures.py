"""Makes the pictures of the documentation, all with `dti` itself on the bundled model.

`python docs/pictures.py` makes all of them; names as arguments, those alone: `python docs/pictures.py mix compare`.
Words are learned once and kept in `--words FOLDER`; `--steps` says how long they are learned.
"""

import argparse
import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from dticli import bundled
from dticli.cli import run

HERE = Path(__file__).parent / "pictures"
PACKAGED = Path(bundled.__file__).parent / "pictures"
SUBJECTS = ("dog", "cat", "fox")
SCENES = ("a photo of <dog> in the snow", "a photo of <dog> on the beach", "a photo of <dog> at sunset")
GAP = 4
MOST_BYTES = 60_000
PLAN = """
model = "stickers"
prompt_set = "stickers"
count = 1
seeds = [0]
[train]
steps = {steps}
[arms.dti]
[arms.ti]
method = "ti"
[arms.class-word]
of = "init"
[subjects.dog]
photos = "{folder}/dog"
init = "dog"
[subjects.cat]
photos = "{folder}/cat"
init = "cat"
"""


class Studio:
    """Where words are learned and artefacts drawn."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps

    def photos(self, subject: str) -> Path:
        folder = self.folder / subject
        if not folder.is_dir():
            dti("example", folder, "--subject", subject)
        return folder

    def word(self, subject: str) -> Path:
        """The word of a subject, with previews and states along its run."""
        file = self.folder / f"{subject}.safetensors"
        if not file.is_file():
            often = ("--keep", 4, "--preview-every", self.steps // 4, "--preview-share", 1)
            shown = ("--preview", "{} in the snow", "--preview", "a pixel art {}")
            own = ("--token", f"<{subject}>", "--init", subject, "--model", "stickers", "--steps", self.steps)
            dti("train", self.photos(subject), *own, *often, *shown, "--resume", "--quiet", "--out", file)
        return file

    def readme(self) -> None:
        """Three photos, and beside each six pictures of one scene: README's, which is in the package."""
        out = self.folder / "scenes"
        shutil.rmtree(out, ignore_errors=True)
        dti(
            "generate",
            *SCENES,
            "-t",
            self.word("dog"),
            "--model",
            "stickers",
            "--count",
            6,
            "--out",
            out,
            "--quiet",
        )
        photos = [Image.open(file).convert("RGB") for file in sorted(self.photos("dog").glob("*.png"))]
        drawn = [Image.open(file).convert("RGB") for file in sorted(out.glob("*.png"))]
        side = 2 * drawn[0].width
        sheet = Image.new("RGB", (7 * side + 6 * GAP + 2 * GAP, 3 * side + 2 * GAP), "white")
        for row, photo in enumerate(photos[:3]):
            for column, picture in enumerate([photo, *drawn[6 * row : 6 * row + 6]]):
                place = (column * (side + GAP) + 2 * GAP * (column > 0), row * (side + GAP))
                sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), place)
        save(sheet, PACKAGED / "grid.png", most=4 * MOST_BYTES)

    def previews(self) -> None:
        """A prompt a row, a step a column."""
        files = sorted((self.word("dog").with_suffix(".run") / "previews").iterdir())
        steps = list(dict.fromkeys(file.name[:8] for file in files))
        rows = len(files) // len(steps)
        columns = [[file for file in files if file.name.startswith(step)] for step in steps]
        pictures = [Image.open(column[row]) for row in range(rows) for column in columns]
        width, height = pictures[0].size
        sheet = Image.new("RGB", (width * len(steps), height * rows))
        for index, picture in enumerate(pictures):
            sheet.paste(picture, (index % len(steps) * width, index // len(steps) * height))
        save(sheet, HERE / "previews.png")

    def compare(self) -> None:
        run = self.word("dog").with_suffix(".run")
        states = [f"{run}@{self.steps * quarter // 4}" for quarter in (1, 2, 4)]
        self._drawn("compare", "compare", *states, "--prompt", "a photo of {}", "--prompt", "{} in the snow")

    def interpolation(self) -> None:
        self._drawn("interpolation", "interpolate", self.word("dog"), self.word("cat"), "--frames", 7)

    def grid(self) -> None:
        self._drawn("grid", "interpolate", *map(self.word, SUBJECTS), "--grid", "--frames", 4)

    def mix(self) -> None:
        """Two words and, between them, what `dti mix` makes of them."""
        dog, cat, mix = self.word("dog"), self.word("cat"), self.folder / "mix.safetensors"
        dti("mix", dog, cat, "--token", "<dogcat>", "--out", mix, "--force")
        words = (f"<dog>={dog}", f"<dogcat>={mix}", f"<cat>={cat}")
        self._drawn("mix", "compare", *words, "--prompt", "a photo of {}", "--prompt", "{} in the snow")

    def norms(self) -> None:
        dti("inspect-norms", self.word("dog"), "--plot", HERE / "norms.svg", "--force")

    def results(self) -> None:
        """What a plan finds, as a chart."""
        for subject in SUBJECTS[:2]:
            self.photos(subject)
        plan = self.folder / "plan.toml"
        plan.write_text(PLAN.format(steps=self.steps, folder=self.folder))
        judges = 'image_judge = "stickers-b"\ntext_judge = "stickers-b"\n'
        plan.write_text(judges + plan.read_text())
        dti("evaluate", "--plan", plan, "--out", self.folder / "results", "--quiet")
        (HERE / "results.svg").write_bytes((self.folder / "results" / "results.svg").read_bytes())

    def report(self) -> None:
        """The top of the page about a word, as a browser shows it."""
        from playwright.sync_api import sync_playwright

        page_file = self.folder / "report.html"
        dti("report", self.word("dog").with_suffix(".run"), "--out", page_file, "--force")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 760, "height": 900})
            page.goto(page_file.as_uri())
            save(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), HERE / "report.png")
            browser.close()

    def _drawn(self, name: str, *arguments: object) -> None:
        file = self.folder / f"{name}.png"
        dti(*arguments, "--out", file, "--force", "--quiet")
        save(Image.open(file).convert("RGB"), HERE / f"{name}.png")


def dti(*arguments: object) -> None:
    """Run a command, which must succeed."""
    if code := run([str(argument) for argument in arguments]):
        raise SystemExit(f"dti {arguments[0]} ended with {code}")


def save(picture: Image.Image, target: Path, most: int = MOST_BYTES) -> None:
    """A PNG of few colours, small enough for a page; pictures of the bundled model twice their size."""
    if picture.width < 500:
        picture = picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST)
    for colours in (256, 128, 64, 32):
        content = io.BytesIO()
        picture.quantize(colours).save(content, "PNG", optimize=True)
        if content.tell() <= most:
            break
    target.write_bytes(content.getvalue())
    print(f"{target.name}: {content.tell()} bytes, {colours} colours")


def main() -> None:
    all_of_them: dict[str, Callable[[Studio], None]] = {
        name: getattr(Studio, name)
        for name in (
            "readme",
            "previews",
            "compare",
            "interpolation",
            "grid",
            "mix",
            "norms",
            "results",
            "report",
        )
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(all_of_them)}")
    parser.add_argument("--words", type=Path, help="keep what is learned in this folder")
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    HERE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        studio = Studio(given.words or Path(temporary), given.steps)
        for name in given.names or all_of_them:
            all_of_them[name](studio)


if __name__ == "__main__":
    main()
