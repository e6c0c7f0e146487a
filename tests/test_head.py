"""Heads: what the mask tokens mean, against the formulas written out."""

import pytest
import torch

from convlora.backbone.initialise import random_sam
from convlora.errors import ConfigError
from convlora.head import _TOKEN_NOISE, HeadOutput, SegmentationHead, class_ids
from convlora.losses import mask_classification_loss
from small import SMALL

KINDS = [("binary", 2, 0, 1, 0.0), ("per-class", 20, 0, 20, 0.01), ("mask-classification", 3, 20, 20, 3.0)]


@pytest.mark.parametrize(("kind", "classes", "masks", "tokens", "noise"), KINDS)
def test_tokens_start_around_the_single_mask_token(kind, classes, masks, tokens, noise):
    torch.manual_seed(0)
    decoder = random_sam(SMALL).mask_decoder
    token = decoder.mask_tokens.weight[0].detach().clone()
    network = {k: v.clone() for k, v in decoder.output_hypernetworks_mlps[0].state_dict().items()}
    SegmentationHead(kind, classes, masks, dim=32).equip(decoder)
    assert decoder.mask_tokens.weight.shape == (tokens, 32)
    added = (decoder.mask_tokens.weight.detach() - token) / token.std()
    assert float(added.square().mean().sqrt()) == pytest.approx(noise, rel=0.1)  # 640 random numbers
    assert abs(float(added.mean())) <= 0.15 * noise
    for copy in decoder.output_hypernetworks_mlps:
        assert all(torch.equal(v, network[k]) for k, v in copy.state_dict().items())
    assert len(decoder.output_hypernetworks_mlps) == (1 if kind == "mask-classification" else tokens)


def losses_of_training(seed, steps=30):
    """Decoder and head on one image of four stripes, from its embedding."""
    torch.manual_seed(seed)
    decoder = random_sam(SMALL).mask_decoder
    head = SegmentationHead("mask-classification", 4, 6, dim=32)
    head.equip(decoder)
    target = torch.arange(4).repeat_interleave(8).expand(1, 32, 32).contiguous()
    embedding, positions = torch.randn(2, 1, 32, 8, 8)
    optimizer = torch.optim.AdamW([*decoder.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(steps):
        decoded = decoder.decode(embedding, positions)
        out = head(decoded.mask_tokens, decoder.masks(decoded))
        loss = mask_classification_loss(out.mask_logits, out.class_logits, target, num_points=256).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


@pytest.mark.parametrize("seed", range(3))
def test_mask_classification_learns_at_once(seed, monkeypatch):
    """It fell from 19 to 7 in ten steps; where the tokens start nearly alike, from 23 to 16 in thirty."""
    assert min(losses_of_training(seed)) < 8
    monkeypatch.setitem(_TOKEN_NOISE, "mask-classification", 0.01)
    assert min(losses_of_training(seed)) > 10


def test_binary_probabilities():
    head = SegmentationHead("binary", 2, 0, dim=32)
    logits = torch.tensor([[[[0.0, 2.0], [-2.0, 100.0]]]])
    probabilities = head.probabilities(head.scores(HeadOutput(logits, None)))
    assert torch.allclose(probabilities[:, 1:], logits.sigmoid())
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(1, 2, 2))


def test_per_class_probabilities():
    head = SegmentationHead("per-class", 4, 0, dim=32)
    logits = torch.randn(2, 4, 3, 5)
    probabilities = head.probabilities(head.scores(HeadOutput(logits, None)))
    assert torch.allclose(probabilities, logits.exp() / logits.exp().sum(dim=1, keepdim=True))


def test_mask_classification_map_is_the_sum_over_masks():
    head = SegmentationHead("mask-classification", 3, 6, dim=32)
    masks, classes = torch.randn(2, 6, 4, 5), torch.randn(2, 6, 4)
    scores = head.scores(HeadOutput(masks, classes))
    for b in range(2):
        for k in range(3):
            slow = sum(classes[b, q].softmax(0)[k] * masks[b, q].sigmoid() for q in range(6))
            assert torch.allclose(scores[b, k], slow, atol=1e-6)
    assert torch.allclose(head.probabilities(scores).sum(dim=1), torch.ones(2, 4, 5), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("binary", 3, 0), "head is 'binary' but there are 3 classes"),
        (("per-class", 1, 0), "There are 1 classes; at least two"),
        (("mask-classification", 5, 3), "num_masks is 3 but there are 5 classes"),
        (("softmax", 3, 0), "head is 'softmax'; it must be one of binary, per-class"),
    ],
)
def test_bad_options(arguments, message):
    with pytest.raises(ConfigError, match=message):
        SegmentationHead(*arguments, dim=32)


def test_class_ids_are_the_first_of_the_greatest():
    values = torch.randint(0, 4, (11, 60, 70), generator=torch.Generator().manual_seed(0)) / 4
    assert class_ids(values).dtype == torch.uint8
    assert torch.equal(class_ids(values).long(), values.argmax(dim=0))
    top = values == values.amax(dim=0)
    assert top.sum(dim=0).float().mean() > 2  # ties are common
    assert torch.equal(class_ids(values).long(), top.int().argmax(dim=0))
