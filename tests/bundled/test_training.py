"""Layers that are faster but the same, and a loop that goes on where it stopped."""

import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from dticli.bundled.recipe import cache, diffusion, training
from dticli.ranks import ALONE


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """Checkpoints of these tests stay in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("shape", [(3, 32, 8, 8), (2, 64, 4, 6)])
def test_fast_group_norm_is_group_norm(shape):
    """Values and all three gradients agree with torch's own layer."""
    generator = torch.Generator().manual_seed(0)
    stock, fast = nn.GroupNorm(8, shape[1]), nn.GroupNorm(8, shape[1])
    with torch.no_grad():
        stock.weight.normal_(generator=generator)
        stock.bias.normal_(generator=generator)
    fast.load_state_dict(stock.state_dict())
    training.accelerate(fast)
    x = torch.randn(shape, generator=generator) * 3 + 1
    upstream = torch.randn(shape, generator=generator)
    results = []
    for layer in (stock, fast):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(upstream)
        results.append((y, leaf.grad, layer.weight.grad, layer.bias.grad))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_rate_rises_holds_and_falls():
    """Warm-up, plateau at one, then down to the floor."""
    assert training.rate(0.0) < 0.1
    assert training.rate(0.3) == training.rate(0.59) == 1
    assert training.rate(1.0) == pytest.approx(0.02)


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path):
    """Weights, optimiser and step count come back; a finished run takes no further step."""
    log = training.RecipeLog(tmp_path / "log")
    layer = nn.Linear(2, 1)
    optimiser = torch.optim.AdamW(layer.parameters(), 0.1)
    indices = []

    def step(index, progress):
        indices.append(index)
        if len(indices) == 4:
            raise KeyboardInterrupt
        loss = layer(torch.ones(1, 2)).square().sum()
        loss.backward()
        optimiser.step()
        return {"loss": loss.item()}

    parts = {"layer": layer, "optimiser": optimiser}
    training._save(cache.folder("toy") / "checkpoint.pt", parts, 7, 0.0)
    kept = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.zero_()
    with pytest.raises(KeyboardInterrupt):
        training.train("toy", parts, step, minutes=1, log=log, publish=lambda: None)
    assert indices == [7, 8, 9, 10]
    assert not torch.equal(layer.weight, torch.zeros_like(kept))
    training.train("toy", parts, step, minutes=0, log=log, publish=lambda: None)
    assert len(indices) == 4
    assert "resumed toy at step 7" in (tmp_path / "log").read_text()


def test_a_failed_write_leaves_the_old_file_whole(tmp_path):
    """Either the new bytes or the old ones, and no litter."""
    target = tmp_path / "weights"
    cache.write_bytes(target, b"old")

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cache.write(target, fail)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_average_follows_the_weights():
    """Early the average stays close; with constant weights it arrives at them."""
    layer = nn.Linear(1, 1)
    average = training.MovingAverage(layer, decay=0.9)
    with torch.no_grad():
        layer.weight.fill_(5.0)
    for step in range(200):
        average.update(layer, step)
    assert average.values["weight"].item() == pytest.approx(5.0, abs=1e-3)


def test_a_failed_folder_leaves_the_old_one_whole(tmp_path):
    """A folder is swapped in only once it is complete."""
    target = tmp_path / "model"
    cache.write_folder(target, lambda folder: (folder / "weights").write_bytes(b"old"))

    def fail(folder):
        (folder / "weights").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cache.write_folder(target, fail)
    assert (target / "weights").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_fingerprint_changes_with_the_file(tmp_path):
    """What rests on other weights gets another name."""
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    before = cache.fingerprint(file)
    file.write_bytes(b"two")
    assert cache.fingerprint(file) != before


def test_only_new_rows_move_and_each_keeps_its_length():
    """A step of any size leaves the others' bytes and the learned ones' norms as they were."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=12, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    encoder = CLIPTextModel(config)
    before = encoder.get_input_embeddings().weight.detach().clone()
    rows = diffusion.NewRows(encoder, [3, 7])
    optimiser = torch.optim.AdamW([rows.table], 0.5, weight_decay=0.0)
    for _ in range(3):
        optimiser.zero_grad()
        encoder(torch.arange(12)[None]).last_hidden_state.square().sum().backward()
        rows.shield()
        optimiser.step()
        rows.restore(rows.table)
    after = encoder.get_input_embeddings().weight.detach()
    moved = [index for index in range(12) if not torch.equal(before[index], after[index])]
    assert moved == [3, 7]
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1))
    assert not any(
        value.requires_grad for name, value in encoder.named_parameters() if "token_embedding" not in name
    )


class Two:
    """Two ranks as seen by the first: the other one's tensors are those it was given."""

    size, first, rank = 2, True, 0

    def __init__(self, other):
        self.other = other

    def mean_(self, tensors):
        for tensor in tensors:
            tensor += torch.cat([value.flatten() for value in self.other])
            tensor /= 2


def test_ranks_agree_on_their_mean():
    """Every weight becomes the mean of both, in its own shape; one rank alone keeps its own."""
    torch.manual_seed(0)
    ours, theirs = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)
    training.channels_last(ours)
    expected = [(a + b) / 2 for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)]
    diffusion._agree(ours, Two(list(theirs.parameters())))
    for found, wanted in zip(ours.parameters(), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    diffusion._agree(ours, ALONE)
    for found, wanted in zip(ours.parameters(), expected, strict=True):
        torch.testing.assert_close(found, wanted)
