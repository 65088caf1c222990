"""The report of a run."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from recipes.report import METRICS, Best, make_report, mean_std
from rich.console import Console


def printed(*parts):
    console = Console(width=120)
    with console.capture() as text:
        for part in parts:
            console.print(part)
    return text.get()


def report_of(images, recall, best=None):
    K = len(images)
    return make_report([str(c) for c in range(K)], images, [1] * K, recall, 0.5, 1.0, 1.0, best=best)


def test_report_numbers_are_printed():
    report = make_report(["a", "b"], [99, 1], torch.tensor([30, 10]), [1.0, 0.5], 0.75, 2.0, 31.5)
    assert report.share_of_draws.tolist() == [0.75, 0.25]
    assert report.balanced_accuracy == 0.75
    assert report.prior_accuracy == pytest.approx(0.995)
    text = printed(report.table("Title"), report.summary())
    for part in ("Title", "training images", "75.0 %", "0.500", "balanced accuracy", "2.00", "31.5"):
        assert part in text


def test_untested_class_counts_in_no_mean():
    report = make_report("abcd", [300, 200, 50, 5], [1] * 4, [1.0, np.nan, 0.5, np.nan], 0.9, 1.0, 1.0)
    assert report.balanced_accuracy == 0.75
    assert report.prior_accuracy == pytest.approx((300 * 1.0 + 50 * 0.5) / 350)
    assert report.shots == pytest.approx({"many": 1.0, "medium": 0.5, "few": np.nan}, nan_ok=True)
    text = printed(report.table(), report.summary())
    assert "nan" not in text
    assert [line.split("│")[4].strip() for line in text.splitlines() if line.startswith("│")] == [
        *("1.000", "-", "0.500", "-"),
        "0.750",
    ]
    assert "mean of the recalls of the 2 tested classes, after the last epoch" in text
    assert "few-shot             -" in text


def test_names_are_not_markup():
    names = ["[unk]", "[/]", "[red]x[/red]", "[/c]"]
    text = printed(make_report(names, [1] * 4, [1] * 4, [1.0] * 4, 1.0, 1.0, 1.0).table())
    assert [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")] == [*names, "all"]


def test_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"have the same length, got \[1, 2, 1, 1\]"):
        make_report(["a"], [1, 2], [1], [1.0], 1.0, 1.0, 1.0)


def test_shots_end_at_100_and_20():
    shots = report_of([500, 101, 100, 20, 19, 1], [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]).shots
    assert shots == pytest.approx({"many": 0.9, "medium": 0.5, "few": 0.1})


def test_empty_shot_is_a_dash():
    report = report_of([500, 50], [1.0, 0.5])
    assert math.isnan(report.shots["few"])
    text = printed(report.summary())
    for line in (
        "many-shot            1.000  1 class with 101 or more training images",
        "medium-shot          0.500  1 class with 20 to 100 training images",
        "few-shot             -      0 classes with 19 or fewer training images",
    ):
        assert line in text


def test_best_epoch_is_labeled():
    """The result is that of the last epoch."""
    plain, test = (report_of([9, 9], [0.5, 0.7], Best(12, 0.8125, on_test)) for on_test in (False, True))
    for text in (printed(part.summary()) for part in (plain, test)):
        assert "0.600  mean of the recalls, after the last epoch" in text
        assert "best epoch             0.812  balanced accuracy of epoch 12" in text
    assert "on the validation data; not the result" in printed(plain.summary())
    assert "chosen on the test set itself; not the result" in printed(test.summary())
    assert "best epoch" not in printed(report_of([9, 9], [0.5, 0.7]).summary())


def test_metrics_are_nan_without_a_value():
    metrics = report_of([200, 150, 9], [0.9, 0.7, 0.1]).metrics()
    assert list(metrics) == list(METRICS)
    assert (metrics["many_shot_accuracy"], metrics["few_shot_accuracy"]) == (pytest.approx(0.8), 0.1)
    assert {name for name, value in metrics.items() if math.isnan(value)} == {
        "medium_shot_accuracy",
        "val_balanced_accuracy",
        "mean_distance",
        "worst_distance",
        "recovery",
    }


def test_recovery_is_shown_for_streams():
    report = report_of([9, 9], [0.5, 0.7])
    assert "recover" not in printed(report.summary())
    report = replace(report, recovery=12.5, mean_distance=0.01, worst_distance=0.05)
    assert report.metrics()["recovery"] == 12.5
    assert re.search("batches to recover +12.5 ", printed(report.summary()))


def test_mean_std_is_that_of_a_sample():
    assert mean_std([1.0, 3.0], 2) == "2.00 ± 1.41"
    assert mean_std([2.0, 2.0], 1, " %") == "2.0 %"
    assert (mean_std([2.0], 1), mean_std([])) == ("2.0", "")
