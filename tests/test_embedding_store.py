"""Files of embeddings: whole or absent, bounded, and never a reason for a run to end."""

import os
from pathlib import Path

import pytest
import torch

from convlora import embedding_store as module
from convlora.embedding_store import EmbeddingStore, cache_folder, cache_limit, hash_tensor
from convlora.errors import ConfigError

SIZE = 4 * 4 * 8 * 2  # bytes of an embedding
ROOM = SIZE + 300  # with the file's header


def embedding(seed=0):
    return torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.fixture
def told():
    return []


def store(folder, told, limit=10**6):
    return EmbeddingStore(folder, limit, told.append)


def test_what_was_written_comes_back(tmp_path, told):
    first = store(tmp_path / "new", told)
    assert first.read("a") is None
    first.write("a", embedding())
    for other in (first, store(tmp_path / "new", told)):
        for check in (True, False):
            found = other.read("a", check)
            assert found.dtype == torch.bfloat16
            assert torch.equal(found, embedding())
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.safetensors"]
    assert told == []


def test_a_file_is_mapped_not_read(tmp_path, told):
    """On Linux the tensor's memory lies in a mapping of the file."""
    store(tmp_path, told).write("a", embedding())
    found = store(tmp_path, told).read("a")
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("what is mapped is listed in Linux's /proc alone")
    place = found.data_ptr()
    for line in maps.read_text().splitlines():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= place < high:
            assert line.endswith("a.safetensors")
            return
    raise AssertionError("the tensor is in no mapping")


def test_one_bit_is_noticed(tmp_path, told):
    kept = store(tmp_path, told)
    kept.write("a", embedding())
    file = tmp_path / "a.safetensors"
    content = file.read_bytes()
    for place in (len(content) - 1, len(content) - SIZE):
        file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert kept.read("a", check=True) is None
        assert kept.read("a") is not None  # between steps the hash is not looked at again
    for cut in (0, 5, 60, len(content) - 1):
        file.write_bytes(content[:cut])
        assert kept.read("a") is None
        assert kept.read("a", check=True) is None
    kept.write("a", embedding())
    assert file.read_bytes() == content


def test_the_longest_unused_makes_room(tmp_path, told):
    before = store(tmp_path, told)
    for i, name in enumerate("abc"):
        before.write(name, embedding(i))
        os.utime(tmp_path / f"{name}.safetensors", (0, 1000 + i))
    size = (tmp_path / "a.safetensors").stat().st_size
    kept = store(tmp_path, told, limit=3 * size + 10)
    assert kept.read("a", check=True) is not None  # so b is the one that was not used for longest
    kept.write("d", embedding(4))
    assert {file.stem for file in tmp_path.iterdir()} == {"a", "c", "d"}
    assert told == []


def test_what_the_run_uses_is_not_removed(tmp_path, told):
    kept = store(tmp_path, told, limit=2 * ROOM)
    for i, name in enumerate("abcd"):
        kept.write(name, embedding(i))
    assert {file.stem for file in tmp_path.iterdir()} == {"a", "b"}
    assert len(told) == 1
    assert told[0].startswith("warning: no more embeddings are kept: the 1.112e-06 GB that ")
    assert told[0].endswith(
        "Set the environment variable CONVLORA_CACHE_GB to more. The run goes on and computes them anew each "
        "time, to the same result."
    )
    assert torch.equal(kept.read("b"), embedding(1))


def test_a_full_disk_is_told_once_and_leaves_nothing_half(tmp_path, told, monkeypatch):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    kept = store(tmp_path, told)
    monkeypatch.setattr(module, "save_file", full)
    for name in "ab":
        kept.write(name, embedding())
    assert list(tmp_path.iterdir()) == []
    assert len(told) == 1
    assert f"{tmp_path} cannot be written: [Errno 28] No space left on device. Make room, or set" in told[0]
    assert "CONVLORA_CACHE to a folder elsewhere" in told[0]
    assert kept.read("a") is None


def test_a_folder_that_cannot_be_made(tmp_path, told):
    (tmp_path / "file").write_text("")
    kept = store(tmp_path / "file" / "cache", told)
    kept.write("a", embedding())
    assert len(told) == 1


def test_two_writers_of_one_key(tmp_path, told, monkeypatch):
    """The second begins and ends while the first is writing."""
    one, two = store(tmp_path, told), store(tmp_path, told)
    real = module.save_file

    def slow(tensors, path, metadata):
        real(tensors, path, metadata=metadata)
        if not list(tmp_path.glob("a.safetensors")):
            monkeypatch.setattr(module, "save_file", real)
            two.write("a", embedding())
            assert two.read("a", check=True) is not None

    monkeypatch.setattr(module, "save_file", slow)
    one.write("a", embedding())
    assert torch.equal(one.read("a", check=True), embedding())
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    assert told == []


def test_what_other_processes_write_counts(tmp_path, told, monkeypatch):
    """Each knows its own writes only, until it looks again."""
    monkeypatch.setattr(module, "_LOOK_EVERY", 2)
    one, two = store(tmp_path, told, limit=5 * ROOM), store(tmp_path, told, limit=5 * ROOM)
    for i in range(6):
        one.write(f"one{i}", embedding(i))
        two.write(f"two{i}", embedding(i))
    assert len(list(tmp_path.iterdir())) <= 5 + 2 * 2  # not 12: the limit, and what each wrote between looks
    assert one.closed
    assert two.closed
    assert len(told) == 2


def test_leftovers_of_a_kill_are_removed_for_room(tmp_path, told):
    (tmp_path / "a.safetensors.12.part").write_bytes(bytes(600))
    os.utime(tmp_path / "a.safetensors.12.part", (0, 0))
    store(tmp_path, told, limit=700).write("b", embedding())
    assert [file.name for file in tmp_path.iterdir()] == ["b.safetensors"]


def test_where_the_folder_is(monkeypatch, tmp_path):
    monkeypatch.setenv("CONVLORA_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine" / "embeddings"
    monkeypatch.delenv("CONVLORA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "convlora" / "embeddings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "convlora" / "embeddings"


def test_the_limit(monkeypatch):
    monkeypatch.delenv("CONVLORA_CACHE_GB", raising=False)
    assert cache_limit() == 20 * 10**9
    monkeypatch.setenv("CONVLORA_CACHE_GB", "0.5")
    assert cache_limit() == 5 * 10**8
    for wrong in ("much", "-1", "inf", "nan"):
        monkeypatch.setenv("CONVLORA_CACHE_GB", wrong)
        with pytest.raises(ConfigError, match=rf"CACHE_GB is .{wrong}.; it must be a number of giga"):
            cache_limit()


def test_the_hash_tells_content_shape_and_dtype():
    x = torch.zeros(2, 8)
    others = [x.view(8, 2), x.int(), x + 1e-30, x.half()]
    assert len({hash_tensor(y, start) for y in (x, *others) for start in ("", "a")}) == 10
    assert hash_tensor(x.T) == hash_tensor(x.T.contiguous())
