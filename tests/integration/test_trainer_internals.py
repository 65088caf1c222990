import pytest
from lightning_helpers import (
    Weighted,
    fit,
    loader,
    moving,
    trainer,
)


def test_validation_loaders_stay():
    """Validation loaders stay the user's own."""
    seen = []

    class Watching(Weighted):
        def validation_step(self, batch, batch_idx):
            seen.extend(batch[2].tolist())

    theirs = loader(shuffle=False)
    fitted = trainer(moving(), val_check_interval=10, num_sanity_val_steps=-1)
    fitted.fit(Watching(), loader(), theirs)
    assert fitted.val_dataloaders is theirs
    assert seen == 3 * list(range(160))  # the sanity check and two runs: in order and complete


def test_other_patches_stay():
    """A patch by another plugin is still there after the fit."""
    seen = []
    fitted = trainer(moving())

    def theirs(data):
        seen.append(data)
        return data

    fitted.strategy.process_dataloader = theirs
    fitted.fit(Weighted(), loader())
    assert seen
    assert vars(fitted.strategy).get("process_dataloader") is theirs


class Looping(Weighted):
    def training_step(self, dataloader_iter):
        batch, *_ = next(dataloader_iter)
        return super().training_step(batch, 0)


def test_dataloader_iter_is_refused():
    """``training_step(dataloader_iter)`` is refused, because it fetches its batch after the weights are set."""
    module = Looping()
    with pytest.raises((TypeError, ValueError), match="dataloader_iter"):
        fit(module, loader(), moving())
    assert module.steps == []
