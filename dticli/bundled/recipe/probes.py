"""Effects of a larger row norm in the text encoder: whether its position can be recovered, and how far blocks rotate its state.

Source: arXiv:2512.13672, Lemma 1 (position) and Proposition 1 (residual stagnation).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel

from dticli import sphere

HIDDEN = 128
STEPS = 400
BATCH = 512


@dataclass(frozen=True)
class Slots:
    """Prompts as ids, (prompts, length), and the position of the class word in each, (prompts,)."""

    ids: Tensor
    at: Tensor

    def of(self, states: Tensor) -> Tensor:
        """The word's states, (prompts, width), from those of all tokens, (prompts, length, width)."""
        return states[torch.arange(len(states)), self.at]


@dataclass(frozen=True)
class Probes:
    """MLPs that predict the position from the input of the first block's attention, and from the last states."""

    first: nn.Module
    last: nn.Module


def train(encoder: CLIPTextModel, slots: Slots, words: Tensor, seed: int) -> Probes:
    """Train both probes with unscaled rows.

    Args:
        words: ids of the vocabulary's nonzero rows, with which the first probe is trained at every position.
    """
    torch.manual_seed(seed)
    length = slots.ids.shape[1]
    places = torch.arange(length).repeat(len(words))
    first = _trained(_attended(encoder, words.repeat_interleave(length), places), places, length)
    states = _states(encoder, slots)[-1]
    everywhere = torch.arange(length).expand(len(states), length)
    return Probes(first, _trained(states.flatten(0, 1), everywhere.flatten(), length))


def report(encoder: CLIPTextModel, slots: Slots, probes: Probes) -> dict[str, float]:
    """Accuracy of each probe on the word's position, and the mean rotation of its state by a block, in degrees."""
    words = slots.ids[torch.arange(len(slots.ids)), slots.at]
    own = [slots.of(states) for states in _states(encoder, slots)]
    turns = [sphere.angle(*map(sphere.normalize, pair)) for pair in pairwise(own)]
    return {
        "position": _right(probes.first, _attended(encoder, words, slots.at), slots.at),
        "position in states": _right(probes.last, own[-1], slots.at),
        "degrees a block": torch.stack(turns).mean().rad2deg().item(),
    }


@torch.no_grad()
def _attended(encoder: CLIPTextModel, words: Tensor, places: Tensor) -> Tensor:
    """LN(e + p) of the first block, (rows, width)."""
    embeddings = encoder.embeddings
    summed = embeddings.token_embedding(words) + embeddings.position_embedding(places)
    return encoder.encoder.layers[0].layer_norm1(summed)


@torch.no_grad()
def _states(encoder: CLIPTextModel, slots: Slots) -> tuple[Tensor, ...]:
    """States before the first block and after each, (prompts, length, width)."""
    return encoder(slots.ids, output_hidden_states=True).hidden_states


def _trained(states: Tensor, places: Tensor, length: int) -> nn.Module:
    network = nn.Sequential(nn.Linear(states.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, length))
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(STEPS):
        picks = torch.randint(len(states), (BATCH,))
        loss = functional.cross_entropy(network(states[picks]), places[picks])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network


@torch.no_grad()
def _right(network: nn.Module, states: Tensor, places: Tensor) -> float:
    return (network(states).argmax(dim=1) == places).float().mean().item()
