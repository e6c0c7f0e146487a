"""Reading ahead: the same items in their order, no more than asked for, and nothing left behind."""

import threading

import pytest

from convlora.training.prefetch import prefetched


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("ahead", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_the_items_in_their_order(count, ahead):
    assert list(prefetched(range(count), ahead)) == list(range(count))
    assert threads() == []


def test_items_are_read_while_the_first_is_at_work():
    """And not more than `ahead` of them."""
    read, third = [], threading.Event()

    def source():
        for number in range(9):
            read.append((number, threading.current_thread().name))
            if number == 2:
                third.set()
            yield number

    items = prefetched(source(), 2)
    assert next(items) == 0
    assert third.wait(10)  # two wait, though nobody has asked for them
    assert [number for number, _ in read] == [0, 1, 2]
    assert all(name.startswith("prefetch") for _, name in read)
    assert next(items) == 1
    items.close()
    assert threads() == []
    assert len(read) <= 4


def test_an_error_is_raised_in_the_place_of_its_item():
    def source():
        yield 0
        yield 1
        raise ValueError("bad file")

    items = prefetched(source())
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="bad file"):
        next(items)
    assert threads() == []
