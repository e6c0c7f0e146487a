import pytest
import torch
from fake_encoder import FakeEncoder


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_encoder() -> type[FakeEncoder]:
    return FakeEncoder
