import math

import numpy as np
import py_sod_metrics as sod
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from convlora.errors import DataError
from convlora.metrics import (
    SaliencyPair,
    balanced_error_rate,
    e_measure,
    mean_absolute_error,
    s_measure,
    saliency_measures,
    weighted_f_measure,
)

# The same float64 formulas; sums in another order differ by about 1e-13.
EXACT = 1e-10


def pair_of(probability, target, **options):
    return SaliencyPair.of(torch.as_tensor(probability), torch.as_tensor(target), **options)


def oracle(pred, gt, **options):
    """PySODMetrics on arrays, one image."""
    scorers = [sod.Smeasure(alpha=0.5), sod.Emeasure(), sod.WeightedFmeasure(beta=1), sod.MAE()]
    for scorer in scorers:
        scorer.step(pred, gt, **options)
    s, e, f, mae = (scorer.get_results() for scorer in scorers)
    return {
        "s_measure": s["sm"],
        "e_measure": e["em"]["curve"].mean(),
        "weighted_f": f["wfm"],
        "mae": mae["mae"],
    }


def without_ber(measures):
    return {key: value for key, value in measures.items() if key != "ber"}


# --- against PySODMetrics ---


def test_grey_pictures_equal_pysodmetrics(mask, levels):
    expected = oracle(levels.numpy(), (mask * 255).to(torch.uint8).numpy())
    got = saliency_measures(levels.double() / 255, mask)
    assert without_ber(got) == pytest.approx(expected, abs=EXACT, nan_ok=False)


def test_continuous_maps_equal_pysodmetrics_without_normalisation(mask):
    probability = (0.2 + 0.4 * mask + 0.3 * torch.rand(mask.shape)).double()
    expected = oracle(probability.numpy(), mask.bool().numpy(), normalize=False)
    got = saliency_measures(probability, mask, normalize=False)
    assert without_ber(got) == pytest.approx(expected, abs=EXACT, nan_ok=False)
    stretched = saliency_measures(probability, mask)
    assert abs(stretched["mae"] - got["mae"]) > 1e-3  # normalisation matters on this map


def test_float32_maps_are_close(disc_mask):
    probability = 0.1 + 0.6 * disc_mask + 0.2 * torch.rand(disc_mask.shape)
    assert probability.dtype == torch.float32
    expected = oracle(probability.double().numpy() * 255, disc_mask.numpy() * 255)
    # p * 255 / 255 is off by 1e-16; a value just on a level may move one of 2,000 pixels by one level
    assert without_ber(saliency_measures(probability, disc_mask)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("beta_squared", [0.3, 1.0, 2.0])
def test_weighted_f_takes_beta_squared(disc_mask, beta_squared):
    probability = (0.7 * disc_mask + 0.3 * torch.rand(disc_mask.shape)).double()
    scorer = sod.WeightedFmeasure(beta=beta_squared)
    scorer.step(probability.numpy(), disc_mask.bool().numpy(), normalize=False)
    pair = pair_of(probability, disc_mask, normalize=False)
    assert weighted_f_measure(pair, beta_squared) == pytest.approx(scorer.get_results()["wfm"], abs=EXACT)
    assert abs(weighted_f_measure(pair, 0.3) - weighted_f_measure(pair)) > 1e-3


def test_s_measure_takes_alpha(disc_mask):
    probability = (0.7 * disc_mask + 0.3 * torch.rand(disc_mask.shape)).double()
    scorer = sod.Smeasure(alpha=0.8)
    scorer.step(probability.numpy(), disc_mask.bool().numpy(), normalize=False)
    pair = pair_of(probability, disc_mask, normalize=False)
    assert s_measure(pair, alpha=0.8) == pytest.approx(scorer.get_results()["sm"], abs=EXACT)
    assert abs(s_measure(pair, alpha=0.8) - s_measure(pair)) > 1e-4


def test_s_measure_with_its_centre_in_the_last_row():
    """PySODMetrics gives NaN; its formula over the regions that have pixels, by hand."""
    truth = np.zeros((4, 6), dtype=bool)
    truth[3, 1:3] = True  # centre (3, 1.5): all rows above, columns 0 to 2 left
    prediction = np.random.default_rng(0).random((4, 6))
    scorer = sod.Smeasure()
    left = scorer.ssim(prediction[:, :3], truth[:, :3])
    right = scorer.ssim(prediction[:, 3:], truth[:, 3:])
    expected = 0.5 * scorer.object(prediction, truth) + 0.5 * (left / 2 + right / 2)
    pair = pair_of(prediction, truth.astype(np.int64), normalize=False)
    assert s_measure(pair) == pytest.approx(expected, abs=EXACT)


def test_e_measure_equals_the_matrix_at_every_threshold(disc_mask):
    """The definition of the paper, pixel by pixel, with the authors' H W - 1."""
    probability = torch.rand(disc_mask.shape, dtype=torch.float64)
    phi_g = disc_mask - disc_mask.double().mean()
    values = []
    for threshold in range(256):
        cut = ((probability * 255).floor() >= threshold).double()
        phi_p = cut - cut.mean()
        aligned = 2 * phi_p * phi_g / (phi_p**2 + phi_g**2)
        values.append(((aligned + 1) ** 2 / 4).sum() / (disc_mask.numel() - 1))
    pair = pair_of(probability, disc_mask, normalize=False)
    assert e_measure(pair) == pytest.approx(float(torch.stack(values).mean()), abs=EXACT)


# --- by hand ---


def test_empty_truth():
    measures = saliency_measures(torch.tensor([[0.0, 0.5], [0.5, 1.0]]), torch.zeros(2, 2).long())
    assert measures["s_measure"] == pytest.approx(0.5)
    # background below 127 / 255: one pixel at t = 0, none at 0; 1 pixel 1..127, 3 pixels 128..255; over 3
    assert measures["e_measure"] == pytest.approx((127 * 1 + 128 * 3) / 256 / 3)
    assert measures["weighted_f"] == 0
    assert measures["mae"] == pytest.approx(0.5)
    assert measures["ber"] == pytest.approx(1 / 4)  # only the true negative rate, 3 / 4


def test_full_truth():
    measures = saliency_measures(torch.tensor([[0.0, 0.5], [0.5, 1.0]]), torch.ones(2, 2).long())
    assert measures["s_measure"] == pytest.approx(0.5)
    assert measures["e_measure"] == pytest.approx((1 * 4 + 127 * 3 + 128 * 1) / 256 / 3)
    assert measures["mae"] == pytest.approx(0.5)
    assert measures["ber"] == pytest.approx(3 / 4)  # only the true positive rate, 1 / 4


def test_perfect_and_worst(disc_mask):
    perfect = saliency_measures(disc_mask.double(), disc_mask)
    worst = saliency_measures(1.0 - disc_mask, disc_mask)
    pixels = disc_mask.numel()
    # threshold 0 takes every pixel: phi_p = 0, a = 0 and (a + 1)^2 / 4 = 1 / 4; the other 255 are perfect
    assert perfect == pytest.approx(
        {
            "s_measure": 1,
            "e_measure": (255 + 0.25) / 256 * pixels / (pixels - 1),
            "weighted_f": 1,
            "mae": 0,
            "ber": 0,
        },
        abs=EXACT,
    )
    assert (worst["mae"], worst["ber"]) == (1, 1)
    assert worst["s_measure"] == 0
    assert max(worst["e_measure"], worst["weighted_f"]) < 0.01


def test_one_pixel():
    for label in (0, 1):
        measures = saliency_measures(torch.full((1, 1), float(label)), torch.full((1, 1), label))
        assert all(0 <= value <= 1 for value in measures.values())  # H W - 1 = 0 is no denominator
        assert (measures["s_measure"], measures["mae"]) == (1, 0)


# --- balanced error rate ---


def test_ber_equals_macro_accuracy_of_torchmetrics(disc_mask):
    probability = 0.4 * disc_mask + 0.6 * torch.rand(disc_mask.shape)
    disc_mask[:, 30:40] = 255
    accuracy = MulticlassAccuracy(num_classes=2, average="macro", ignore_index=255)
    expected = 1 - accuracy((probability > 0.5).long(), disc_mask)
    assert balanced_error_rate(pair_of(probability, disc_mask)) == pytest.approx(float(expected), abs=1e-6)
    assert 0.1 < expected < 0.9


def test_ber_has_a_threshold_on_the_map_as_given():
    target = torch.tensor([[0, 0, 1, 1]])
    probability = torch.tensor([[0.1, 0.2, 0.3, 0.5]])  # stretched, 0.3 would become 0.5 and 0.5 become 1
    assert balanced_error_rate(pair_of(probability, target)) == 0.5  # 0.5 itself is not above
    assert balanced_error_rate(pair_of(probability, target), threshold=0.4) == 0.25
    assert balanced_error_rate(pair_of(probability, target), threshold=0.25) == 0


# --- ignored pixels ---


def test_ignored_pixels_are_dropped_or_background(disc_mask):
    probability = (0.1 + 0.3 * disc_mask + 0.5 * torch.rand(disc_mask.shape)).double()
    target = disc_mask.clone()
    target[10:30, 22:45] = 255
    known = target != 255
    got = saliency_measures(probability, target)

    low, high = probability[known].min(), probability[known].max()
    stretched = torch.where(known, (probability - low) / (high - low), 0.0)
    truth = torch.where(known, target, 0)
    expected = oracle(stretched.numpy(), truth.bool().numpy(), normalize=False)
    expected["mae"] = float((stretched - truth)[known].abs().mean())
    assert without_ber(got) == pytest.approx(expected, abs=EXACT)

    everything = saliency_measures(probability, disc_mask)
    assert all(abs(got[key] - everything[key]) > 1e-4 for key in got)


def test_values_on_ignored_pixels_do_not_matter(disc_mask):
    probability = 0.2 + 0.5 * disc_mask + 0.2 * torch.rand(disc_mask.shape)
    disc_mask[10:30, 22:45] = 255
    other = torch.where(disc_mask == 255, torch.rand(disc_mask.shape), probability)
    other[12, 24], other[13, 24] = 0.0, 1.0  # beyond the range of the labelled pixels
    assert not torch.equal(other, probability)
    assert saliency_measures(other, disc_mask) == saliency_measures(probability, disc_mask)


def test_nothing_labelled_has_no_score():
    measures = saliency_measures(torch.rand(3, 4), torch.full((3, 4), 255))
    assert len(measures) == 5
    assert all(math.isnan(value) for value in measures.values())


# --- input ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(disc_mask, dtype):
    probability = (torch.randint(0, 9, disc_mask.shape) / 8).to(dtype)  # eighths are exact in all types
    expected = saliency_measures(probability.float(), disc_mask)
    assert saliency_measures(probability, disc_mask) == expected


def test_mean_absolute_error_of_a_constant_map_is_not_stretched():
    assert mean_absolute_error(pair_of(torch.full((2, 3), 0.25), torch.zeros(2, 3).long())) == 0.25


def test_inputs_are_not_changed(disc_mask):
    probability, target = torch.rand(disc_mask.shape, dtype=torch.float64), disc_mask.clone()
    before = probability.clone()
    saliency_measures(probability, target)
    assert torch.equal(probability, before)
    assert torch.equal(target, disc_mask)


def test_rounding_just_outside_the_range_is_clipped():
    pair = pair_of(torch.tensor([[-5e-7, 1 + 5e-7]]), torch.tensor([[0, 1]]), normalize=False)
    assert pair.prediction.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("probability", "target", "message"),
    [
        (torch.tensor([[0.0, 3.0]]), torch.zeros(1, 2).long(), r"values from 0 to 3\. Apply the sigmoid"),
        (torch.tensor([[-0.5, 1.0]]), torch.zeros(1, 2).long(), "values from -0.5 to 1"),
        (torch.tensor([[0.0, math.nan]]), torch.zeros(1, 2).long(), "NaN means"),
        (torch.zeros(1, 2), torch.tensor([[0, 2]]), "got the label 2"),
        (torch.zeros(1, 2), torch.zeros(2, 1).long(), r"got \(1, 2\) and \(2, 1\)"),
    ],
)
def test_what_is_refused(probability, target, message):
    with pytest.raises(DataError, match=message):
        saliency_measures(probability, target)
