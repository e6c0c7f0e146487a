import json
import pickle

import numpy as np
import pytest

from convlora.errors import ConfigError, DataError, WeightsError
from convlora.pretraining import shards
from convlora.pretraining.scenes import draw_family, generate_scene
from convlora.pretraining.shards import ShardReader, write_shards
from convlora.pretraining.textures import TextureBank

SIZE = 64
FIELDS = ("image", "instances", "coarse")


def write(folder, count=7, shard_size=3, **options):
    return write_shards(folder, count, shard_size, SIZE, seed=5, photos=False, **options)


def same(first, second):
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))


def test_roundtrip(tmp_path):
    paths = write(tmp_path)
    assert [path.name for path in paths] == ["shard-00000", "shard-00001", "shard-00002"]
    reader, bank = ShardReader(tmp_path), TextureBank(seed=5)
    assert len(reader) == 7
    for index in range(7):
        same(reader[index], generate_scene(np.random.default_rng((5, index)), SIZE, bank))
    same(reader[-1], reader[6])
    assert (reader[0].image != reader[1].image).any()
    assert isinstance(reader[0].image, np.memmap)


@pytest.mark.parametrize("index", [7, -8])
def test_index_outside(tmp_path, index):
    write(tmp_path)
    with pytest.raises(IndexError):
        ShardReader(tmp_path)[index]


def test_workers_do_not_change_the_scenes(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "two", workers=2)
    one, two = ShardReader(tmp_path / "one"), ShardReader(tmp_path / "two")
    assert len(one) == len(two) == 7
    for index in range(7):
        same(one[index], two[index])


def test_resume_writes_only_what_is_missing(tmp_path, monkeypatch):
    write(tmp_path)
    reader = ShardReader(tmp_path)
    before = [pickle.dumps(tuple(np.array(getattr(reader[i], field)) for field in FIELDS)) for i in range(7)]
    (tmp_path / "shard-00001").rename(tmp_path / "gone")
    made, draw = [], shards.generate_scene
    monkeypatch.setattr(shards, "generate_scene", lambda *args: made.append(args) or draw(*args))
    write(tmp_path)
    assert len(made) == 3
    reader = ShardReader(tmp_path)
    after = [pickle.dumps(tuple(np.array(getattr(reader[i], field)) for field in FIELDS)) for i in range(7)]
    assert before == after


def test_larger_count_completes_the_last_shard(tmp_path):
    write(tmp_path)
    last = ShardReader(tmp_path)[6]
    write(tmp_path, count=9)
    reader = ShardReader(tmp_path)
    assert len(reader) == 9
    same(reader[6], last)


def test_interrupted_shard_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "generate_scene", fail)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]
    with pytest.raises(DataError, match="write_shards"):
        ShardReader(tmp_path)


def test_a_damaged_recipe_is_told(tmp_path):
    (tmp_path / "recipe.json").write_text('{"seed": ')
    with pytest.raises(WeightsError, match=r"recipe\.json is damaged: .* make the scenes again"):
        write(tmp_path)


def test_another_recipe_is_refused(tmp_path):
    write(tmp_path)
    assert json.loads((tmp_path / "recipe.json").read_text())["seed"] == 5
    with pytest.raises(ConfigError, match=r"recipe\.json"):
        write_shards(tmp_path, 7, 3, SIZE, seed=6, photos=False)


def test_shards_of_before_had_all_families(tmp_path):
    write(tmp_path)
    file = tmp_path / "recipe.json"
    recipe = json.loads(file.read_text())
    assert recipe.pop("families") == []
    file.write_text(json.dumps(recipe))
    write(tmp_path)  # goes on
    with pytest.raises(ConfigError, match="curves"):
        write(tmp_path, families=["curves"])


def test_chosen_families(tmp_path):
    chosen, bank = ("curves", "leaves"), TextureBank(seed=5)
    write(tmp_path, families=chosen)
    reader, drawn = ShardReader(tmp_path), set()
    for index in range(7):
        rng = np.random.default_rng((5, index))
        family = draw_family(rng, chosen)
        drawn.add(family)
        same(reader[index], generate_scene(rng, SIZE, bank, family))
    assert drawn == set(chosen)
    write(tmp_path, families=chosen)  # the same recipe goes on


def test_families_are_drawn_by_weight():
    rng = np.random.default_rng(0)
    drawn = [draw_family(rng, ("cells", "leaves")) for _ in range(2000)]
    assert drawn.count("cells") / 2000 == pytest.approx(0.22 / 0.28, abs=0.04)  # four deviations


def test_an_unknown_family_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"family: got 'clouds'; choose one of cells, .*leaves"):
        write(tmp_path, families=["cells", "clouds"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["count", "shard_size", "workers"])
def test_numbers_must_be_positive(tmp_path, key):
    with pytest.raises(ConfigError, match=f"{key}: got 0"):
        write(tmp_path, **{key: 0})


def test_reader_is_sent_without_its_arrays(tmp_path):
    write(tmp_path)
    reader = ShardReader(tmp_path)
    scene = reader[0]
    sent = pickle.dumps(reader)
    assert len(sent) < 2000 < scene.image.size
    same(pickle.loads(sent)[0], scene)
