"""Which dtype a device computes in."""

import pytest
import torch

from dticli.models import devices

CUDA = torch.device("cuda")


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp16")])
def test_bf16_is_picked_where_the_card_has_it_itself(
    native: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch says yes for every card, as it counts those that emulate bf16 (T4, V100, RTX 20): they get fp16."""

    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert devices.pick_precision("auto", CUDA) == expected
    assert devices.pick_precision("bf16", CUDA) == "bf16"
    assert devices.pick_precision("auto", torch.device("cpu")) == "fp32"
