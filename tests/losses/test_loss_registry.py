from typing import get_args

import pytest
import torch

from convlora import head
from convlora.errors import ConfigError
from convlora.losses import LOSSES, HeadKind, get_loss


def test_head_kinds_are_those_of_the_head():
    assert get_args(HeadKind) == get_args(head.HeadKind)
    assert {loss.head for loss in LOSSES.values()} == set(get_args(HeadKind))


@pytest.mark.parametrize("name", LOSSES)
def test_every_name_is_found(name):
    assert get_loss(name) is get_loss(name, LOSSES[name].head) is LOSSES[name]


def test_only_mask_classification_takes_masks_of_another_size():
    assert {name for name, loss in LOSSES.items() if not loss.resample} == {
        "mask-classification",
        "mask-classification-official",
    }


def test_misspelt_name():
    with pytest.raises(
        ConfigError, match=r"loss is 'structre', which does not exist\. Did you mean 'structure'\?"
    ):
        get_loss("structre")


def test_name_like_no_other_lists_all_of_the_head():
    with pytest.raises(ConfigError, match=r"does not exist\. Valid are: ce-dice\.$"):
        get_loss("qqq", "per-class")


def test_loss_of_another_head():
    with pytest.raises(
        ConfigError, match=r"for head 'binary', but the head is 'per-class'.*one of: ce-dice\.$"
    ):
        get_loss("structure", "per-class")


def test_mask_classification_needs_class_logits():
    with pytest.raises(ConfigError, match="only the head 'mask-classification' gives"):
        get_loss("mask-classification")(torch.zeros(1, 2, 4, 4), None, torch.zeros(1, 4, 4))
