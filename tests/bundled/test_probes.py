"""Probes of the text encoder, on a tiny one whose rows and positions are known."""

from itertools import pairwise

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from dticli.bundled.recipe import probes, text_encoder

LENGTH, WORDS = 8, 20


@pytest.fixture
def encoder():
    """Two blocks; positions as long as rows."""
    torch.manual_seed(0)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=WORDS, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    ).eval()  # fmt: skip


@pytest.fixture
def slots():
    """Prompts with one word, 5, somewhere; the others below it."""
    torch.manual_seed(1)
    ids, at = torch.randint(6, WORDS, (64, LENGTH)), torch.randint(LENGTH, (64,))
    ids[torch.arange(64), at] = 5
    return probes.Slots(ids, at)


def test_a_long_row_drowns_its_position_and_is_no_longer_turned(encoder, slots):
    """At its own length the position is found and blocks turn the state; a hundred times as long, neither, as O(1/m) says."""
    trained = probes.train(encoder, slots, torch.arange(2, WORDS), seed=0)
    before = probes.report(encoder, slots, trained)
    assert before["position"] > 0.95
    with torch.no_grad():
        encoder.get_input_embeddings().weight[5] *= 100
    after = probes.report(encoder, slots, trained)
    assert after["position"] < 0.5
    with torch.no_grad():
        encoder.get_input_embeddings().weight[5] *= 10
    longer = probes.report(encoder, slots, trained)
    assert longer["degrees a block"] == pytest.approx(after["degrees a block"] / 10, rel=0.2)
    assert after["degrees a block"] < before["degrees a block"] / 5


def test_degrees_are_those_between_states(encoder, slots):
    """The mean over blocks and prompts of the angle between a word's state before and after, by the law of cosines."""
    trained = probes.train(encoder, slots, torch.arange(2, WORDS), seed=0)
    with torch.no_grad():
        states = encoder(slots.ids, output_hidden_states=True).hidden_states
    rows = [state[range(64), slots.at].double() for state in states]
    angles = []
    for a, b in pairwise(rows):
        unit_a, unit_b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
        angles.append(2 * torch.atan2((unit_a - unit_b).norm(dim=1), (unit_a + unit_b).norm(dim=1)))
    expected = torch.stack(angles).mean().rad2deg().item()
    assert probes.report(encoder, slots, trained)["degrees a block"] == pytest.approx(expected, rel=1e-3)


def test_shortening_changes_no_state(encoder, slots):
    """Rows, positions and all that blocks add are divided alike, and the last norm sees the same direction."""
    with torch.no_grad():
        for table in text_encoder._tables(encoder):
            table.mul_(1000)  # far from the norm's epsilon
        before, rows = encoder(slots.ids), encoder.get_input_embeddings().weight.clone()
        text_encoder.shorten(encoder)
        after = encoder(slots.ids)
    assert torch.allclose(before.last_hidden_state, after.last_hidden_state, atol=1e-3)
    assert torch.allclose(before.pooler_output, after.pooler_output, atol=1e-3)
    assert torch.allclose(encoder.get_input_embeddings().weight * text_encoder.ROW_SCALE, rows)
