"""The command table: help, start-up, exit codes, completions and the reference."""

import array
import fcntl
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import termios
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from dticli import __version__, command_reference, console, errors, help_page
from dticli.__main__ import OF_MEMORY, SPINS
from dticli.cli import COMMANDS, run
from tests import tiny
from tests.conftest import Outcome

Dti = Callable[..., Outcome]
ROOT = Path(__file__).parents[1]


def test_every_command_has_help_with_an_example(dti: Dti) -> None:
    """Each page says what the command does, gives an example, and describes every option."""
    for name in COMMANDS:
        outcome = dti(name, "--help")
        if "--help-all" in outcome.out:
            outcome = dti(name, "--help-all")
        assert outcome.code == 0
        assert f"dti {name}" in outcome.out
        for line in outcome.out.splitlines():
            assert line.strip() not in ("--json", "--force"), f"{name} leaves an option undescribed"
        assert "--json" in outcome.out


def shown(dti: Dti, monkeypatch: pytest.MonkeyPatch, columns: int, *arguments: str) -> str:
    """What a terminal of this width shows."""
    monkeypatch.setenv("COLUMNS", str(columns))
    outcome = dti(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    assert max(map(len, outcome.out.splitlines())) < columns
    return outcome.out


@pytest.mark.parametrize("command", ["train", "generate", "interpolate", "evaluate"])
def test_the_first_screen_holds_what_a_first_run_needs(
    dti: Dti, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """24 rows of 80 columns; the rest comes with `--help-all`, each option once, and wider on a wider terminal."""
    short = shown(dti, monkeypatch, 80, command, "--help")
    assert len(short.splitlines()) <= 24
    needed = {
        "train": ("--token", "--init", "Required:"),
        "generate": ("--tokens", "--size"),
        "interpolate": ("--prompt", "--frames"),
        "evaluate": ("--photos", "--prompt-set", "--plan"),
    }
    assert all(name in short for name in (*needed[command], "--model", "--help-all"))
    assert "--precision" not in short
    full = shown(dti, monkeypatch, 80, command, "--help-all")
    options = full[full.index("Arguments:") :].splitlines()
    named = [line.split()[0].strip(",") for line in options if line.startswith("  -")]
    assert len(named) == len(set(named))
    assert {"--precision", "--force", "--device"} <= set(named)
    count = int(short.split("Show all ")[1].split()[0])
    assert count == len(named) - 2  # without the two that ask for help
    wide = shown(dti, monkeypatch, 120, command, "--help-all")
    assert len(wide.splitlines()) < len(full.splitlines())


def test_train_help_comes_in_groups(dti: Dti, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option stands where one would look for it."""
    lines = shown(dti, monkeypatch, 80, "train", "--help-all").splitlines()
    heads = ["Required:", "Common:", "Photos:", "Method:", "Model and memory:", "Output and runs:"]
    places = [lines.index(head) for head in heads]
    assert places == sorted(places)
    expected = {"--init": 0, "--steps": 1, "--crop": 2, "--kappa": 3, "--precision": 4, "--json": 5}
    for option, group in expected.items():
        at = next(index for index, line in enumerate(lines) if line.startswith(f"  {option} "))
        assert sum(place < at for place in places) - 1 == group, option


def test_help_and_version_are_commands_too(dti: Dti) -> None:
    """`dti help train` is `dti train --help`; `dti help` that of all; `dti version` the version; a slip is told."""
    assert dti("help", "train").out == dti("train", "--help").out
    assert dti("help").out == dti("--help").out
    assert dti("version").out.strip() == f"dti {__version__}"
    outcome = dti("help", "trian")
    assert (outcome.code, "did you mean train?" in outcome.error) == (2, True)


HEAVY = {"torch", "diffusers", "transformers"}
LIGHT = HEAVY | {"pydantic", "numpy", "PIL"}
STARTS: list[tuple[list[str], set[str]]] = [
    (["--help"], LIGHT),
    (["--version"], LIGHT),
    *(([name, "--help"], HEAVY) for name in COMMANDS),
    (["example", "--list"], HEAVY),
    (["inspect-norms", "stickers"], HEAVY),
]
"""Commands of one process, in this order, and what none of them up to there may have imported."""


def test_start_up_imports_no_heavy_library() -> None:
    """Help appears at once, because nothing heavy is imported for it."""
    code = (
        "import sys, json; from dticli.cli import run\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    run(arguments)\n"
        "    print('\\n' + json.dumps([arguments, list(sys.modules)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([arguments for arguments, _ in STARTS])],
        capture_output=True,
        text=True,
        check=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
    assert [arguments for arguments, _ in found] == [arguments for arguments, _ in STARTS]
    for (arguments, loaded), (_, forbidden) in zip(found, STARTS, strict=True):
        assert not {*loaded} & forbidden, arguments


def test_a_word_is_shown_without_torch(tmp_path: Path) -> None:
    """Half precision too, as other tools write it, and several encoders; torch alone takes longer than all the rest."""
    rows = {"clip_l": np.ones((2, 768), np.float16), "clip_g": np.ones((2, 1280), np.float16)}
    save_file(rows, tmp_path / "dog.safetensors")
    code = (
        "import sys; from dticli.cli import run\n"
        "code = run(sys.argv[1:]); print(code, sorted({'torch', 'transformers', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "info", str(tmp_path / "dog.safetensors")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert "norm 35.7771, 35.7771" in done.stdout  # the square root of 1280


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_norms_of_safetensors_are_shown_without_torch(dtype: torch.dtype, tmp_path: Path) -> None:
    """Of two encoders, in any precision that weights have, and of a word in them, which gets the length that is asked for."""
    pipe = tiny.build("sdxl")
    widths = {}
    for key, name in {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}.items():
        getattr(pipe, name).to(dtype)
        widths[key] = getattr(pipe, name).get_input_embeddings().weight.shape[1]
    pipe.save_pretrained(tmp_path / "model")
    rows = {key: np.ones((1, width), np.float32) for key, width in widths.items()}
    save_file(rows, tmp_path / "dog.safetensors")
    of_model = ["--model", str(tmp_path / "model")]
    code = (
        "import sys, json; from dticli.cli import run\n"
        "codes = [run(each) for each in json.loads(sys.argv[1])]\n"
        "print(codes, sorted({'torch', 'transformers', 'diffusers'} & set(sys.modules)))"
    )
    commands = [
        ["inspect-norms", "dog.safetensors", *of_model, "--plot", "norms.svg"],
        ["convert", "dog.safetensors", "--rescale", "mean", *of_model, "--out", "there"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[0, 0] []", done.stderr
    weight = pipe.text_encoder.get_input_embeddings().weight.detach().double()
    assert f"mean {weight.norm(dim=1).mean():.4f}" in done.stdout


WORD = ["--token", "<dog>", "--init", "dog"]
MISTAKES: dict[str, tuple[int, list[str]]] = {
    "nothing": (2, ["train"]),
    "no such folder": (3, ["train", "nothing", *WORD]),
    "a size that does not suit": (2, ["train", "photos", *WORD, "--resolution", "63"]),
    "a name that does not suit": (2, ["train", "photos", "--token", "<Dog>", "--init", "dog"]),
    "no captions": (3, ["train", "photos", *WORD, "--captions", "sidecar"]),
    "no masks": (3, ["train", "photos", *WORD, "--masks", "nothing"]),
    "a file in the way": (2, ["train", "photos", *WORD, "-o", "taken.safetensors"]),
    "no such model": (4, ["train", "photos", *WORD, "--model", "./nothing"]),
    "a wrong settings file": (2, ["train", "photos", "--config", "wrong.toml"]),
    "a wrong subjects file": (2, ["train", "--subjects", "wrong.toml"]),
    "a word's photos": (3, ["train", "--subjects", "subjects.toml"]),
    "no prompt": (2, ["generate"]),
    "no such scheduler": (2, ["generate", "a dog", "--scheduler", "nothing"]),
    "a size beyond reach": (2, ["generate", "a dog", "--size", "4"]),
    "no such word": (3, ["generate", "a <dog>", "-t", "nothing.safetensors"]),
    "no such file": (3, ["info", "nothing.safetensors"]),
    "nothing to convert": (3, ["convert", "nothing.safetensors"]),
    "one word to mix": (2, ["mix", "a.safetensors"]),
    "one end": (2, ["interpolate", "a.safetensors"]),
    "no such ends": (3, ["interpolate", "a.safetensors", "b.safetensors"]),
    "nothing to compare": (3, ["compare", "a.safetensors", "b.safetensors"]),
    "nothing to judge": (2, ["evaluate"]),
    "no such plan": (2, ["evaluate", "--plan", "nothing.toml"]),
    "nothing to inspect": (3, ["inspect-norms", "nothing.safetensors"]),
    "no model to describe": (4, ["models", "./nothing"]),
    "nothing to push": (3, ["push", "nothing.safetensors", "user/name"]),
}


def test_mistakes_are_told_before_any_heavy_library_is_imported(photos: Path, tmp_path: Path) -> None:
    """Settings and files are looked at first: whoever mistypes must not wait for torch."""
    (tmp_path / "photos").symlink_to(photos)
    (tmp_path / "taken.safetensors").write_bytes(b"mine")
    (tmp_path / "wrong.toml").write_text("steps = 'x'")
    (tmp_path / "subjects.toml").write_text('[dog]\ninit = "dog"\nphotos = "nothing"\n')
    code = (
        "import sys, json; from dticli.cli import run\n"
        "for name, (_, arguments) in json.loads(sys.argv[1]).items():\n"
        "    code = run(arguments)\n"
        "    print(json.dumps([name, code, sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules))]))\n"
    )
    # A model by name: whether there is CUDA, and so which model is the default, only torch knows.
    environment = os.environ | {"DTI_MODEL": "stickers", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(MISTAKES)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == [[name, code, []] for name, (code, _) in MISTAKES.items()], done.stderr


def test_completion_imports_no_heavy_library() -> None:
    """Pressing TAB after `dti train --pr` must not wait for torch."""
    code = (
        "import os, sys, json, atexit; os.environ |= {'_DTI_COMPLETE': 'complete_bash', 'COMP_WORDS': 'dti train --pr', "
        "'COMP_CWORD': '2'}; atexit.register(lambda: print(json.dumps(list(sys.modules)))); "
        "from dticli.cli import run; run([])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    *options, modules = done.stdout.splitlines()
    assert {"--precision", "--prior", "--property"} <= set(options)
    assert not {"torch", "diffusers", "transformers"} & set(json.loads(modules))


SHELLS: dict[str, Callable[[str], dict[str, str]]] = {
    "bash": lambda line: {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)},
    "zsh": lambda line: {"_TYPER_COMPLETE_ARGS": line},
    "fish": lambda line: {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    "powershell": lambda line: {
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_WORD_TO_COMPLETE": line.split(" ")[-1],
    },
}


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_offer_what_would_be_typed(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Token files, runs, states, subjects, plans, prompt sets, samplers, models, settings; by the same names in every shell."""
    monkeypatch.chdir(tmp_path)
    hub = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    for name in (
        "dog.safetensors", "doc.txt", "mine.toml", "words/fox.pt", "sdxl/model_index.json",
        "hub/models--some--model/snapshots/1/model_index.json",
        "dog.run/snapshots/00000200.safetensors",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    cases = {
        "generate <dog> -t d": {"dog.safetensors"},
        "generate <rex> -t <rex>=d": {"<rex>=dog.safetensors"},
        "interpolate dog.safetensors words/": {"words/fox.pt"},
        "mix d": {"dog.safetensors"},
        "compare d": {"dog.safetensors", "dog.run"},
        "compare dog.run@": {"dog.run@200", "dog.run@best"},
        "report dog.r": {"dog.run"},
        "best d": {"dog.run"},
        "inspect-norms d": {"dog.safetensors", "dog.run"},
        "generate <dog> -t dog.run@b": {"dog.run@best"},
        "example --subject d": {name for name in bundled_subjects() if name.startswith("d")},
        "evaluate --plan st": {
            each.stem for each in (ROOT / "dticli" / "evaluation" / "plans").glob("st*.toml")
        },
        "evaluate --plan m": {"mine.toml"},
        "evaluate --prompt-set s": {"simple", "stickers", "stickers-complex"},
        "generate --scheduler euler": {"euler", "euler-a"},
        "train --model s": {"stickers", "some/model", "sdxl"},
        "train --config m": {"mine.toml"},
        "train --precision b": {"bf16"},
        "inspect-norms sti": {"stickers"},
    }
    for typed, expected in cases.items():
        monkeypatch.setenv("_DTI_COMPLETE", f"complete_{shell}")
        for name, value in SHELLS[shell](f"dti {typed}").items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit):
            run([])
        out = capsys.readouterr().out
        if shell == "zsh":
            offered = set(re.findall(r'"([^"]+)"', out))
        else:
            offered = {line.split(":::")[0].strip() for line in out.splitlines() if line.strip()}
        assert offered == expected, typed


def bundled_subjects() -> set[str]:
    """Read from the table itself."""
    table = ROOT / "dticli" / "bundled" / "subjects.toml"
    return set(tomllib.loads(table.read_text(encoding="utf-8")))


def test_version_and_unknown_commands(dti: Dti) -> None:
    """`--version` prints it; an unknown command is one line, exit code 2."""
    assert dti("--version").out.strip() == f"dti {__version__}"
    outcome = dti("trian")
    assert (outcome.code, "trian" in outcome.error) == (2, True)


def test_an_error_of_a_library_is_not_one_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries raise OSError for models they cannot load: what nothing explains is a bug, and shows where."""

    def unloadable(name: str) -> None:
        raise OSError("cannot load the tokenizer")

    monkeypatch.setattr("dticli.bundled.photos", unloadable)
    with pytest.raises(OSError, match="cannot load the tokenizer"):
        run(["example", "photos"])


def test_debug_shows_the_traceback(dti: Dti, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--debug` lets the exception through; without it there is one line."""
    monkeypatch.setenv("DTI_DEBUG", "")
    arguments = ("inspect-norms", tmp_path / "missing.safetensors")
    assert dti(*arguments).code == 3
    with pytest.raises(errors.InputError):
        dti(*arguments, "--debug")


def test_exit_codes_are_those_of_one_table() -> None:
    """Every error class ends with a code that the table explains."""
    classes = [
        each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.DtiError)
    ]
    assert {each.exit_code for each in classes} <= errors.EXIT_CODES.keys()
    tour = (ROOT / "docs" / "code-tour.md").read_text(encoding="utf-8")
    assert all(f"| {code} | {meaning} |" in tour for code, meaning in errors.EXIT_CODES.items())


def test_the_command_reference_is_current() -> None:
    """docs/commands.md is what the commands say; `python -m dticli.command_reference` renews it."""
    page = command_reference.reference()
    assert (ROOT / command_reference.PAGE).read_text(encoding="utf-8") == page
    # What an option takes is called by one name everywhere, and not by that of a Python type.
    assert not any(kind in page for kind in help_page.PLAIN)


def test_completions_are_current() -> None:
    """The scripts in `completions/` are what Typer makes for this version of the commands."""
    scripts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "completions").iterdir()}
    assert scripts == command_reference.completions()


def test_changelog_names_this_version() -> None:
    """The newest entry is for the version in the package."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = next(line for line in changelog.splitlines() if line.startswith("## "))
    assert newest.split()[1] == __version__


def test_the_code_tour_maps_every_room() -> None:
    """The table in docs/code-tour.md lists every module and package at the top level, and no other."""
    tour = (ROOT / "docs" / "code-tour.md").read_text(encoding="utf-8")
    modules = {path.stem for path in (ROOT / "dticli").glob("*.py")} - {"__init__", "__main__"}
    packages = {f"{path.parent.name}/" for path in (ROOT / "dticli").glob("*/__init__.py")}
    assert sorted(re.findall(r"^\| `(\w+/?)` \|", tour, re.MULTILINE)) == sorted(modules | packages)


def test_example_photos(dti: Dti, tmp_path: Path) -> None:
    """Five pictures are written; a second time needs `--force`; an unknown subject names the nearest."""
    assert dti("example", tmp_path / "photos").code == 0
    assert len(list((tmp_path / "photos").glob("*.png"))) == 5
    assert dti("example", tmp_path / "photos").code == 2
    assert dti("example", tmp_path / "photos", "--force").code == 0
    outcome = dti("example", tmp_path / "other", "--subject", "dgo")
    assert (outcome.code, "dog" in outcome.error) == (3, True)
    assert "dog" in dti("example", "--list", "--json").json["subjects"]
    assert dti("example").code == 2


def test_json_holds_any_text_without_steering_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters of every kind are escaped as JSON allows, and read back the same; letters stay letters."""
    text = "\x1b[2J \x9b \u202e \U000e0001 Hündin\n犬"
    console.show(Said(text), as_json=True)
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    assert "Hündin" in out
    assert json.loads(out) == {"text": text}


@dataclass(frozen=True)
class Said:
    """A result of one text."""

    text: str

    def lines(self) -> Iterator[str]:
        yield self.text


def test_the_bare_command_shows_its_help(dti: Dti) -> None:
    """All of it, on the screen, as `--help` does."""
    bare, asked = dti(), dti("--help")
    assert (bare.code, bare.err) == (0, "")
    assert bare.out == asked.out
    assert "inspect-norms" in bare.out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("tarin",), "did you mean train?"),
        (("zzz",), "zzz"),
        (("generate", "<dog>", "--size", "100x"), "expected a value such as 512 or 768x512"),
        (("generate", "<dog>", "--method"), "see dti generate --help"),
        (("convert", "x.safetensors", "--to", "a11"), "'a11' is not one of"),
    ],
)
def test_slips_are_named_without_library_words(dti: Dti, arguments: tuple[str, ...], part: str) -> None:
    """One line, of ours."""
    outcome = dti(*arguments)
    assert (outcome.code, part in outcome.error) == (2, True), outcome.err
    assert "Value error" not in outcome.error
    assert ".;" not in outcome.error


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP prints how long its threads spin")
@pytest.mark.parametrize(
    ("said", "spins"),
    [({}, str(SPINS)), ({"OMP_NUM_THREADS": "2"}, "300000"), ({"GOMP_SPINCOUNT": "9"}, "9")],
)
def test_waiting_threads_sleep_unless_the_user_says_otherwise(said: dict[str, str], spins: str) -> None:
    """The OpenMP library that torch loads prints what it goes by; it must have been told before that."""
    code = (
        "import os, sys; from dticli.__main__ import let_threads_sleep; let_threads_sleep(os.environ); "
        "assert 'torch' not in sys.modules; os.environ['OMP_DISPLAY_ENV'] = 'VERBOSE'; import torch"
    )
    others = {
        name: text for name, text in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=others | said, capture_output=True, text=True, check=True
    )
    (shown,) = [line for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    assert f"'{spins}'" in shown


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="GNU's library tells what it keeps")
@pytest.mark.parametrize(("said", "kept"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "131072"}, False)])
def test_freed_memory_is_kept_for_the_next_step_unless_the_user_says_otherwise(
    said: dict[str, str], kept: bool
) -> None:
    """A block of 24 MiB that was freed still belongs to the process, so that the next one of its size costs no new pages."""
    code = (
        "import ctypes, os; from dticli.__main__ import keep_freed_memory; keep_freed_memory(os.environ); "
        "block = bytearray(b'x') * (24 << 20); del block; "
        # The first field of struct mallinfo: bytes that are not mapped one by one.
        "Info = type('Info', (ctypes.Structure,), {'_fields_': [(f'f{i}', ctypes.c_int) for i in range(10)]}); "
        "ask = ctypes.CDLL(None).mallinfo; ask.restype = Info; print(ask().f0)"
    )
    others = {name: text for name, text in os.environ.items() if not name.startswith(OF_MEMORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=others | said, capture_output=True, text=True, check=True
    )
    assert (int(done.stdout) > 24 << 20) is kept


# Streams and signals: of real processes, because the interpreter itself takes part


def program(command: str) -> subprocess.CompletedProcess[str]:
    """A shell's command line in which `dti` is this checkout's."""
    line = command.replace("dti ", f"{shlex.quote(sys.executable)} -m dticli ", 1)
    return subprocess.run(
        ["bash", "-c", line], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("dti --version > /dev/full", 5),
        ("dti --help > /dev/full", 5),
        ("dti --version >&-", 0),
        ("dti --version 2>&-", 0),
        ("dti --version <&- >&- 2>&-", 0),
        ("dti nonsense 2>/dev/full", 2),
        ("dti nonsense 2>&-", 2),
        ("dti --help | true; exit ${PIPESTATUS[0]}", 0),
        ("PYTHONIOENCODING=ascii dti nönsense", 2),
        ("dti generate --prompts - <&-", 2),
        ("printf '\\xff\\xfe' | PYTHONUTF8=1 dti generate --prompts -", 2),
    ],
)
def test_streams_that_refuse(command: str, code: int) -> None:
    """Full, closed, cut off or of another encoding: one line at most, no traceback, and a code that says whose fault it is."""
    ended = program(command)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    assert len(ended.stderr.splitlines()) <= 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_outside_of_training_stops(number: int, code: int) -> None:
    """While a command waits, here for prompts: it says so in one plain line."""
    waiting = subprocess.Popen(
        [sys.executable, "-m", "dticli", "generate", "--prompts", "-"],
        cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # What is started in the background of a shell is not interrupted from its keyboard, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert waiting.stderr
    assert waiting.stdin
    # It reads once the command has begun; what waits in the pipe then has been taken.
    os.set_blocking(waiting.stdin.fileno(), False)
    _until_read(waiting.stdin.fileno())
    waiting.send_signal(number)
    said = waiting.stderr.read()
    waiting.stderr.close()
    assert waiting.wait() == code
    waiting.stdin.close()
    assert said == "stopped\n"


def _until_read(pipe: int) -> None:
    """Wait until a process has taken a line from its stdin."""
    os.write(pipe, b"\n")
    deadline = time.monotonic() + 300
    waiting = array.array("i", [1])
    while waiting[0] and time.monotonic() < deadline:
        time.sleep(0.01)
        fcntl.ioctl(pipe, termios.FIONREAD, waiting)


def test_memory_that_runs_out_anywhere_is_one_line(dti: Dti, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no place of its own explains it."""
    monkeypatch.setattr("dticli.bundled.photos", lambda *_: bytearray(2**60))
    monkeypatch.delenv("DTI_DEBUG", raising=False)
    outcome = dti("example", "dog")
    assert (outcome.code, "out of memory" in outcome.error) == (5, True)


def test_a_name_of_a_megabyte_is_no_line_of_a_megabyte(dti: Dti) -> None:
    """An error shows its ends."""
    outcome = dti("info", "a" * 2**20)
    assert outcome.code == 3
    assert len(outcome.err) < 2000


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("train", "", "--token", "<dog>", "--init", "dog"), "an argument"),
        (("train", "photos", "--token", "<dog>", "--init", "dog", "--model", ""), "--model"),
        (("train", "photos", "--token", "<dog>", "--init", "dog", "--masks="), "--masks"),
        (("generate", "a <dog>", "-t", ""), "-t"),
        (("inspect-norms", ""), "an argument"),
    ],
)
def test_an_empty_value_is_no_default(dti: Dti, arguments: tuple[str, ...], what: str) -> None:
    """A variable that is not set must not learn from the photos that lie here, or on another model."""
    outcome = dti(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.error.startswith(f"{what} is empty: ")


def test_a_negative_prompt_may_be_empty(dti: Dti) -> None:
    """It is a text, and no text is one too."""
    outcome = dti("generate", "a dog", "--negative", "", "--preview-negative=", "--model", "stickers")
    assert "No such option: --preview-negative" in outcome.error
    outcome = dti("generate", "a dog", "--negative", "", "--size", "4", "--model", "stickers")
    assert "size" in outcome.error
