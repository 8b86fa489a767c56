"""Settings: layers, config files, and what is said about mistakes in them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from dticli.errors import DtiError, UsageError
from dticli.settings import (
    GenerateSettings,
    TrainSettings,
    Trait,
    anchored,
    model_layer,
    read_config,
    resolve,
    to_toml,
)
from tests.conftest import Outcome

COMPLETE = {
    "token": "<dog>",
    "init": "dog",
    "steps": 5,
    "batch_size": 1,
    "lr": 0.1,
    "kappa": 0.0,
    "resolution": 64,
}


def config(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def complaint(folder: Path, text: str | bytes) -> str:
    with pytest.raises(UsageError) as caught:
        read_config(TrainSettings, config(folder, text))
    message = str(caught.value)
    assert "\n" not in message
    assert "config.toml" in message
    return message


def test_the_first_layer_that_speaks_wins() -> None:
    """None is silence."""
    merged = resolve(TrainSettings, {"lr": None, "steps": 7}, {"lr": 0.5, "steps": 8}, COMPLETE)
    assert (merged.lr, merged.steps, merged.batch_size) == (0.5, 7, 1)


WRONG: dict[str, tuple[str, tuple[str, ...]]] = {
    "misspelt": ("stpes = 3", ("unknown setting 'stpes'", "did you mean 'steps'?")),
    "as on the command line": ("batch-size = 3", ("'batch-size'", "'batch_size'")),
    "nothing near": ("zzz = 3", ("unknown setting 'zzz'",)),
    "a table": ("[train]\nsteps = 3", ("unknown setting 'train'",)),
    "text for a number": ('steps = "3"', ("steps = '3'", "integer")),
    "number for a text": ("token = 3", ("token = 3", "string")),
    "truth for a number": ("steps = true", ("steps = True", "integer")),
    "number for a truth": ("flip = 1", ("flip = 1", "boolean")),
    "fraction for a count": ("steps = 2.5", ("steps = 2.5", "integer")),
    "list for a number": ("lr = [1]", ("lr = [1]",)),
    "date": ("steps = 2024-01-01", ("steps =", "integer")),
    "too small": ("steps = 0", ("steps = 0", "greater than or equal to 1")),
    "too large": ("vectors = 65", ("vectors = 65", "64")),
    "far too large": (f"seed = {2**70}", ("seed =",)),
    "negative": ("lr = -1.0", ("lr = -1.0", "greater than 0")),
    "infinite": ("lr = inf", ("lr = inf", "finite")),
    "not a number": ("kappa = nan", ("kappa = nan", "finite")),
    "no such choice": (
        'crop = "centre"',
        ("expected 'center' or 'random' or 'none'", "did you mean 'center'?"),
    ),
    "choice in capitals": ('method = "DTI"', ("did you mean 'dti'?",)),
    "template without a place": ('templates = ["a dog"]', ("{}",)),
    "templates of numbers": ("templates = [1]", ("templates",)),
    "several crops of whole photos": ('crop = "none"\ncrops = 2', ("crops = 2", "expected 1")),
    "a length of nothing": ('magnitude = "big"', ("magnitude = 'big'", "a length above 0")),
    "no length": ('magnitude = "0"', ("magnitude = '0'", "a length above 0")),
    "a negative length": ('magnitude = "-1x"', ("magnitude = '-1x'", "such as 2x")),
    "a NUL": ('init = "a\\u0000"', ("NUL",)),
    "huge value": (f'steps = "{"9" * 5000}"', ("...",)),
    "twice": ("steps = 1\nsteps = 2", ("not valid TOML",)),
    "not TOML": ("steps: 3", ("not valid TOML", "line 1")),
    "half a line": ("steps =", ("not valid TOML",)),
    "nested too deeply": ("a = " + "[" * 20_000, ("not valid TOML",)),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_explained(tmp_path: Path, case: str) -> None:
    """In one line, with the file, the name, what was found, and what was probably meant."""
    text, parts = WRONG[case]
    message = complaint(tmp_path, text)
    assert len(message) < 600
    assert all(part in message for part in parts), message


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    """Not one a run."""
    message = complaint(tmp_path, 'stpes = 3\nlr = "x"\ncrops = 0\ncrop = "left"\nkapa = 1')
    for part in ("stpes", "lr = 'x'", "crops = 0", "crop = 'left'", "'kappa'"):
        assert part in message


@pytest.mark.parametrize(
    "data", [b"\xff\xfe\xff", "steps = 3".encode("utf-16-le"), b"\x00", b"a = '\x1b[31m'"]
)
def test_files_of_other_kinds(tmp_path: Path, data: bytes) -> None:
    """Binary files are no settings, and their bytes do not reach the terminal."""
    assert "\x1b" not in complaint(tmp_path, data)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    """The path is named."""
    for path in (tmp_path / "nothing.toml", tmp_path):
        with pytest.raises(UsageError, match="cannot read"):
            read_config(TrainSettings, path)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    """Windows editors write one."""
    assert read_config(TrainSettings, config(tmp_path, b"\xef\xbb\xbfsteps = 3")) == {"steps": 3}


def test_a_models_own_settings_are_checked_too(tmp_path: Path) -> None:
    """By name of the file they are in; a model without any is fine."""
    assert model_layer(None, "train") == model_layer(tmp_path, "train") == {}
    (tmp_path / "dti.toml").write_text("train = 3")
    with pytest.raises(UsageError, match=r"dti\.toml: expected the tables"):
        model_layer(tmp_path, "train")
    (tmp_path / "dti.toml").write_text("[train]\nstpes = 3\n[generate]\nsteps = 20")
    with pytest.raises(UsageError, match=r"dti\.toml: unknown setting 'stpes'"):
        model_layer(tmp_path, "train")
    assert model_layer(tmp_path, "generate") == {"steps": 20}


@pytest.mark.parametrize("verb", ["train", "generate"])
def test_a_model_says_only_what_belongs_to_a_model(tmp_path: Path, verb: str) -> None:
    """Every other setting there is, named and refused, whichever verb is asked for; so are tables of its own."""
    kinds = {"train": TrainSettings, "generate": GenerateSettings}
    refused = kinds[verb].model_fields.keys() - kinds[verb].named(Trait.OF_A_MODEL)
    assert {"model", "base", "device", "offline"} <= refused
    assert verb == "generate" or {"token", "init", "photos", "masks", "captions_file"} <= refused
    for name in refused:
        (tmp_path / "dti.toml").write_text(f"[{verb}]\n{name} = 'x'\nsteps = 3")
        for asked in ("train", "generate"):
            with pytest.raises(UsageError, match=rf"\[{verb}\] sets {name}, "):
                model_layer(tmp_path, asked)
    for text in (f"[{verb}]\nsteps = 3\n[hub]\nx = 1", f"photos = 'x'\n[{verb}]\nsteps = 3", "train = []"):
        (tmp_path / "dti.toml").write_text(text)
        with pytest.raises(UsageError, match="expected the tables"):
            model_layer(tmp_path, verb)


def test_missing_settings_are_named_as_options() -> None:
    """As they would be given."""
    with pytest.raises(UsageError, match=r"--batch-size is missing"):
        resolve(TrainSettings, {name: value for name, value in COMPLETE.items() if name != "batch_size"})


TEXTS = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)))


@effort(max_examples=100, deadline=None)
@given(
    init=TEXTS.filter(bool),
    templates=st.lists(TEXTS.map(lambda text: text.replace("{}", "") + "{}"), max_size=3),
    lr=st.floats(1e-12, 1e12),
    seed=st.integers(0, 2**63 - 1),
    flip=st.booleans(),
)
def test_settings_survive_a_file(
    tmp_path_factory: pytest.TempPathFactory,
    init: str,
    templates: list[str],
    lr: float,
    seed: int,
    flip: bool,
) -> None:
    """Written as TOML and read back, every value is the same, whatever characters it has."""
    wanted = resolve(
        TrainSettings,
        {"init": init, "templates": templates, "lr": lr, "seed": seed, "flip": flip},
        COMPLETE,
    )
    path = config(tmp_path_factory.mktemp("toml"), to_toml(wanted))
    assert resolve(TrainSettings, read_config(TrainSettings, path)) == wanted


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@effort(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*TrainSettings.model_fields]) | TEXTS, VALUES, max_size=6))
def test_no_values_crash(layer: dict[str, object]) -> None:
    """Whatever a file holds, it is taken or refused in one line."""
    for kind in (TrainSettings, GenerateSettings):
        try:
            resolve(kind, layer, COMPLETE if kind is TrainSettings else {})
        except DtiError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017 - either outcome is right


@effort(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | TEXTS.map(lambda text: f"init = {json.dumps(text)}\n{text}".encode()))
def test_no_bytes_crash(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever bytes a config file is made of."""
    path = config(tmp_path_factory.getbasetemp(), data)
    try:
        read_config(TrainSettings, path)
    except UsageError as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", ["photos", "masks", "captions_file", "model", "init"])
def test_an_empty_name_is_none(tmp_path: Path, name: str) -> None:
    """Joined to a folder it would be that folder; taken for none, a default."""
    (tmp_path / "run.toml").write_text(f'{name} = ""')
    with pytest.raises(UsageError, match=f"{name} = '': expected a name"):
        read_config(TrainSettings, tmp_path / "run.toml")


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders and token files are; a word that happens to be a folder's name stays a word."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "dog"):
        (tmp_path / name).mkdir()
    (tmp_path / "cat.safetensors").touch()
    found = anchored(resolve(TrainSettings, {"photos": "photos", "prior": "cat.safetensors"}, COMPLETE))
    assert found.photos == str(tmp_path / "photos")
    assert found.prior == str(tmp_path / "cat.safetensors")
    assert found.init == "dog"


def test_the_command_refuses_a_bad_config_before_anything_else(
    dti: Callable[..., Outcome], tmp_path: Path
) -> None:
    """Exit code 2, one line, and nothing written."""
    path = config(tmp_path, 'model = 3\nsteps = "many"\n')
    outcome = dti("train", tmp_path, "--config", path, "--token", "<dog>", "--init", "dog")
    assert (outcome.code, "model = 3" in outcome.error, "many" in outcome.error) == (2, True, True)
    assert [each.name for each in tmp_path.iterdir()] == ["config.toml"]


def test_what_is_true_of_settings() -> None:
    """Written out by hand, as it was before each field said it: what a run is known by, and what others may say."""
    incidental = {
        *("steps", "checkpoint_steps", "checkpoint_seconds", "keep", "tracker", "as_paper"),
        *("preview", "preview_every", "preview_count", "preview_negative", "preview_steps", "preview_share"),
        *("offline", "device", "deterministic", "low_memory"),
        *("model", "base", "variant", "photos", "masks", "captions_file"),
    }
    assert TrainSettings.named(Trait.INCIDENTAL) == incidental
    assert GenerateSettings.named(Trait.INCIDENTAL) == {
        *("offline", "device", "deterministic", "low_memory", "model", "base", "variant", "batch_size")
    }
    assert TrainSettings.named(Trait.OF_A_MODEL) == {
        *("steps", "batch_size", "accumulate", "lr", "kappa", "beta", "magnitude", "resolution", "templates"),
        *("schedule", "average", "precision", "pooling"),
    }
    assert GenerateSettings.named(Trait.OF_A_MODEL) == {
        *("steps", "batch_size", "precision", "pooling", "guidance", "scheduler", "size")
    }
    assert TrainSettings.named(Trait.FILE) == {"photos", "masks", "captions_file"}
    assert TrainSettings.named(Trait.WORD_OR_FILE) == {"init", "prior"}
    assert TrainSettings.named(Trait.NAME_OR_FILE) == {"model", "base"}
    assert TrainSettings.named(Trait.SUBJECT) == {"photos", "init", "masks"}
    assert TrainSettings.named(Trait.FOR_ALL_ARMS) == {"token", "photos", "masks", "seed"}
