"""The page about a word, as a real browser shows it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dticli import bundled
from dticli.cli import run
from dticli.words import token_reading, token_writing
from dticli.words.learned_word import Token
from tests.conftest import Outcome

Dti = Callable[..., Outcome]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "<img src=x onerror=alert(1)>"
STATE = """() => ({
    images: [...document.images].map(image => image.complete && image.naturalWidth > 0),
    scripts: document.scripts.length,
    handlers: [...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a => a.name.startsWith('on'))).length,
    overflow: document.scrollingElement.scrollWidth - document.documentElement.clientWidth,
    ground: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
    text: document.body.innerText,
    title: document.title,
})"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with previews and states, from photos and a prompt with names that are markup; its word carries such metadata."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "photos").mkdir()
    first, second, *_ = bundled.photos("dog")
    shutil.copy(first, folder / "photos" / f"{HOSTILE}.png")
    shutil.copy(second, folder / "photos" / "plain.png")
    word = folder / "dog.safetensors"
    arguments = ["train", folder / "photos", "--token", "<dog>", "--init", "dog", "--model", "stickers"]
    arguments += ["--steps", 2, "--batch-size", 1, "--resolution", 16, "--keep", 2, "--quiet", "--out", word]
    arguments += ["--preview", f"{{}} {HOSTILE}", "--preview-steps", 1, "--preview-count", 2]
    assert run([str(each) for each in arguments]) == 0
    token = token_reading.read(word)
    token_writing.write(
        word, Token.of(token.name, token.vectors, {**token.metadata, "dti.note": HOSTILE}), force=True
    )
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not BROWSER:
        pytest.skip("no Chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield launched
        launched.close()


def test_training_with_previews_writes_the_page(trained: Path) -> None:
    """Beside the run, in one piece, and it names no file or address to load."""
    page = (trained / "dog.run" / "report.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<img") == page.count('src="data:image/')


def test_the_page_in_a_browser(trained: Path, dti: Dti, browser: Any, tmp_path: Path) -> None:
    """Every image loads, nothing is logged or requested, names stay text; wide and narrow, light and dark."""
    figures = {
        "image_judge": HOSTILE, "text_judge": "b",
        "words": [{
            "token": "<dog>", "noun": "dog", "pictures": 8, "elements": {"noun": 0.5},
            "likeness": {"value": 0.5, "low": 0.4, "high": 0.6},
            "alignment": {"value": 0.25, "low": None, "high": None},
        }],
    }  # fmt: skip
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    target = tmp_path / "report.html"
    assert (
        dti("report", trained / "dog.run", "--out", target, "--evaluation", tmp_path / "figures.json").code
        == 0
    )
    grounds = []
    for scheme, width in (("light", 1200), ("dark", 360)):
        problems: list[str] = []
        requests: list[str] = []
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
        page = context.new_page()
        page.on("console", lambda message, seen=problems: seen.append(message.text))
        page.on("pageerror", lambda error, seen=problems: seen.append(str(error)))
        page.on("dialog", lambda dialog, seen=problems: (seen.append("dialog"), dialog.dismiss()))
        page.on("request", lambda request, seen=requests: seen.append(request.url))
        page.goto(target.as_uri())
        found = page.evaluate(STATE)
        assert problems == []
        assert [url for url in requests if not url.startswith("data:")] == [target.as_uri()]
        # Two strips of previews at steps 0 and 2, their last pictures again, and two photos.
        assert found["images"] == [True] * (4 + 2 + 2)
        assert (found["scripts"], found["handlers"], found["overflow"]) == (0, 0, 0)
        assert found["title"].startswith("<dog>")
        for text in (
            f"{HOSTILE}.png",
            f"<dog> {HOSTILE}",
            HOSTILE,
            "0.500 (0.400 to 0.600)",
            "dti train --config",
        ):
            assert text in found["text"], text
        grounds.append((found["ground"], found["ink"]))
        context.close()
    assert grounds[0] != grounds[1]


def test_the_page_by_keyboard(trained: Path, browser: Any) -> None:
    """Tab reaches every section's link and every strip, and the arrow keys scroll a strip that is wider than the window."""
    page = browser.new_page(viewport={"width": 220, "height": 800})
    page.goto((trained / "dog.run" / "report.html").as_uri())
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.getAttribute('href') || document.activeElement.className")
        )
    links = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))")
    assert len(links) >= 8
    assert set(links) <= set(reached)
    assert reached.count("strip scroll") >= 2
    page.focus(".strip")
    page.keyboard.press("ArrowRight")
    # Not wait_for_function: the page's own policy forbids what that would do in it.
    for _ in range(100):
        page.wait_for_timeout(50)
        if scrolled := page.evaluate("document.querySelector('.strip').scrollLeft"):
            break
    assert scrolled > 0
    assert page.evaluate("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")


def test_a_word_without_a_run_has_a_page_too(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """Of a token file alone: norms, nearest words and programs, and no section without content."""
    lonely = tmp_path / "dog.safetensors"
    shutil.copy(dog, lonely)
    assert dti("report", lonely, "--out", tmp_path / "a.html").code == 0
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert 'id="norms"' in page
    assert 'id="nearest"' in page
    assert "ComfyUI" in page
    assert not any(
        f'id="{name}"' in page for name in ("film", "photos", "learning", "settings", "evaluation")
    )


def test_figures_may_be_what_a_shell_of_windows_redirects(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """PowerShell writes `>` as UTF-16."""
    mean = {"value": 0.5, "low": 0.4, "high": 0.6}
    word = {
        "token": "<dog>",
        "noun": "dog",
        "pictures": 8,
        "elements": {},
        "likeness": mean,
        "alignment": mean,
    }
    figures = {"image_judge": "a", "text_judge": "b", "words": [word]}
    (tmp_path / "figures.json").write_text(json.dumps(figures), encoding="utf-16")
    out = tmp_path / "a.html"
    assert dti("report", dog, "--out", out, "--evaluation", tmp_path / "figures.json").code == 0
    assert "0.500 (0.400 to 0.600)" in out.read_text(encoding="utf-8")


def test_what_no_report_can_be_of(dti: Dti, dog: Path, tmp_path: Path) -> None:
    """A run without a word, another suffix, a file in the way, and figures of another word."""
    (tmp_path / "cat.run").mkdir()
    (tmp_path / "cat.run" / "run.toml").write_text('token = "<cat>"\n')
    (tmp_path / "figures.json").write_text('{"words": []}')
    out = tmp_path / "a.html"
    for code, part, arguments in (
        (3, "--resume", (tmp_path / "cat.run",)),
        (2, ".html", (dog, "--out", tmp_path / "a.txt")),
        (3, "dti evaluate", (dog, "--out", out, "--evaluation", tmp_path / "figures.json")),
    ):
        outcome = dti("report", *arguments)
        assert (outcome.code, part in outcome.error) == (code, True), outcome.err
    out.write_text("mine")
    assert dti("report", dog, "--out", out).code == 2
    assert out.read_text() == "mine"
