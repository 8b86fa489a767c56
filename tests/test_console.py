"""The live line on a real pseudo-terminal, read back by a terminal emulator."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyte
import pytest

from dticli import console
from dticli.durations import Countdown

ROOT = Path(__file__).parents[1]
PARTS = ("loss 0.1234", "<dog> step 100/400", "angle 12.3 deg", "norm 0.412 0.533", "9.3 steps/s")
LINE = f"""
import sys, time
from dticli import console
with console.progress(400) as line:
    for step in (100, 200, 400):
        time.sleep(0.05)
        line.update(step, *{PARTS!r})
        sys.stdin.readline()
"""
STOPPED = "from dticli import console; console.stopped('stopped at step 3'); console.error('no such file')"


class Terminal:
    """A program on a pseudo-terminal, and the screen it draws on."""

    def __init__(self, code: str, columns: int, **environment: str) -> None:
        self.screen = pyte.Screen(columns, 12)
        self.stream = pyte.ByteStream(self.screen)
        self.received = b""
        self.master, slave = pty.openpty()
        self.resize(columns)
        # What is typed must not move the cursor.
        quiet = termios.tcgetattr(slave)
        quiet[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, quiet)
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
        kept |= {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"} | environment
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, env=kept, close_fds=True
        )
        os.close(slave)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 12, columns, 0, 0))
        self.screen.resize(12, columns)

    def until(self, pattern: str) -> list[str]:
        """Wait until a line of the screen matches; returns all that are not empty."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            shown = [line.rstrip() for line in self.screen.display if line.strip()]
            if any(re.search(pattern, line) for line in shown):
                return shown
            ready, _, _ = select.select([self.master], [], [], 1)
            if ready:
                try:
                    data = os.read(self.master, 65536)
                except OSError:  # the program has ended
                    data = b""
                if not data:
                    break
                self.received += data
                self.stream.feed(data)
        shown = [line.rstrip() for line in self.screen.display if line.strip()]
        assert any(re.search(pattern, line) for line in shown), shown
        return shown

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())


@contextmanager
def terminal(code: str, columns: int, **environment: str) -> Iterator[Terminal]:
    opened = Terminal(code, columns, **environment)
    try:
        yield opened
    finally:
        opened.process.kill()
        opened.process.wait()
        os.close(opened.master)


@pytest.mark.parametrize(("columns", "shown"), [(60, 1), (80, 3), (200, 5)])
def test_the_line_fits_the_terminal(columns: int, shown: int) -> None:
    """Bar, per cent and time left always; of the rest, as much as there is room for, in its order; never a second line."""
    with terminal(LINE, columns) as opened:
        lines = [line for line in opened.until(r"25%") if line]
        assert len(lines) == 1, lines
        assert re.match(r"[━╸╺ ]{10,}  ?25%  \d+:\d\d left", lines[0]), lines
        assert [part in lines[0] for part in PARTS] == [index < shown for index in range(len(PARTS))], lines
        assert len(lines[0]) < columns


def test_the_line_follows_the_width() -> None:
    """Drawn for the new width as soon as the terminal has one; at the end nothing of it is left."""
    with terminal(LINE, 200) as opened:
        assert len(opened.until(r"25%.*steps/s")[0]) > 80
        opened.resize(60)
        opened.type("\n")
        lines = opened.until(r" 50%")
        assert all(len(line) < 60 for line in lines), lines
        assert "angle" not in lines[-1]


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"JPY_PARENT_PID": "1"}])
def test_where_no_line_can_be_redrawn_plain_ones_are_printed(environment: dict[str, str]) -> None:
    """On a dumb terminal and in a notebook: text alone, with everything there is to say."""
    with terminal(LINE, 200, **environment) as opened:
        opened.type("\n")
        lines = opened.until("loss")
        assert all(part in lines[-1] for part in PARTS[:1]), lines
        assert b"\x1b[" not in opened.received


BUSY = """
import sys
from dticli import console
with console.busy("loading stickers"):
    sys.stdin.readline()
print("drawing")
"""


@pytest.mark.parametrize("environment", [{}, {"TERM": "dumb"}])
def test_what_takes_its_time_is_said_at_once(environment: dict[str, str]) -> None:
    """A live line that is gone afterwards; on a dumb terminal a plain one, which stays."""
    with terminal(BUSY, 60, **environment) as opened:
        opened.until("loading stickers")
        opened.type("\n")
        lines = opened.until("drawing")
        assert any("loading" in line for line in lines) == bool(environment), lines


def test_a_command_says_that_it_loads_before_it_imports_torch(tmp_path: Path) -> None:
    """With a torch that takes for ever to import."""
    (tmp_path / "torch.py").write_text("import time; time.sleep(1000)")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from dticli.cli import run; run(['generate', 'a dog'])"
    with terminal(code, 60) as opened:
        opened.until("loading")


def test_plain_lines_are_few(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one in ten seconds, whatever is done meanwhile; the first one and that of the end always."""
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.progress(100, every=10) as line:
        assert line
        for done in range(1, 101):
            now += 0.5
            line.update(done, f"picture {done}/100")
    told = [text.split()[1] for text in capsys.readouterr().err.splitlines()]
    assert told == ["10/100", "30/100", "50/100", "70/100", "90/100", "100/100"]


def test_pieces_are_numbered_with_the_time_that_is_left() -> None:
    """At the mean pace of those that are done: none is, then one in 60 s, then two in 100 s."""
    now = iter([0.0, 60.0, 100.0])
    countdown = Countdown(4, lambda: next(now))
    assert [countdown.next() for _ in range(3)] == ["1 of 4", "2 of 4, 3:00 left", "3 of 4, 1:40 left"]
    together = Countdown(4, lambda: 0.0)
    assert [together.next(3), together.next()] == ["1 to 3 of 4", "4 of 4, 0:00 left"]


def test_being_stopped_is_no_error() -> None:
    """What Ctrl-C leaves behind is not red, unlike an error."""
    with terminal(STOPPED, 80) as opened:
        lines = opened.until("error: no such file")
        assert lines[0] == "stopped at step 3"
        assert opened.screen.buffer[0][0].fg != "red"
        assert opened.screen.buffer[1][0].fg == "red"


PICTURE = """
from PIL import Image
from dticli import console
from dticli.draw import terminal
image = Image.new("RGB", (64, 64), "#0000ff")
image.paste("#ff0000", (0, 0, 64, 32))
with console.progress(400) as line:
    line.update(100, "loss 0.1234")
    console.raw(terminal.shown(image, 10))
    line.update(200, "loss 0.1234")
    input()
print("the end")
"""
PROTOCOLS = {
    "kitty": ({"TERM": "xterm-kitty"}, b"\x1b_G"),
    "iterm": ({"TERM_PROGRAM": "iTerm.app"}, b"\x1b]1337;File=inline=1"),
    "sixel": ({"TERM_PROGRAM": "WezTerm"}, b"\x1bP0;1;0q"),
    "blocks": ({}, b"\xe2\x96\x84"),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_picture_is_shown_as_the_terminal_can(name: str) -> None:
    """In its own protocol, or, red above blue, in half blocks above the live line, of which nothing is left."""
    environment, expected = PROTOCOLS[name]
    with terminal(PICTURE, 60, **environment) as opened:
        opened.until(r" 50%")
        assert [each for each, (_, start) in PROTOCOLS.items() if start in opened.received] == [name]
        assert expected in opened.received
        if name == "blocks":
            top, bottom = opened.screen.buffer[0][3], opened.screen.buffer[4][3]
            assert (top.fg, top.bg, bottom.fg, bottom.bg) == ("ff0000", "ff0000", "0000ff", "0000ff")
            opened.type("\n")
            assert opened.until("the end")[-2:] == ["▄" * 10, "the end"]
