"""The points of the reliability diagram, against the definitions, and the picture against their numbers."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from hf_ft_plugins.techniques.task import calibration, pictures
from hf_ft_plugins.techniques.task.reliability_points import FEWEST_IN_BIN, points, wilson


def calibrated(size, seed=0):
    """Predictions that are as right as they are sure, most of them very sure."""
    random = np.random.default_rng(seed)
    sure = 0.5 + 0.5 * random.beta(5, 1, size)
    return sure, (random.random(size) < sure).astype(float)


@pytest.mark.parametrize("size", [1, 20, 39, 41, 95, 101, 1001])
def test_no_point_stands_for_few_predictions_and_every_prediction_is_in_one(size):
    sure, right = calibrated(size)
    found = points(sure, right)
    assert found.count.sum() == size
    assert found.count.min() >= min(size, FEWEST_IN_BIN)
    assert len(found.count) == {1: 1, 20: 1, 39: 1, 41: 2, 95: 4, 101: 5, 1001: 10}[size]
    assert (found.sure * found.count).sum() == pytest.approx(sure.sum())
    assert (found.right * found.count).sum() == pytest.approx(right.sum())
    assert np.all(np.diff(found.sure) > 0)


def test_equal_probabilities_are_one_point():
    found = points(np.repeat([0.5, 0.9, 0.7], [50, 30, 21]), np.zeros(101))
    assert found.sure == pytest.approx([0.5, 0.7, 0.9])
    assert found.count.tolist() == [50, 21, 30]
    assert points(np.full(100, 0.8), np.zeros(100)).count.tolist() == [100]


def test_the_intervals_are_wilsons():
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    low, high = wilson(np.array([81 / 263, 15 / 148, 0 / 20, 1 / 29]), np.array([263, 148, 20, 29]))
    assert low == pytest.approx([0.2553, 0.0624, 0.0, 0.0061], abs=5e-5)
    assert high == pytest.approx([0.3662, 0.1605, 0.1611, 0.1718], abs=5e-5)


def test_what_is_calibrated_lies_within_its_bars_where_bins_of_equal_width_look_wrong():
    outside, gaps = [], []
    for seed in range(100):
        sure, right = calibrated(150, seed)
        found = points(sure, right)
        outside += ((found.sure < found.low) | (found.sure > found.high)).tolist()
        logits = np.stack([np.log(sure), np.log1p(-sure)], axis=1)
        table = calibration.reliability("single_label", logits, 1 - right.astype(int))
        gaps.append(np.nanmax(np.abs(table["sure"] - table["right"])))
    assert np.mean(outside) < 0.08
    assert np.median(gaps) > 0.2


def test_a_model_that_is_certain_of_everything_is_drawn(tmp_path):
    certain = np.ones(50), np.ones(50)
    found = calibration.Calibration(1.0, 1.0, None, "evaluation", None, None, 0.0, 0.0, 0.0, 0.0, 50)
    pictures.reliability([certain, certain], found, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_the_picture_has_a_bar_for_each_point_and_all_predictions_below(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "_save", lambda figure, file: drawn.append(figure))
    judged = [calibrated(300), calibrated(300, seed=1)]
    found = calibration.Calibration(1.5, 1.5, None, "evaluation", None, None, 0.5, 0.4, 0.1, 0.05, 300)
    pictures.reliability(judged, found, tmp_path / "x.png")
    assert isinstance(drawn[0], Figure)
    upper, lower = drawn[0].axes
    for (sure, right), container in zip(judged, upper.containers, strict=True):
        expected = points(sure, right)
        line, _, (bars,) = container.lines
        assert line.get_xdata() == pytest.approx(expected.sure)
        ends = np.array([path.vertices[:, 1] for path in bars.get_paths()])
        assert ends == pytest.approx(np.stack([expected.low, expected.high], axis=1))
    assert [sum(bar.get_height() for bar in container) for container in lower.containers] == [300, 300]
    assert "30 predictions" in drawn[0].legends[0].get_title().get_text()
