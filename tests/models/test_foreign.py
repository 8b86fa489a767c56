"""Models and judges that bring code of their own: none of it is run, whatever is answered, and one line says why."""

import ast
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dticli
from tests import tiny
from tests.conftest import Outcome

Dti = Callable[..., Outcome]
ROOT = Path(dticli.__file__).parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.build("sd1").save_pretrained(folder)
    return folder


@pytest.fixture
def trap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], None]:
    """Puts a module into a folder that leaves a mark when it is run, and has every question answered with yes."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_MODULES_CACHE", str(tmp_path / "modules"), raising=False
    )
    monkeypatch.chdir(tmp_path)

    def put(folder: Path, name: str = "trap") -> None:
        folder.mkdir(exist_ok=True, parents=True)
        code = f"import pathlib\npathlib.Path({str(tmp_path / 'sprung')!r}).touch()\nclass Trap: pass\n"
        (folder / f"{name}.py").write_text(code)

    return put


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file."""
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


MAP = {name: "trap.Trap" for name in ("AutoConfig", "AutoModel", "AutoImageProcessor", "AutoProcessor")}
TOKENIZER = {"AutoTokenizer": ["trap.Trap", "trap.Trap"]}


def _auto_text_encoder(folder: Path) -> None:
    edit(folder / "model_index.json", text_encoder=["transformers", "AutoModel"])
    edit(folder / "text_encoder" / "config.json", auto_map=MAP, model_type="trap")


def _auto_tokenizer(folder: Path) -> None:
    edit(folder / "model_index.json", tokenizer=["transformers", "AutoTokenizer"])
    edit(folder / "tokenizer" / "tokenizer_config.json", auto_map=TOKENIZER, tokenizer_class="Trap")


def _own_tokenizer_class(folder: Path) -> None:
    edit(folder / "tokenizer" / "tokenizer_config.json", auto_map=TOKENIZER, tokenizer_class="Trap")
    edit(folder / "model_index.json", tokenizer=["transformers", "Trap"])


def _module_of_a_part(folder: Path) -> None:
    edit(folder / "model_index.json", unet=["trap", "Trap"])


def _module_that_is_in_the_way(folder: Path) -> None:
    edit(folder / "model_index.json", scheduler=["trap", "Trap"])


def _own_pipeline(folder: Path) -> None:
    edit(folder / "model_index.json", _class_name=["trap", "Trap"])


@pytest.mark.parametrize(
    "spoil",
    [
        _auto_text_encoder,
        _auto_tokenizer,
        _own_tokenizer_class,
        _module_of_a_part,
        _module_that_is_in_the_way,
        _own_pipeline,
    ],
)
def test_a_models_code_is_not_run(
    dti: Dti, saved: Path, trap: Callable[..., None], tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    """A part, a tokenizer or the pipeline itself is of a class that only the folder has."""
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    for place in ("", "text_encoder", "tokenizer", "unet", "scheduler"):
        trap(folder / place)
    spoil(folder)
    outcome = dti("generate", "a dog", "--model", folder, "-o", tmp_path / "out")
    assert not (tmp_path / "sprung").exists()
    assert outcome.code == 4, outcome.err
    assert "Do you wish" not in outcome.out + outcome.err
    assert outcome.error


@pytest.mark.parametrize("option", ["--image-judge", "--text-judge"])
def test_a_judges_code_is_not_run(
    dti: Dti, dog: Path, photos: Path, trap: Callable[..., None], tmp_path: Path, option: str
) -> None:
    """A folder that says which of its modules to load it with."""
    trap(tmp_path / "judge")
    edit(tmp_path / "judge" / "config.json", auto_map=MAP | TOKENIZER, model_type="trap")
    edit(tmp_path / "judge" / "preprocessor_config.json", auto_map=MAP, image_processor_type="Trap")
    edit(tmp_path / "judge" / "tokenizer_config.json", auto_map=TOKENIZER, tokenizer_class="Trap")
    other = {"--image-judge": "--text-judge", "--text-judge": "--image-judge"}[option]
    judges = (option, tmp_path / "judge", other, "stickers-b")
    outcome = dti(
        "evaluate", dog, "--photos", photos, *judges, "--out", tmp_path / "out", "--model", "stickers"
    )
    assert not (tmp_path / "sprung").exists()
    assert outcome.code == 4, outcome.err
    assert "Do you wish" not in outcome.out + outcome.err
    assert "custom code" in outcome.error


def test_what_others_made_comes_in_by_one_door() -> None:
    """No module calls a loader itself, and pickles are of plain tensors; what the recipe loads, it made itself."""
    for path in ROOT.rglob("*.py"):
        if "recipe" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            assert node.func.attr not in ("from_pretrained", "from_single_file"), path
            if ast.unparse(node.func) == "torch.load":
                assert ast.unparse(node).count("weights_only=True") == 1, path
            assert ast.unparse(node.func) not in ("pickle.load", "pickle.loads", "runpy.run_path"), path
