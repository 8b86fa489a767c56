"""Faults injected into real runs of `dti train`: whatever happens, the word that comes out is the same, byte for byte."""

import errno
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from dticli import bundled
from tests.zygote import Ended, Zygote

STEPS = 6
COUNTS = {"injected": 0, "survived": 0, "lost": 0}


class Place:
    """A folder with one run in it, always started with the same command."""

    def __init__(self, zygote: Zygote, photos: Path, folder: Path) -> None:
        self.zygote, self.photos, self.folder = zygote, photos, folder
        folder.mkdir()

    @property
    def target(self) -> Path:
        return self.folder / "dog.safetensors"

    @property
    def run(self) -> Path:
        return self.folder / "dog.run"

    @property
    def command(self) -> list[object]:
        settings = [
            "--token",
            "<dog>",
            "--init",
            "dog",
            "--model",
            "stickers",
            "--batch-size",
            1,
            "--resolution",
            16,
        ]
        often = ["--checkpoint-steps", 2, "--checkpoint-seconds", 1000, "--steps", STEPS, "--quiet"]
        return ["train", self.photos, *settings, *often, "--out", self.target]

    def dti(self, *options: object, **conditions: object) -> Ended:
        return self.zygote.dti(*self.command, *options, **conditions)  # type: ignore[arg-type]

    def logged(self) -> list[int]:
        """Steps of the log, in order."""
        return [json.loads(line)["step"] for line in (self.run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def two_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for photo in bundled.photos("dog")[:2]:
        shutil.copy(photo, folder)
    return folder


@pytest.fixture
def place(zygote: Zygote, two_photos: Path, tmp_path: Path) -> Place:
    return Place(zygote, two_photos, tmp_path / "out")


@pytest.fixture(scope="module")
def whole(zygote: Zygote, two_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Ended]:
    """The token file of an uninterrupted run, and what that run did."""
    place = Place(zygote, two_photos, tmp_path_factory.mktemp("whole") / "out")
    ended = place.dti()
    assert ended.code == 0, ended.err
    return place.target.read_bytes(), ended


def survives(place: Place, expected: bytes, *faults: tuple[int, str, int]) -> None:
    """Kill a run at each fault in turn, resuming in between, and compare what comes out in the end."""
    options: tuple[str, ...] = ()
    killed = 0
    for fault in faults:
        ended = place.dti(*options, faults=[fault])
        options = ("--resume",)
        assert ended.code in (-signal.SIGKILL, 0), ended.err
        killed += ended.code != 0
        if place.target.exists():
            assert place.target.read_bytes() == expected
    last = place.dti("--resume")
    same = last.code == 0 and place.target.read_bytes() == expected
    COUNTS["injected"] += killed
    COUNTS["survived" if same else "lost"] += killed
    assert same, f"{faults}: {last.err}"
    assert place.logged() == list(range(1, STEPS + 1))
    assert sorted(path.name for path in place.run.iterdir()) == [
        "finished.safetensors", "log.jsonl", "machine.json", "run.toml",
    ]  # fmt: skip


def points(ended: Ended) -> list[tuple[int, str, int]]:
    """Before and after every operation on a file, and amid every write."""
    return [
        (index, phase, signal.SIGKILL)
        for index, (name, _) in enumerate(ended.operations)
        for phase in ("before", "half", "after")
        if phase != "half" or name == "write"
    ]


def renaming(ended: Ended, name: str) -> int:
    """The operation that gives a file its name."""
    return next(
        index
        for index, (operation, paths) in enumerate(ended.operations)
        if operation == "replace" and name in paths[-1]
    )


CHAINS = 4


@pytest.mark.parametrize("chain", range(CHAINS))
def test_killed_again_and_again(place: Place, whole: tuple[bytes, Ended], chain: int) -> None:
    """A run killed five times over, wherever it is, comes out as if nothing had happened."""
    expected, ended = whole
    all_points = points(ended)
    first = all_points[(2 * chain + 1) * len(all_points) // (2 * CHAINS)]
    # A resumed run does fewer things: the earlier points exist in every one.
    later = random.Random(chain).sample([point for point in all_points if point[0] < 22], 4)
    survives(place, expected, first, *later)


PARTS = 8


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_killed_at_every_operation(
    zygote: Zygote, two_photos: Path, tmp_path: Path, whole: tuple[bytes, Ended], part: int
) -> None:
    """Before, amid and after every write, fsync, rename and removal of a run and of its continuation."""
    expected, ended = whole
    first = points(ended)
    stopped = (renaming(ended, "checkpoint-00000002"), "after", signal.SIGKILL)
    place = Place(zygote, two_photos, tmp_path / "stopped")
    place.dti(faults=[stopped])
    again = points(place.dti("--resume"))
    cases = [[fault] for fault in first] + [[stopped, fault] for fault in again]
    assert len(cases) >= 200
    for number, faults in enumerate(cases[part::PARTS]):
        survives(Place(zygote, two_photos, tmp_path / str(number)), expected, *faults)
        shutil.rmtree(tmp_path / str(number))
    print(f"\n{len(cases)} cases in {PARTS} parts; so far {COUNTS}")


def test_everything_is_on_disk_before_it_gets_its_name(whole: tuple[bytes, Ended]) -> None:
    """Each rename is preceded by write and fsync of the same file, and followed by fsync of its folder."""
    _, ended = whole
    names = [name for name, _ in ended.operations]
    renamed = [index for index, name in enumerate(names) if name == "replace"]
    written = [index for index in renamed if ".dti-" in ended.operations[index][1][0]]
    # Settings, machine, log, three checkpoints, token.
    assert len(written) == 7
    for index in written:
        temporary, target = ended.operations[index][1]
        assert names[index - 2 : index + 2] == ["write", "fsync", "replace", "fsync"]
        assert ended.operations[index - 2][1] == ended.operations[index - 1][1] == (temporary,)
        assert ended.operations[index + 1][1] == (str(Path(target).parent),)


def test_no_checkpoint_is_ahead_of_the_log(whole: tuple[bytes, Ended]) -> None:
    """The log is synced after its last line and before the checkpoint of that step is begun."""
    _, ended = whole
    log = [
        (index, name)
        for index, (name, paths) in enumerate(ended.operations)
        if paths[-1].endswith("/log.jsonl")
    ]
    for index, (_, paths) in enumerate(ended.operations):
        if "checkpoint-" in paths[-1] and ended.operations[index][0] == "replace":
            assert [name for position, name in log if position < index][-1] == "fsync"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(place: Place, whole: tuple[bytes, Ended], number: int) -> None:
    """The step is finished and saved, the exit code says which signal, and the rest can follow."""
    expected, ended = whole
    third = [index for index, done in enumerate(ended.operations) if done[1][-1].endswith("/log.jsonl")][3]
    stopped = place.dti(faults=[(third, "before", number)])
    assert stopped.code == 128 + number
    assert "--resume" in stopped.err
    assert len(list(place.run.glob("checkpoint-*"))) >= 1
    assert not (place.run / "lock").exists()
    survives(place, expected)


def test_a_second_interrupt_stops_at_once(place: Place, whole: tuple[bytes, Ended]) -> None:
    """It does not wait for the step; the last checkpoint is intact."""
    expected, ended = whole
    log = [
        i
        for i, (name, paths) in enumerate(ended.operations)
        if name == "write" and paths[-1].endswith("/log.jsonl")
    ]
    stopped = place.dti(faults=[(log[3], "before", signal.SIGINT), (log[3], "after", signal.SIGINT)])
    assert stopped.code == 130
    assert [path.name for path in place.run.glob("checkpoint-*")] == ["checkpoint-00000002.safetensors"]
    survives(place, expected)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_refuses(place: Place, whole: tuple[bytes, Ended], number: int) -> None:
    """A checkpoint that cannot be written ends the run with code 5 and one line; the one before is kept."""
    expected, ended = whole
    index = renaming(ended, "checkpoint-00000004") - 2
    failed = place.dti(faults=[(index, "before", -number)])
    assert failed.code == 5
    assert failed.err.strip().splitlines()[-1].startswith("error: cannot write")
    assert [path.name for path in place.run.glob("*.safetensors")] == ["checkpoint-00000002.safetensors"]
    assert not place.target.exists()
    survives(place, expected)


def test_every_write_can_fail(place: Place, whole: tuple[bytes, Ended]) -> None:
    """A disk that is full at any single write never leaves half a token file, and never a traceback."""
    expected, ended = whole
    writes = [index for index, (name, _) in enumerate(ended.operations) if name == "write"]
    for index in writes[:: len(writes) // 3]:
        failed = place.dti("--resume", faults=[(index, "before", -errno.ENOSPC)])
        assert failed.code in (0, 5), failed.err
        assert "Traceback" not in failed.err
    survives(place, expected)


def test_states_that_cannot_be_removed_or_renamed(place: Place, whole: tuple[bytes, Ended]) -> None:
    """Where a folder takes new files and lets none go, that is one line too, before the word is written and after."""
    expected, ended = whole
    own = [
        index
        for index, (name, paths) in enumerate(ended.operations)
        if name in ("unlink", "replace") and Path(paths[0]).name.startswith("checkpoint-")
    ]
    # One that is too old, and at the end the one before the last, and the last one's new name.
    assert len(own) == 3
    for index in own:
        shutil.rmtree(place.folder)
        place.folder.mkdir()
        failed = place.dti(faults=[(index, "before", -errno.EACCES)])
        assert failed.code == 5, failed.err
        assert failed.err.strip().splitlines()[-1].startswith(f"error: cannot write {place.run}: ")
    survives(place, expected)


def test_files_may_not_grow(place: Place, whole: tuple[bytes, Ended]) -> None:
    """Under `ulimit -f`, a real refusal of the kernel, the message says so and nothing half-written stays."""
    expected, _ = whole
    failed = place.dti(largest_file=1000)
    assert failed.code == 5
    assert "ulimit -f" in failed.err
    assert not list(place.folder.rglob("*.safetensors"))
    survives(place, expected)


def _others_can_read(folder: Path) -> bool:
    """Whether every folder on the way lets other users through."""
    return all(each.stat().st_mode & stat.S_IXOTH for each in (folder, *folder.parents))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(
    not all(_others_can_read(Path(folder)) for folder in (sys.prefix, bundled.model_folder())),
    reason="another user could not read this environment or this checkout",
)
def test_folders_of_another_user(zygote: Zygote, two_photos: Path) -> None:
    """Found out before the training, as another user than root, who may read and write everywhere."""
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(two_photos, Path(name) / "photos")
        place = Place(zygote, Path(name) / "photos", Path(name) / "out")
        unreadable = place.dti(uid=65534)
        assert (unreadable.code, "permissions" in unreadable.err) == (3, True)
        for path in (Path(name), *Path(name).rglob("*")):
            path.chmod(0o755)
        unwritable = place.dti(uid=65534)
        assert (unwritable.code, "permissions" in unwritable.err) == (5, True), unwritable.err
        assert list(place.folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_full_disk(place: Place, whole: tuple[bytes, Ended]) -> None:
    """On a small tmpfs that fills up in the middle, the run says so; with space again it goes on."""
    expected, _ = whole
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place.folder], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        ballast = place.folder / "ballast"
        ballast.write_bytes(b"0" * 40_000)
        failed = place.dti()
        assert (failed.code, "disk is full" in failed.err) == (5, True)
        ballast.unlink()
        survives(place, expected)
    finally:
        subprocess.run(["umount", place.folder], check=True)


@pytest.mark.slow
def test_three_real_kills(place: Place, whole: tuple[bytes, Ended]) -> None:
    """A process of its own, killed by another three times while it trains, and resumed."""
    expected, _ = whole
    command = [sys.executable, "-m", "dticli", *map(str, place.command)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for lines in (1, 3, 5):
        process = subprocess.Popen([*command, "--resume"], env=environment, cwd=Path(__file__).parents[2])
        log = place.run / "log.jsonl"
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and (not log.exists() or log.read_bytes().count(b"\n") < lines):
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        COUNTS["injected"] += 1
    survives(place, expected)
    COUNTS["survived"] += 3
