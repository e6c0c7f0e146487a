"""Steps that overlap do what the loop does: the same calls and results, in order; no thread is left."""

import threading
import weakref

import pytest

from convlora.inference.pipeline import one_by_one, overlapped

LONG = 20  # seconds; nothing waits for it unless the test is to fail


class Steps:
    """Records what was done, and in which thread; `fail` maps (step, item) to what is raised there."""

    def __init__(self, fail=None):
        self.fail = fail or {}
        self.done = {"read": [], "compute": [], "finish": []}
        self.results, self.threads = {}, {}

    def step(self, name, item):
        self.threads.setdefault(name, set()).add(threading.current_thread())
        if (name, item) in self.fail:
            raise self.fail[name, item]
        self.done[name].append(item)

    def read(self, item):
        self.step("read", item)
        return item + 1

    def compute(self, item, data):
        self.step("compute", item)
        return 10 * item + data

    def finish(self, item, result):
        self.step("finish", item)
        self.results[item] = result


def run(way, steps, items):
    before = threading.active_count()
    try:
        way(iter(items), steps.read, steps.compute, steps.finish)
    finally:
        assert threading.active_count() == before


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_same_as_the_loop(count):
    plain, threaded = Steps(), Steps()
    run(one_by_one, plain, range(count))
    run(overlapped, threaded, range(count))
    assert threaded.results == plain.results == {i: 11 * i + 1 for i in range(count)}
    assert threaded.done == plain.done == {key: list(range(count)) for key in ("read", "compute", "finish")}
    if count:
        assert threaded.threads["compute"] == plain.threads["finish"] == {threading.current_thread()}
        assert len(set.union(*threaded.threads.values())) == 3  # one thread for each step


def test_three_neighbours_are_worked_on_at_once():
    """Each step of items 1, 2 and 3 waits for the other two: a loop would never end."""
    together, met = threading.Barrier(3), []

    def meet(name, item, at):
        if item == at:
            together.wait(LONG)
            met.append(name)

    overlapped(
        range(5),
        lambda item: meet("read", item, 3),
        lambda item, _: meet("compute", item, 2),
        lambda item, _: meet("finish", item, 1),
    )
    assert sorted(met) == ["compute", "finish", "read"]


def test_the_first_is_finished_before_the_second_is_computed():
    done = []
    overlapped(
        range(3),
        lambda _: None,
        lambda i, _: done.append(("compute", i)),
        lambda i, _: done.append(("finish", i)),
    )
    assert done[:3] == [("compute", 0), ("finish", 0), ("compute", 1)]


def test_at_most_three_are_held():
    class Thing:
        pass

    alive, most = [], []

    def make(*_):
        thing = Thing()
        alive.append(weakref.ref(thing))
        most.append(sum(ref() is not None for ref in alive))
        return thing

    overlapped(range(30), make, lambda _, data: data, lambda *_: None)
    assert len(alive) == 30
    assert 2 <= max(most) <= 3


FAILURES = {
    "read": ({("read", 3): ValueError("r3")}, "r3", 2),
    "compute": ({("compute", 3): ValueError("c3")}, "c3", 2),
    "finish": ({("finish", 3): ValueError("f3")}, "f3", 2),
    "the earlier of two": ({("finish", 2): ValueError("f2"), ("compute", 3): ValueError("c3")}, "f2", 1),
    "the earlier of three": (
        {("finish", 2): ValueError("f2"), ("compute", 3): ValueError("c3"), ("read", 4): ValueError("r4")},
        "f2",
        1,
    ),
    "first": ({("finish", 0): ValueError("f0")}, "f0", -1),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("way", [one_by_one, overlapped])
def test_an_error_ends_the_work(way, name):
    fail, message, last = FAILURES[name]
    steps = Steps(fail)
    with pytest.raises(ValueError, match=message):
        run(way, steps, range(10))
    assert steps.done["finish"] == list(range(last + 1))
    assert max(steps.done["read"], default=0) <= last + 3  # no item far ahead was begun


def test_ctrl_c_lets_what_has_begun_be_completed():
    """The interrupt comes in the middle of computing 2, while 1 is being finished."""
    steps, interrupted = Steps(), threading.Event()

    def compute(item, data):
        if item == 2:
            interrupted.set()
            raise KeyboardInterrupt
        return steps.compute(item, data)

    def finish(item, result):
        assert item != 1 or interrupted.wait(LONG)
        steps.finish(item, result)

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        overlapped(range(9), steps.read, compute, finish)
    assert threading.active_count() == before
    assert steps.done["finish"] == [0, 1]
