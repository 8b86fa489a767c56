"""`dti doctor`: checks the installation. Each finding says what was checked, what was found, and what to do."""

import importlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import psutil
import typer

from dticli import console
from dticli.commands.options import Debug, Json
from dticli.errors import EnvironmentProblem, ModelError, first_line

MIN_PYTHON = (3, 11)
MIN_MEMORY_GIB = 4.0
MIN_DISK_GIB = 10.0
HUB_SECONDS = 5.0
HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Environment variables that hide GPUs from torch."""
LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "huggingface-hub", "pillow", "numpy")
PLUGINS = {
    "pillow_heif": "HEIC photos: pip install pillow-heif",
    "imageio_ffmpeg": "MP4: pip install 'dticli[video]'",
    "tensorboard": "--tracker tensorboard: pip install 'dticli[tensorboard]'",
    "wandb": "--tracker wandb: pip install 'dticli[wandb]'",
    "chafa": "previews in the terminal: pip install 'dticli[terminal]'",
}


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        state: `problem` keeps dti from working; `note` narrows what it can do.
        advice: what to do about it; None where all is well.
    """

    name: str
    state: Literal["ok", "note", "problem"]
    found: str
    advice: str | None = None


@dataclass(frozen=True)
class Examined:
    """All findings, in the order of looking."""

    findings: tuple[Finding, ...]

    def lines(self) -> Iterator[str]:
        width = max(len(finding.name) for finding in self.findings)
        for finding in self.findings:
            advice = f"; {finding.advice}" if finding.advice else ""
            yield f"{finding.state:8}{finding.name:{width}}  {finding.found}{advice}"


def command(
    offline: Annotated[bool, typer.Option("--offline", help="Do not contact the hub.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check Python, torch, devices, memory, versions, cache and hub, and say how to fix problems.

    Example: dti doctor
    """
    findings = tuple(examine(offline=offline))
    console.show(Examined(findings), as_json=json)
    problems = [finding.name for finding in findings if finding.state == "problem"]
    if problems:
        raise EnvironmentProblem(f"{', '.join(problems)}: expected them to work; follow the advice above")


def examine(*, offline: bool) -> Iterator[Finding]:
    """Run all checks; nothing is downloaded, and no files are left behind."""
    yield python()
    yield from libraries()
    yield torch_works()
    yield from devices()
    yield memory()
    yield bundled_model()
    yield from plugins()
    yield from cache()
    if not offline:
        yield hub()


def python() -> Finding:
    found = f"{platform.python_version()} on {platform.platform()}"
    if sys.version_info < MIN_PYTHON:
        return Finding("python", "problem", found, "install Python 3.11 or newer")
    return Finding("python", "ok", found)


def libraries() -> Iterator[Finding]:
    """Compare versions with those that the installation requires."""
    from packaging.requirements import Requirement

    try:
        required = {(r := Requirement(text)).name: r.specifier for text in metadata.requires("dticli") or ()}
    except metadata.PackageNotFoundError:
        required = {}
    for name in LIBRARIES:
        wanted = required.get(name) or required.get(name.replace("-", "_"))
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "problem", "not installed", f"pip install '{name}{wanted or ''}'")
            continue
        if wanted is not None and not wanted.contains(version, prereleases=True):
            yield Finding(
                name, "problem", f"{version}, and {wanted} is needed", f"pip install '{name}{wanted}'"
            )
        else:
            yield Finding(name, "ok", version)


def torch_works() -> Finding:
    """Compute a matrix product, because a broken installation may import and fail only then."""
    try:
        import torch

        torch.ones(8, 8).matmul(torch.ones(8, 8)).sum().item()
    except Exception as error:
        # A broken installation can raise any exception.
        advice = "install torch again: https://pytorch.org/get-started"
        return Finding("computing", "problem", first_line(error), advice)
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    return Finding("computing", "ok", f"torch for {built}, {torch.get_num_threads()} threads")


def devices() -> Iterator[Finding]:
    """The devices of torch, and whether they work."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = (size / 2**30 for size in torch.cuda.mem_get_info(index))
            name = torch.cuda.get_device_name(index)
            yield Finding(f"cuda:{index}", "ok", f"{name}, {free:.1f} of {total:.1f} GiB free")
    elif torch.backends.mps.is_available():
        yield Finding("mps", "ok", "Apple GPU")
    elif hidden := [name for name in HIDING if os.environ.get(name) in ("", "-1")]:
        found = " and ".join(f"{name}={os.environ[name]!r}" for name in hidden)
        yield Finding(
            "gpu", "note", f"none, with {found} in the environment", "unset it to use all there are"
        )
    elif shutil.which("nvidia-smi"):
        advice = (
            "install the CUDA build of torch, and a driver at least as new: https://pytorch.org/get-started"
        )
        yield Finding("gpu", "problem", "there is an NVIDIA driver, and torch does not see a GPU", advice)
    else:
        yield Finding("gpu", "note", "none", "the bundled model learns on the CPU; large ones need a GPU")


def memory() -> Finding:
    available, total = (
        size / 2**30 for size in (psutil.virtual_memory().available, psutil.virtual_memory().total)
    )
    found = f"{available:.1f} of {total:.1f} GiB free"
    if available < MIN_MEMORY_GIB:
        return Finding("memory", "note", found, "close other programs before using a large model")
    return Finding("memory", "ok", found)


def bundled_model() -> Finding:
    from dticli import bundled

    try:
        folder = bundled.model_folder()
    except ModelError as error:
        return Finding("bundled model", "problem", str(error), "pip install --force-reinstall dticli")
    size = sum(path.stat().st_size for path in folder.rglob("*") if os.path.isfile(path))
    return Finding("bundled model", "ok", f"{bundled.MODEL_NAME}, {size / 1e6:.1f} MB")


def plugins() -> Iterator[Finding]:
    """Optional packages, and what they are needed for."""
    for module, use in PLUGINS.items():
        if importlib.util.find_spec(module) is None:
            yield Finding(module, "note", "not installed", f"only needed for {use}")
            continue
        try:
            importlib.import_module(module)
        except Exception as error:
            # It may lack system libraries, and can raise any exception.
            found = f"installed, and cannot be imported: {first_line(error)}"
            yield Finding(module, "note", found, f"only needed for {use} --force-reinstall")
        else:
            yield Finding(module, "ok", "installed")


def cache() -> Iterator[Finding]:
    """Whether the download cache is writable, its free space, and interrupted downloads."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    there = next(each for each in (folder, *folder.parents) if os.path.isdir(each))
    free = shutil.disk_usage(there).free / 2**30
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        yield Finding(
            "cache", "problem", f"{there}: {error.strerror}", "set HF_HOME to a folder you can write to"
        )
        return
    found = f"{folder}, {free:.1f} GiB free"
    if free < MIN_DISK_GIB:
        yield Finding(
            "cache", "note", found, "a large model needs 10 GiB; `hf cache prune`, or set HF_HOME elsewhere"
        )
    else:
        yield Finding("cache", "ok", found)
    parts = list(folder.glob("*/blobs/*.incomplete"))
    if parts:
        advice = "they are continued when their model is asked for again"
        yield Finding("downloads", "note", f"{len(parts)} were interrupted", advice)


def hub() -> Finding:
    """Whether the model hub answers, and the user is logged in; gated models need both."""
    from huggingface_hub import constants, get_token

    problem = _problem(lambda: _ask(constants.ENDPOINT))
    if problem:
        advice = "check network and proxy; models on this machine work with --offline"
        return Finding("hub", "note", f"{constants.ENDPOINT} does not answer ({problem})", advice)
    if get_token() is None:
        advice = "only gated models need it: `hf auth login`"
        return Finding("hub", "note", f"{constants.ENDPOINT} answers; not logged in", advice)
    return Finding("hub", "ok", f"{constants.ENDPOINT} answers; logged in")


def _ask(address: str) -> None:
    from huggingface_hub import get_session

    get_session().head(address, timeout=HUB_SECONDS)


def _problem(action: Callable[[], None]) -> str | None:
    try:
        action()
    except Exception as error:
        # The client and its HTTP library have their own classes.
        return first_line(error)
    return None
