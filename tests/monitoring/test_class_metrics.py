"""Metrics of each class: their names, and the direction that is better."""

import math

import numpy as np
import pytest
import torch

from lightning_fair.monitoring.class_metrics import find_class_values, find_recalls, mode_of

NAMES = ["cat", "dog", "<other>"]


def of_classes(pattern, words=NAMES):
    return {pattern.format(word): torch.tensor(float(c)) for c, word in enumerate(words)}


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("val/recall", "val/recall/{}"),
        ("val/recall", "val/recall_{}"),
        ("val/recall", "val/recall-{}"),
        ("val/recall", "val/recall.{}"),
        ("val_recall", "val_recall: {}"),
        ("val/recall", "val/recall/{}/dataloader_idx_0"),
        ("val/recall*", "val/recall{}"),
        ("val/*_recall", "val/{}_recall"),
        ("*-recall", "{}-recall"),
    ],
)
@pytest.mark.parametrize("words", [NAMES, ["0", "1", "2"]], ids=["names", "numbers"])
def test_names_of_metrics(name, pattern, words):
    """The class follows the name after a separator, or stands for a star, as a name or a number."""
    metrics = {"val/recall": 0.5, "val/recall/macro": 0.5, "loss": 1.0, **of_classes(pattern, words)}
    values = find_class_values(metrics, name, NAMES)
    assert values.values == {0: 0.0, 1: 1.0, 2: 2.0}
    assert values.by_number == (words != NAMES)


def test_classwise_wrapper_names():
    """A ClasswiseWrapper is found under its own names, with labels, prefix or postfix."""
    metrics = pytest.importorskip("torchmetrics")
    recall = metrics.classification.MulticlassRecall(3, average=None)
    for arguments, name in (
        ({}, "multiclassrecall"),
        ({"labels": NAMES}, "multiclassrecall"),
        ({"labels": NAMES, "prefix": "val/recall_"}, "val/recall"),
        ({"labels": NAMES, "postfix": "_recall"}, "*_recall"),
        ({"prefix": "val/", "postfix": "-recall"}, "val/*-recall"),
    ):
        wrapper = metrics.wrappers.ClasswiseWrapper(recall, **arguments)
        computed = wrapper(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 2, 2]))
        assert find_class_values(computed, name, NAMES).values == {0: 1.0, 1: 1.0, 2: 0.0}


def test_other_metrics_are_not_taken():
    """A longer name, a vector and the metric without a class are no values of classes."""
    metrics = {"val/recall": 0.1, "val/recall_top5/cat": 0.2, "val/recall/cats": 0.3, "val/recall/cat": torch.ones(3)}
    assert find_class_values(metrics, "val/recall", NAMES).values == {}
    assert find_class_values({}, "val/recall", NAMES).values == {}


def test_some_classes_are_missing():
    """A class without a metric has no value, and NaN stays NaN."""
    values = find_class_values({"val/recall/dog": 0.5, "val/recall/cat": math.nan}, "val/recall", NAMES).values
    assert sorted(values) == [0, 1]
    assert math.isnan(values[0])


def test_several_loaders():
    """The loader is chosen by its number if several have the metric; the plain name comes first."""
    both = {f"val/recall/{name}/dataloader_idx_{i}": float(i) for i in (0, 1) for name in NAMES}
    with pytest.raises(ValueError, match="Choose val/recall/dataloader_idx_0 or val/recall/dataloader_idx_1"):
        find_class_values(both, "val/recall", NAMES)
    second = find_class_values(both, "val/recall/dataloader_idx_1", NAMES)
    assert (second.values, second.loader) == ({0: 1.0, 1: 1.0, 2: 1.0}, 1)
    assert find_class_values(both | {"val/recall/cat": 0.5}, "val/recall", NAMES).values == {0: 0.5}


def test_names_that_are_numbers():
    """Names that are numbers of other classes are told apart if every class has a value; else it is an error."""
    stars = ["1", "2", "3"]
    assert find_class_values(of_classes("recall_{}", stars), "recall", stars).values == {0: 0.0, 1: 1.0, 2: 2.0}
    assert find_class_values(of_classes("recall_{}", ["0", "1", "2"]), "recall", stars).values == {0: 0, 1: 1, 2: 2}
    some = {"recall_1": 0.1, "recall_2": 0.2}
    with pytest.raises(ValueError, match="names of classes as well as numbers of other classes"):
        find_class_values(some, "recall", stars)
    assert sorted(find_class_values(some | {"recall_3": math.nan}, "recall", stars).values) == [0, 1, 2]
    assert find_class_values(some, "recall", ["one", "two", "three"]).values == {1: 0.1, 2: 0.2}


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        (
            "max",
            "val/recall valRecall multiclassrecall val/*_recall sensitivity specificity accuracy val_acc valacc "
            "precision f1 F1Score multiclassfbetascore AUROC IoU jaccard multiclassjaccardindex dice loss/recall "
            "val/recall/dataloader_idx_1 top5accuracy average_precision",
        ),
        ("min", "val/loss val_loss valLoss losses nll error error_rate ce cross_entropy brier brier_score dice_loss"),
        (
            None,
            "val/score precisely val/classes loose face val/cedar",
        ),
    ],
)
def test_mode(mode, names):
    """The last known word of a name says which direction is better."""
    for name in names.split():
        assert mode_of(name) == mode, name


def test_find_recalls():
    """The recall of each class is found under several names."""
    names = ["cat", "dog"]
    for key in ("test/recall/{}", "multiclassrecall_{}", "val/Recall {}"):
        metrics = {"loss": 1.0, key.format("cat"): torch.tensor(0.25), key.format("dog"): torch.tensor(0.5)}
        assert find_recalls(metrics, names, "val").tolist() == [0.25, 0.5]
    assert find_recalls({"val/recall_0": 0.1, "val/recall_1": 0.2}, names, "val").tolist() == [0.1, 0.2]
    both = {f"{stage}/recall/{name}": share for stage, share in (("train", 0.9), ("val", 0.1)) for name in names}
    assert find_recalls(both, names, "val").tolist() == [0.1, 0.1]
    assert np.isnan(find_recalls({"recall_cat": np.nan, "recall_dog": 0.5}, names, "val")).tolist() == [True, False]
    for metrics in (
        {},
        {"val/recall/cat": 0.1},
        {"val/loss/cat": 0.1, "val/loss/dog": 0.2},
        {"recall": 0.2},
        {f"val/recall/{name}/dataloader_idx_{i}": 0.2 for name in names for i in (0, 1)},
        {"train/recall/cat": 0.1, "train/recall/dog": 0.2},
        {"val/recall_auc/cat": 0.1, "val/recall_auc/dog": 0.2},
        {"val/recall/cat": torch.ones(2), "val/recall/dog": torch.ones(2)},
    ):
        assert find_recalls(metrics, names, "val") is None
    assert find_recalls({"val/recall_at_10": 0.2}, ["10"], "val") is None
