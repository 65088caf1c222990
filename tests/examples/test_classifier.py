"""The LightningModule of the examples."""

import lightning as L
import pytest
import torch
from recipes.classifier import Classifier, ClassRecall
from recipes.data import DigitsDataModule
from recipes.models import mlp

from lightning_fair import FairSampling


def fit(*callbacks):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Classifier(mlp())
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DigitsDataModule()
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    return model, data, trainer


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_draws_are_counted():
    """With the plugin and without."""
    model, data, trainer = fit()
    assert model.drawn.tolist() == data.train_set.class_counts.tolist()
    assert not any(isinstance(callback, FairSampling) for callback in trainer.callbacks)
    fair = FairSampling(seed=0)
    model, data, _ = fit(fair)
    assert model.drawn.tolist() == fair.sampler.drawn.tolist()
    assert int(model.drawn.sum()) == 8 * 32
    assert int(model.steps) == 8
    assert model.test_recall.shape == (10,)


def test_recall_without_samples_is_nan():
    """Also if the class is predicted."""
    recall = ClassRecall(4)
    for predicted, labels in (([0, 1], [0, 0]), ([2, 3, 3], [2, 2, 2])):
        recall.update(torch.tensor(predicted), torch.tensor(labels))
    torch.testing.assert_close(recall.compute(), torch.tensor([1 / 2, torch.nan, 1 / 3, torch.nan]), equal_nan=True)


def test_recall_of_one_has_an_error():
    """As (k + 1) / (n + 2) has; a class without samples has none."""
    recall = ClassRecall(3)
    recall.update(torch.tensor([0] * 8), torch.tensor([0] * 4 + [1] * 4))
    assert recall.compute()[:2].tolist() == [1.0, 0.0]
    error = (5 / 6 * 1 / 6 / 4) ** 0.5
    torch.testing.assert_close(recall.standard_error(), torch.tensor([error, error, torch.nan]), equal_nan=True)
