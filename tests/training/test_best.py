"""Which validation is the best, also where the score that chooses is not defined; and when patience ends."""

from types import SimpleNamespace

import pytest

from convlora.config import make_config
from convlora.errors import ConfigError
from convlora.training.fit import fit
from convlora.training.resume import Progress
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


@pytest.fixture
def validations(monkeypatch):
    """Whether each of several validations ends the run, and what was said."""

    def run(progress, patience, *scores):
        said, left, first = [], iter(scores), progress.step
        validation = Validation(
            SimpleNamespace(metric="mean_iou", patience=patience),
            dataset=None,
            segmenter=None,
            accelerator=SimpleNamespace(is_main_process=False),
            reporter=SimpleNamespace(say=said.append, validation=lambda *_: None),
            command="",
            make_predictor=lambda: None,
        )
        monkeypatch.setattr(validation, "_scores", lambda step: {"mean_iou": next(left)})
        stops = []
        for progress.step in range(first + 1, first + 1 + len(scores)):
            stops.append(validation.run(progress))
        return stops, said

    return run


def test_patience_counts_validations_since_the_best(validations):
    progress = Progress()
    stops, said = validations(progress, 2, 0.3, 0.2, 0.5, 0.5, 0.4)
    assert stops == [False, False, False, False, True]  # as good as the best is no gain
    assert said == ["No gain in 2 validations; stopping at step 5."]
    assert (progress.best, progress.validations_without_gain) == ({"step": 3, "mean_iou": 0.5}, 2)
    assert validations(Progress(), None, 0.5, *[0.4] * 30) == ([False] * 31, [])


def test_patience_goes_on_counting_after_a_resume(validations):
    resumed = Progress(step=7, best={"step": 5, "mean_iou": 0.5}, validations_without_gain=2)
    assert validations(resumed, 3, 0.4)[0] == [True]


def test_a_run_whose_patience_has_ended_is_finished(binary_data, small_backbone, tmp_path, capsys):
    values = {"max_steps": 6, "eval_every": 1, "image_size": 64, "previews": 0, "precision": "fp32"}
    places = {"data": binary_data, "out": tmp_path / "run", "backbone": str(small_backbone)}
    config = make_config({**places, **values, "lr": 1e-12, "patience": 1})  # which changes no pixel
    assert fit(config)["step"] == 1
    assert "No gain in 1 validations; stopping at step 2." in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"is finished; there is nothing to resume"):
        fit(config, resume=True)
