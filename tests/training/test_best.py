"""Which validation is the best, also where the score that chooses is not defined."""

from types import SimpleNamespace

import pytest

from convlora.training.validation import Validation

NAN = float("nan")


@pytest.fixture
def best_of():
    """The place of the best of several scores, and what was said."""

    def run(metric, *scores):
        said, best, place = [], {}, None
        validation = Validation(
            SimpleNamespace(metric=metric),
            dataset=None,
            segmenter=None,
            accelerator=None,
            reporter=SimpleNamespace(say=said.append),
            command="",
            make_predictor=lambda: None,
        )
        for i, score in enumerate(scores):
            if validation._is_better({metric: score}, best):
                best, place = {metric: score, "step": i}, i
        return place, said

    return run


def test_more_is_better_but_for_errors(best_of):
    assert best_of("mean_iou", 0.2, 0.5, 0.5, 0.4) == (1, [])
    assert best_of("mae", 0.2, 0.5, 0.1, 0.1) == (2, [])


def test_an_undefined_score_beats_nothing_and_is_told_once(best_of):
    place, (said,) = best_of("dice/rare", NAN, NAN, NAN)
    assert place == 0
    assert said.startswith("warning: dice/rare is not defined for the validation images")
    assert "Choose another --set metric=" in said
    assert best_of("dice/rare", NAN, 0.0, NAN, 0.1, NAN)[0] == 3
    assert best_of("dice/rare", 0.3, NAN) == (0, [])
