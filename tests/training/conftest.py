"""What the tests of runs that were cut off share."""

from contextlib import contextmanager

import pytest

from convlora.training import fit as fit_module


class _CutOffError(Exception):
    pass


@pytest.fixture
def cut_off(monkeypatch):
    """`with cut_off(step):` a run in it ends right after that step, and must."""

    @contextmanager
    def after(step):
        real = fit_module._Run._after_step

        def cut(self, done):
            real(self, done)
            if done == step:
                raise _CutOffError

        with monkeypatch.context() as patch:
            patch.setattr(fit_module._Run, "_after_step", cut)
            with pytest.raises(_CutOffError):
                yield

    return after
