"""The MLP in parts, where no backward pass follows, against the whole."""

import pytest
import torch
from torch import nn

from convlora.backbone import common
from convlora.backbone.common import MLPBlock


@pytest.fixture
def mlp(monkeypatch):
    # five tokens of float32 at a time, ten of bfloat16, which do not divide 2 x 3 x 4
    monkeypatch.setattr(common, "_HIDDEN", 5 * 24 * 4)
    torch.manual_seed(0)
    return MLPBlock(6, 24, nn.GELU())


@pytest.mark.parametrize("autocast", [False, True])
def test_parts_give_what_the_whole_gives(mlp, autocast):
    x = torch.randn(2, 3, 4, 6)
    calls = []
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        whole = mlp(x).detach()
        mlp.act.register_forward_hook(lambda *_: calls.append(1))
        with torch.no_grad():
            parts = mlp(x)
    assert len(calls) == (3 if autocast else 5)
    assert parts.dtype == whole.dtype == (torch.bfloat16 if autocast else torch.float32)
    # a product of fewer rows may sum in another order: float32 rounding, or one of bfloat16's 8 bits
    tolerance = 2**-7 if autocast else 1e-6
    torch.testing.assert_close(parts, whole, rtol=tolerance, atol=tolerance)


def test_an_adapted_layer_sees_all_tokens_at_once(mlp):
    shapes = []

    class Adapted(nn.Linear):
        def forward(self, x):
            shapes.append(tuple(x.shape))
            return super().forward(x)

    mlp.lin1 = Adapted(6, 24)
    with torch.no_grad():
        mlp(torch.randn(2, 3, 4, 6))
    assert shapes == [(2, 3, 4, 6)]
