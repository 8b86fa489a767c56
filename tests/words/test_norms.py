"""Vocabulary statistics against NumPy and SciPy, and tables read from files against the loaded model's own."""

import hashlib
import json
import math
import os
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import scipy.stats
import torch
from torch import Tensor

from dticli.errors import InputError, ModelError, NumericalError, UsageError
from dticli.models import embeddings
from dticli.models.embeddings import Table
from dticli.words import norms
from tests import tiny
from tests.tiny import tokenizers

ROWS, SPARE, WIDTH = 900, 28, 21
ZERO = [0, 17, 899]


def numbers() -> np.ndarray:
    """A table with rows of very different lengths, three zero rows, and spare rows that would spoil any statistic."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((ROWS + SPARE, WIDTH)) * generator.gamma(4, 0.1, (ROWS + SPARE, 1))
    rows[ZERO] = 0
    rows[ROWS:] = 1e3
    return rows.astype(np.float32)


class Words:
    """A tokenizer as far as a table asks one: its pieces are word0, word1, ..."""

    def __init__(self, count: int = ROWS):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"word{i}" for i in ids]


def table_with(rows: np.ndarray | Tensor | None = None, words: int = ROWS) -> Table:
    weight = torch.as_tensor(numbers() if rows is None else rows)
    return embeddings.table_of("text_encoder", weight, Words(words))


def live() -> np.ndarray:
    """Lengths of the live rows in double precision."""
    lengths = np.linalg.norm(numbers()[:ROWS].astype(np.float64), axis=1)
    return np.delete(lengths, ZERO)


@pytest.fixture(params=[2**20, WIDTH * 7], ids=["one piece", "pieces of 7 rows"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much of a table is taken at once must not matter."""
    monkeypatch.setattr(norms, "_CHUNK", request.param)


# Statistics


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2]
)
def test_live_norms_leave_out_zero_and_spare_rows(dtype: torch.dtype) -> None:
    """Row lengths in order, whatever the stored dtype."""
    weight = torch.tensor(numbers()).to(dtype).requires_grad_()
    expected = np.linalg.norm(np.delete(weight.detach().double().numpy()[:ROWS], ZERO, axis=0), axis=1)
    found = norms.live_norms(table_with(weight))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.usefixtures("pieces")
def test_lengths_depend_on_no_order_of_sums() -> None:
    """They are exact to the last bit of float32, so that a word gets the same length on every processor."""
    exact = [np.float32(math.sqrt(math.fsum(float(x) ** 2 for x in row))) for row in numbers()[:ROWS]]
    assert norms.live_norms(table_with()).tolist() == [float(each) for each in exact if each]


@pytest.mark.usefixtures("pieces")
def test_summary_agrees_with_numpy() -> None:
    """Every statistic, percentile and histogram bin, and the words of the extreme rows."""
    found, lengths = norms.summary(table_with()), live()
    assert (found.rows, found.spare, found.zero, found.width) == (ROWS + SPARE, SPARE, len(ZERO), WIDTH)
    for name, expected in {
        "min": lengths.min(),
        "mean": lengths.mean(),
        "median": np.median(lengths),
        "max": lengths.max(),
        "std": lengths.std(),
    }.items():
        assert getattr(found, name) == pytest.approx(expected, rel=1e-6)
    for percent, value in found.percentiles.items():
        assert value == pytest.approx(np.percentile(lengths, percent), rel=1e-6)
    names = np.delete(np.array(table_with().words), ZERO)
    assert (found.argmin, found.argmax) == (names[lengths.argmin()], names[lengths.argmax()])
    assert sum(found.counts) == len(lengths)
    np.testing.assert_allclose(
        found.edges, np.linspace(lengths.min(), lengths.max(), norms.BINS + 1), rtol=1e-6
    )
    counts, _ = np.histogram(norms.live_norms(table_with()), bins=np.array(found.edges))
    assert found.counts == tuple(counts)
    json.dumps(vars(found))


def test_summary_of_rows_of_one_length() -> None:
    """A table without any spread is summarised, not divided by."""
    found = norms.summary(table_with(np.eye(ROWS + SPARE, dtype=np.float32)))
    assert (found.min, found.max, found.std, sum(found.counts)) == (1, 1, 0, ROWS)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("mean", live().mean()),
        ("median", np.median(live())),
        ("min", live().min()),
        ("max", live().max()),
        ("0.4", 0.4),
        (".5", 0.5),
        ("3", 3.0),
        ("1x", live().mean()),
        ("2.5x", 2.5 * live().mean()),
    ],
)
def test_magnitude_rules(rule: str, expected: float) -> None:
    """Statistics of the vocabulary, multiples of its mean, and lengths as they are."""
    assert norms.magnitude(norms.summary(table_with()), rule) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "rule", ["", "x", "0", "0x", "-1", "nan", "inf", "2 x", "2X", "std", "1e3", "9" * 400, "1.2.3"]
)
def test_other_magnitude_rules_are_refused(rule: str) -> None:
    """The message shows the rule and what would be one."""
    with pytest.raises(UsageError, match=r"magnitude .*mean, median, min, max"):
        norms.magnitude(norms.summary(table_with()), rule)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("k", [1, 5, 2 * ROWS])
def test_position_agrees_with_numpy(k: int) -> None:
    """Length, percentile, z-score and the nearest words of several vectors at once, against direct computation."""
    vectors = np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32) * np.float32(
        [[0.05], [0.4], [9]]
    )
    lengths, rows = live(), np.delete(numbers()[:ROWS].astype(np.float64), ZERO, axis=0)
    names = np.delete(np.array(table_with().words), ZERO)
    found = norms.positions(vectors, table_with(), k)
    for vector, position in zip(vectors.astype(np.float64), found, strict=True):
        norm = np.linalg.norm(vector)
        assert position.norm == pytest.approx(norm, rel=1e-6)
        assert position.percentile == pytest.approx(
            scipy.stats.percentileofscore(lengths, norm, "mean"), abs=1e-4
        )
        assert position.z_score == pytest.approx((norm - lengths.mean()) / lengths.std(), rel=1e-5)
        low, high = np.percentile(lengths, norms.CENTRAL)
        assert position.in_distribution == (low <= norm <= high)
        cosines = rows @ vector / lengths / norm
        best = np.argsort(-cosines)[:k]
        assert [near.word for near in position.nearest] == list(names[best])
        np.testing.assert_allclose([near.cosine for near in position.nearest], cosines[best], atol=1e-6)
        distances = np.linalg.norm(rows - vector, axis=1)
        best = np.argsort(distances)[: len(position.closest)]
        assert [near.word for near in position.closest] == list(names[best])
        np.testing.assert_allclose([near.distance for near in position.closest], distances[best], atol=1e-4)


def test_a_words_own_row_is_its_nearest() -> None:
    """A row of the table has cosine one with itself, and half of its own weight in its percentile."""
    weight, lengths = table_with().rows, live()
    found = norms.position(weight[100], table_with(), k=3)
    assert found.nearest[0].word == "word100"
    assert found.nearest[0].cosine == pytest.approx(1)
    rank = (lengths < lengths[98]).sum() + 0.5  # two zero rows come before
    assert found.percentile == pytest.approx(100 * rank / len(lengths), abs=1e-4)


@pytest.mark.parametrize(
    ("length", "expected"), [(0.1, False), (0.995, False), (1.5, True), (1.995, True), (2.1, False)]
)
def test_in_distribution_is_the_central_99_percent(length: float, expected: bool) -> None:
    """Of lengths spread evenly over 1 ... 2, those between 1.005 and 1.995 are in the distribution."""
    rows = np.zeros((ROWS, 2), np.float32)
    rows[:, 0] = np.linspace(1, 2, ROWS)
    table = Table("text_encoder", rows, ["a"] * ROWS)
    assert norms.position(np.float32([0, length - 1e-4]), table).in_distribution is expected


def test_unusable_vectors_are_refused() -> None:
    """Another width, zero, and NaN each have their error."""
    with pytest.raises(InputError, match=f"width 8: expected {WIDTH} as in text_encoder"):
        norms.position(np.ones(8, np.float32), table_with())
    for value in (0.0, float("nan")):
        with pytest.raises(NumericalError):
            norms.position(np.full(WIDTH, value, np.float32), table_with())


@pytest.mark.parametrize(("row", "value"), [(5, float("nan")), (6, float("inf"))])
def test_a_damaged_table_is_refused(row: int, value: float) -> None:
    """One bad number would spoil every statistic; the message names its row. Spare rows may hold anything."""
    rows = numbers()
    rows[row, 3] = value
    with pytest.raises(ModelError, match=f"row {row} "):
        norms.live_norms(table_with(rows))
    rows = numbers()
    rows[ROWS, 3] = value
    norms.live_norms(table_with(rows))
    with pytest.raises(ModelError, match="zeros"):
        norms.live_norms(table_with(np.zeros((3, 3), np.float32)))


# The fingerprint of a model's embeddings


@pytest.mark.usefixtures("pieces")
def test_fingerprint_is_that_of_the_signs() -> None:
    """SHA-256 of the sign bits of every word's row, eight to a byte, each row filled up to whole bytes."""
    rows = numbers()[:ROWS]
    packed = b"".join(np.packbits(np.signbit(row)).tobytes() for row in rows)
    assert norms.fingerprint([table_with()]) == hashlib.sha256(packed).hexdigest()


def test_fingerprint_survives_rounding_and_growth_but_not_learning() -> None:
    """One model in any precision, also where halves underflow; another sign anywhere is another model."""
    tiny_numbers = torch.tensor(numbers()) * 1e-6
    original = norms.fingerprint([table_with(tiny_numbers)])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert norms.fingerprint([table_with(tiny_numbers.to(dtype))]) == original
    assert norms.fingerprint([table_with(torch.cat([tiny_numbers, -torch.ones(5, WIDTH)]))]) == original
    tiny_numbers[3, 0] *= -1
    assert norms.fingerprint([table_with(tiny_numbers)]) != original


@pytest.mark.parametrize("kind", ["clip", "t5", "gemma", "qwen", "bert"])
def test_the_row_of_a_word_is_that_of_its_id_in_a_sentence(kind: str) -> None:
    """Each tokenizer's own id for the word after another one; words of several pieces have no row."""
    tokenizer = getattr(tokenizers, f"{kind}_tokenizer")()
    rows = torch.tensor(np.random.default_rng(0).standard_normal((len(tokenizer), 4)), dtype=torch.bfloat16)
    table = embeddings.table_of("text_encoder", rows, tokenizer)
    last = tokenizer("a dog", add_special_tokens=False).input_ids[-1]
    np.testing.assert_array_equal(norms.row_of(table, "dog"), rows[last].float())
    assert norms.readable(table.words[last]) == "dog"
    for word in ("", "dogcat", "no such word"):
        assert norms.row_of(table, word) is None


# Reading


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL in diffusers layout as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("sdxl")
    tiny.build("sdxl").save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of the first text encoder, in memory; its file is removed."""
    path = folder / "text_encoder" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
    path.unlink()
    return tensors


def test_tables_of_a_saved_pipeline(saved: Path) -> None:
    """Both encoders' tables and words equal those of the loaded pipeline."""
    pipe = tiny.build("sdxl")
    first, second = embeddings.read_tables(saved)
    for table, encoder, tokenizer in (
        (first, "text_encoder", pipe.tokenizer),
        (second, "text_encoder_2", pipe.tokenizer_2),
    ):
        assert table.encoder == encoder
        loaded = getattr(pipe, encoder).get_input_embeddings().weight.detach()
        assert torch.equal(table.tensor, loaded)
        assert [tokenizer.convert_tokens_to_ids(word) for word in table.words] == list(range(len(tokenizer)))
        in_memory = embeddings.table_of(
            encoder, getattr(pipe, encoder).get_input_embeddings().weight, tokenizer
        )
        assert in_memory.words == table.words
        assert norms.fingerprint([in_memory]) == norms.fingerprint([table])


def as_variant(folder: Path) -> torch.dtype:
    halves = {name: tensor.half() for name, tensor in weights(folder).items()}
    safetensors.torch.save_file(halves, folder / "text_encoder" / "model.fp16.safetensors")
    return torch.float16


def beside_a_variant(folder: Path) -> torch.dtype:
    tensors = weights(folder)
    for name, wrong in (("model", 1.0), ("model.fp16", 2.0)):
        changed = {key: tensor * wrong for key, tensor in tensors.items()}
        safetensors.torch.save_file(changed, folder / "text_encoder" / f"{name}.safetensors")
    return torch.float32


def as_shards(folder: Path, variant: str = "") -> torch.dtype:
    tensors = weights(folder)
    names = {
        key: f"model{variant}-{i:05}-of-{len(tensors):05}.safetensors" for i, key in enumerate(tensors, 1)
    }
    for key, name in names.items():
        safetensors.torch.save_file({key: tensors[key]}, folder / "text_encoder" / name)
    index = folder / "text_encoder" / f"model.safetensors.index{variant}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return torch.float32


def as_variant_shards(folder: Path) -> torch.dtype:
    return as_shards(folder, ".fp16")


def as_pickle(folder: Path, **options: Any) -> torch.dtype:
    torch.save(weights(folder), folder / "text_encoder" / "pytorch_model.bin", **options)
    return torch.float32


def as_old_pickle(folder: Path) -> torch.dtype:
    return as_pickle(folder, _use_new_zipfile_serialization=False)


def as_public_keys(folder: Path) -> torch.dtype:
    prefixed = {f"text_model.{key}": tensor for key, tensor in weights(folder).items()}
    safetensors.torch.save_file(prefixed, folder / "text_encoder" / "model.safetensors")
    return torch.float32


@pytest.mark.parametrize(
    "change",
    [as_variant, beside_a_variant, as_shards, as_variant_shards, as_pickle, as_old_pickle, as_public_keys],
)
def test_every_way_weights_are_stored(change: Callable[[Path], torch.dtype], model: Path) -> None:
    """Single files, shards, variants and pickles give the model's table, in the stored dtype."""
    dtype = change(model)
    expected = tiny.build("sdxl").text_encoder.get_input_embeddings().weight.detach().to(dtype)
    found = embeddings.read_tables(model)[0].tensor
    assert found.dtype == dtype
    assert torch.equal(found, expected)


def bare(folder: Path, tensors: dict[str, Tensor], tokenizer: Any, kind: str) -> Path:
    """A folder with one encoder's weights and tokenizer and nothing else."""
    index = {"_class_name": "P", "text_encoder": ["transformers", "X"], "tokenizer": ["transformers", kind]}
    (folder / "text_encoder").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(index))
    safetensors.torch.save_file(tensors, folder / "text_encoder" / "model.safetensors")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.mark.parametrize(
    ("key", "others", "make", "kind"),
    [
        ("shared.weight", ["decoder.embed_tokens.weight"], tokenizers.t5_tokenizer, "T5Tokenizer"),
        (
            "encoder.embed_tokens.weight",
            ["decoder.embed_tokens.weight", "lm_head.weight"],
            tokenizers.t5_tokenizer,
            "T5TokenizerFast",
        ),
        ("embed_tokens.weight", ["layers.0.mlp.weight"], tokenizers.gemma_tokenizer, "GemmaTokenizerFast"),
        (
            "model.language_model.embed_tokens.weight",
            ["lm_head.weight"],
            tokenizers.qwen_tokenizer,
            "Qwen2Tokenizer",
        ),
        ("embeddings.word_embeddings.weight", ["pooler.weight"], tokenizers.bert_tokenizer, "BertTokenizer"),
        ("shared.weight", ["encoder.embed_tokens.weight"], tokenizers.t5_tokenizer, "NoLongerThere"),
    ],
)
def test_other_families_tables(
    key: str, others: list[str], make: Callable[[], Any], kind: str, tmp_path: Path
) -> None:
    """The input table is found under each family's key among others, and rows beyond the tokenizer are spare."""
    tokenizer = make()
    rows = torch.tensor(
        np.random.default_rng(0).standard_normal((len(tokenizer) + SPARE, 8)), dtype=torch.bfloat16
    )
    tensors = {key: rows} | {other: torch.ones_like(rows) for other in others}
    (table,) = embeddings.read_tables(bare(tmp_path / "model", tensors, tokenizer, kind))
    assert torch.equal(table.tensor, rows)
    assert list(table.words) == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert norms.summary(table).spare == SPARE


def as_older_folders(folder: Path) -> None:
    """Pieces and merges in files of their own, as before there was one file for all."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    pairs = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]))


def with_a_piece_of_its_own(folder: Path) -> None:
    """The settings name a piece that the vocabulary does not hold: loading adds it."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<|nothing|>"}))


@pytest.mark.parametrize(
    ("change", "read"),
    [(lambda folder: None, True), (as_older_folders, True), (with_a_piece_of_its_own, False)],
)
def test_pieces_are_those_of_the_loaded_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], read: bool
) -> None:
    """It is loaded only where its files do not say everything."""
    rows = {"text_model.embeddings.token_embedding.weight": torch.ones(2000, 8)}
    folder = bare(tmp_path / "model", rows, tiny.build("sd1").tokenizer, "CLIPTokenizer")
    change(folder / "tokenizer")
    loaded = embeddings.read_tokenizer(folder / "tokenizer", "CLIPTokenizer")
    calls: list[Path] = []

    def load(path: Path, kind: str) -> Any:
        calls.append(path)
        return loaded

    monkeypatch.setattr(embeddings, "read_tokenizer", load)
    (table,) = embeddings.read_tables(folder)
    assert list(table.words) == loaded.convert_ids_to_tokens(list(range(len(loaded))))
    assert bool(calls) is not read


def test_a_tokenizer_longer_than_the_table(tmp_path: Path) -> None:
    """Words without a row are left out."""
    tokenizer = tokenizers.t5_tokenizer()
    folder = bare(tmp_path / "model", {"shared.weight": torch.ones(50, 8)}, tokenizer, "T5Tokenizer")
    (table,) = embeddings.read_tables(folder)
    assert len(table.words) == 50
    assert norms.summary(table).spare == 0


def test_only_the_table_is_read(tmp_path: Path) -> None:
    """A table is read from a file of 4 GiB, most of which is a hole, without memory for the rest."""
    tokenizer = tokenizers.t5_tokenizer()
    folder = bare(tmp_path / "model", {"shared.weight": torch.ones(50, 8)}, tokenizer, "T5Tokenizer")
    header = {
        "shared.weight": {"dtype": "F32", "shape": [50, 8], "data_offsets": [0, 1600]},
        "block.weight": {"dtype": "F32", "shape": [2**15, 2**15], "data_offsets": [1600, 1600 + 2**32]},
    }
    text = json.dumps(header).encode()
    path = folder / "text_encoder" / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + np.arange(400, dtype="<f4").tobytes())
        file.truncate(8 + len(text) + 1600 + 2**32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (table,) = embeddings.read_tables(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
    assert torch.equal(table.tensor, torch.arange(400.0).reshape(50, 8))
    os.truncate(path, 0)  # some copying tools would fill the hole


def test_encoders_that_are_not_there_are_skipped(model: Path) -> None:
    """[null, null] in the index, as for SD3 without T5, and settings that are no components."""
    index = json.loads((model / "model_index.json").read_text())
    index |= {"text_encoder_2": [None, None], "tokenizer_2": [None, None], "text_encoder_out_layers": [9, 18]}
    (model / "model_index.json").write_text(json.dumps(index))
    assert [table.encoder for table in embeddings.read_tables(model)] == ["text_encoder"]


def remove(name: str) -> Callable[[Path], Any]:
    return lambda folder: (
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    )


def fill(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


def store(**tensors: Tensor) -> Callable[[Path], Any]:
    renamed = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return lambda folder: safetensors.torch.save_file(renamed, folder / "text_encoder" / "model.safetensors")


def lose_a_shard(folder: Path) -> None:
    as_shards(folder)
    for path in (folder / "text_encoder").glob("*-of-*"):
        path.unlink()


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.getcwd, ()


def pickle_code(folder: Path) -> None:
    weights(folder)
    torch.save({"shared.weight": Code()}, folder / "text_encoder" / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove("model_index.json"), "cannot read .*model_index.json .no such file"),
        (fill("model_index.json", "{"), "model_index.json is not JSON"),
        (fill("model_index.json", "[]"), "model_index.json is damaged"),
        (fill("model_index.json", "{}"), "no text encoder"),
        (remove("text_encoder"), "no weights in"),
        (
            fill("text_encoder/model.safetensors", "version https://git-lfs"),
            "model.safetensors cannot be read",
        ),
        (store(weight=torch.ones(9, 3)), "no embedding table"),
        (
            store(a__shared__weight=torch.ones(9, 3), b__shared__weight=torch.ones(9, 3)),
            "several embedding tables",
        ),
        (store(shared__weight=torch.ones(9, 3, dtype=torch.int8)), "not quantised"),
        (store(shared__weight=torch.ones(9)), "not quantised"),
        (lose_a_shard, "cannot read .*model-00002-of-00036.safetensors"),
        (pickle_code, "pytorch_model.bin cannot be read"),
        (remove("tokenizer"), "no tokenizer in"),
        (fill("tokenizer/tokenizer.json", "{"), "no tokenizer in"),
    ],
)
def test_missing_and_broken_pieces_are_named(damage: Callable[[Path], Any], said: str, model: Path) -> None:
    """Each ends in one line that names the file."""
    damage(model)
    with pytest.raises(ModelError, match=said) as caught:
        embeddings.read_tables(model)
    assert "\n" not in str(caught.value)
    assert str(model) in str(caught.value)
