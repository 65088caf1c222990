"""Training from a config: reports, checks before anything is written, baselines and schedules."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from recipe_helpers import ROOT, process_settings_restored, run_script
from recipes import configs, training
from recipes.longtail import long_tail_counts
from recipes.report import Best
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_fair import FairSampling

BY_EPOCH = (
    "{_target_: lightning_fair.schedules.Shift,"
    " progress: {_target_: lightning_fair.schedules.Step, before: 0.0, after: 1.0, at: 1, unit: epoch}}"
)


@pytest.fixture
def config(tmp_path):
    """Compose a short run."""
    configs.register()
    GlobalHydra.instance().clear()
    fast = ["trainer.max_epochs=2", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    with process_settings_restored(), initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda *overrides: compose("train", overrides=[f"output_dir={tmp_path}", *fast, *overrides])


@pytest.mark.slow
@pytest.mark.parametrize("fair", ["balanced", "off", "long_tail"])
def test_script_prints_report(tmp_path, fair):
    """And the command that opens TensorBoard."""
    done = run_script("train.py", tmp_path, f"fair={fair}", "trainer.max_epochs=1", "trainer.accelerator=cpu")
    assert done.returncode == 0, done.stderr
    for text in ("training images", "share of draws", "recall", "balanced accuracy", "plain accuracy"):
        assert text in done.stdout
    assert "largest weight" in done.stdout
    assert "effective sample size" in done.stdout
    assert ("without FairSampling" if fair == "off" else "with FairSampling") in done.stdout
    head, tail = (re.search(rf"{c} +│ +{n} │ +([\d.]+) %", done.stdout)[1] for c, n in ((0, 100), (9, 2)))
    # In one epoch no image is repeated too often, so `long_tail` draws from all classes alike too.
    assert (head, tail) == ("36.2", "0.7") if fair == "off" else 9.0 < float(head) < 11.0
    folder = re.search(r"tensorboard --logdir (\S+)", done.stdout)[1]
    assert not Path(folder).is_absolute()
    assert list((tmp_path / folder).glob("fair=*,trainer.max_epochs=1/events.out.tfevents.*"))
    assert "Epoch 0" in done.stdout + done.stderr  # the progress bar


@pytest.mark.slow
def test_script_names_wrong_key(tmp_path):
    done = run_script("train.py", tmp_path, "fair.alpah=1")
    assert done.returncode != 0
    assert "fair.alpah" in done.stderr


def test_run_is_reported(config, capsys):
    """The smallest run, in the fast tier."""
    cfg = config("logger=none", "trainer.max_epochs=1", "trainer.enable_checkpointing=false", "callbacks=none")
    report = training.train(cfg)
    assert int(report.drawn.sum()) == 9 * 32
    assert report.share_of_draws == pytest.approx([0.1] * 10, abs=0.01)
    training.show(report, cfg)
    assert "with FairSampling, seed 1" in capsys.readouterr().out


@pytest.mark.slow
def test_same_number_of_steps_without_plugin(config):
    with_it, without = (training.train(config(f"fair={fair}", "logger=none")) for fair in ("balanced", "off"))
    assert with_it.images.tolist() == without.images.tolist()
    # 9 batches of 32 each epoch; without the plugin the last is what is left of 276 images.
    assert (int(with_it.drawn.sum()), int(without.drawn.sum())) == (2 * 9 * 32, 2 * 276)
    assert without.largest_weight == 1.0
    assert without.effective_sample_size == 1.0
    assert 0.0 < with_it.effective_sample_size <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["fair.min_prob=0.2"], "min_prob"),
        (["fair.alpha=100"], "alpha"),
        (["fair.target_probs={0: 0.5, 1: -0.1}"], "target_probs"),
        (["fair.num_classes=5"], "num_classes=10"),
        (["fair.class_names=[a,b]"], "class_names must name every class: got 2 names for 10"),
        (["data.batch_size=0"], "batch_size must be an integer of at least 1, got 0"),
        (["data.batch_size=0", "fair=off"], "batch_size must be an integer of at least 1, got 0"),
        (["data.imbalance_ratio=0.5"], "imbalance_ratio"),
        (["data.seed=-1"], "seed must be an integer of at least 0, got -1"),
        (["seed=-1"], "seed must be at least 0, got -1"),
        (["threads=0"], "threads must be at least 1, got 0"),
        (["+foo=1"], "Nothing reads foo, got foo=1"),
        (["+max_epochs=1"], r"Nothing reads max_epochs, .* Set trainer\.max_epochs"),
        (["fair=off", "+fair.alpha=1"], r"Nothing reads fair\.alpha"),
        (["+baseline.alpha=1"], r"Nothing reads baseline\.alpha, .* Set fair\.alpha"),
        (["+callbacks.foo=1"], r"Nothing reads callbacks\.foo"),
        (["+model.optimizer.foo=1"], r"Nothing reads model\.optimizer"),
        (["+trainer.foo=1"], "unexpected keyword argument 'foo'"),
        (
            ["fair=worst_class", "data.val_per_class=5", "data.add_validation=true"],
            r"needs images that are not trained on.*Set data\.add_validation=false",
        ),
        (["baseline=drw", "fair=balanced"], r"A baseline \(DeferredReweighting\) must be used with fair=off"),
        (["baseline=drw", "baseline.loss.beta=1"], "beta must lie in"),
        (["baseline=balanced_softmax", "baseline.loss.tau=-1"], "tau must be finite and at least 0"),
        (["experiment=drift", "baseline=weighted_sampler"], "draws by index, but DriftDataModule is a stream"),
        (
            ["experiment=drift", "model=resnet32"],
            r"1 x 8 x 8 .* model\.net\.in_channels=1 model\.standardize\.channels=1",
        ),
        (["model=mnist"], r"has net\.image_size=28\. Set model\.net\.image_size=8, or"),
        (
            ["model.num_classes=5"],
            r"have 10 classes, .*: model\.num_classes=5, model\.net\.num_classes=5\. Set model\.num_classes=10;",
        ),
        (["model.net.num_classes=5"], r"number: model\.net\.num_classes=5\. .*follows unless it is set"),
        (["experiment=drift", "data=digits"], r"DigitsDataModule has none\. Set data=drift"),
        (["experiment=drift", "fair=deferred"], "A stream has no prior"),
        (["trainer.max_epochs=-1", "fair=deferred"], r"Set max_epochs or max_steps"),
        (
            ["trainer.max_epochs=1", f"fair.target_probs={BY_EPOCH}"],
            r"max_epochs=1 a target .*\(fair\.target_probs\).*=2",
        ),
        (
            ["trainer.max_epochs=1", "baseline=drw"],
            r"a loss that changes in epoch 1 \(baseline\.loss\.begin\) would change",
        ),
        *(
            (
                [f"trainer.strategy={name}", "trainer.devices=2"],
                rf"strategy={name} trains in other proc.*trainer\.strategy=ddp",
            )
            for name in ("ddp_fork", "ddp_spawn", "ddp_notebook_find_unused_parameters_true")
        ),
        (["trainer.limit_test_batches=0"], r"limit_test_batches must be more than 0, .*got 0"),
    ],
)
def test_bad_input_writes_nothing(config, tmp_path, overrides, message):
    """The error names the setting."""
    with pytest.raises(Exception, match=message):
        training.train(config("logger=many", *overrides))
    assert not list(tmp_path.iterdir())  # no logs, no hparams.yaml, no checkpoints


@pytest.mark.slow
def test_overfit_batches_turns_plugin_off(config, capsys):
    cfg = config("logger=none", "trainer.overfit_batches=1")
    with pytest.warns(UserWarning, match="FairSampling is off with overfit_batches"):
        report = training.train(cfg)
    assert int(report.drawn.sum()) == 2 * 32
    assert (report.largest_weight, report.effective_sample_size) == (1.0, 1.0)
    training.show(report, cfg)
    assert "without FairSampling" in capsys.readouterr().out


@pytest.mark.slow
def test_barebones_run_has_report(config):
    bare = ["trainer.barebones=true", "trainer.log_every_n_steps=null", "callbacks=none"]
    with_logs, without = (training.train(config("logger=none", *overrides)) for overrides in ([], bare))
    assert without.accuracy == with_logs.accuracy
    assert without.recall.tolist() == with_logs.recall.tolist()


@pytest.mark.slow
def test_seed_repeats_report(config):
    first, second = (training.train(config("logger=none")) for _ in range(2))
    assert first.drawn.tolist() == second.drawn.tolist()
    assert first.recall.tolist() == second.recall.tolist()


@pytest.mark.slow
def test_run_resumes_from_checkpoint(config, tmp_path):
    training.train(config("logger=none", "callbacks.checkpoint.every_n_epochs=1", "trainer.check_val_every_n_epoch=1"))
    resumed = training.train(
        config("logger=none", "trainer.max_epochs=3", f"ckpt_path={tmp_path}/checkpoints/last.ckpt")
    )
    assert int(resumed.drawn.sum()) == 3 * 9 * 32


# -- baselines and CIFAR-LT ------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path_factory):
    """A file of small color images whose brightness tells the class."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    parts = {}
    for part, each in (("train", 40), ("test", 8)):
        labels = np.repeat(np.arange(10), each)
        parts[f"{part}_labels"] = labels
        parts[f"{part}_images"] = rng.normal(25 * labels[:, None, None, None], 9, (labels.size, 12, 12, 3)).clip(0, 255)
    np.savez(folder / "own.npz", **{key: part.astype(np.uint8) for key, part in parts.items()})
    return str(folder / "own.npz")


@pytest.mark.slow
def test_untested_class_counts_nowhere(config, own, tmp_path, tmp_path_factory, capsys):
    data = dict(np.load(own))
    tested = data["test_labels"] % 3 != 1  # without 1, 4 and 7
    file = tmp_path_factory.mktemp("data") / "own.npz"
    np.savez(file, **{key: part[tested] if "test" in key else part for key, part in data.items()})
    cfg = config(
        *("threads=1", "experiment=arrays", f"data.path={file}", "trainer.limit_train_batches=2"),
        *("model.net.width=2", "logger=many", "callbacks=none", "trainer.enable_checkpointing=false"),
    )
    with pytest.warns(UserWarning, match=r"lack 3 of the 10 classes \(1, 4, 7\)"):
        report = training.train(cfg)
    assert np.flatnonzero(np.isnan(report.recall)).tolist() == [1, 4, 7]
    assert report.balanced_accuracy == pytest.approx(report.recall[[0, 2, 3, 5, 6, 8, 9]].mean())
    # Validation is on the test set: one number, in every log.
    with open(next(tmp_path.rglob("metrics.csv"))) as file:
        logged = list(csv.DictReader(file))
    validated = [float(row["val/balanced_accuracy"]) for row in logged if row["val/balanced_accuracy"]]
    assert validated[-1] == pytest.approx(report.balanced_accuracy)
    assert report.best.accuracy == pytest.approx(max(validated))
    assert float(logged[-1]["test/balanced_accuracy"]) == pytest.approx(report.balanced_accuracy)
    training.show(report, cfg)
    assert "nan" not in capsys.readouterr().out


@pytest.mark.slow
def test_drift_of_two_classes(config):
    small = ["data.cycles=1", "data.turn_size=64", "trainer.max_epochs=1", "trainer.val_check_interval=1.0"]
    report = training.train(
        config("logger=none", "experiment=drift", *small, "data.num_classes=2", "model.num_classes=2")
    )
    assert report.recall.shape == (2,)


@pytest.mark.slow
def test_recovery_is_a_metric_of_drift(config, tmp_path):
    """Runs on a drifting stream can be compared by their recovery: report, HParams and log have the same median."""
    small = ["data.cycles=2", "data.turn_size=640", "trainer.max_epochs=1", "trainer.val_check_interval=1.0"]
    two = ["data.num_classes=2", "model.num_classes=2", "data.imbalance_ratio=99"]
    fair, off = (
        training.train(config("experiment=drift", *small, *two, f"fair={name}", f"output_dir={tmp_path / name}"))
        for name in ("balanced", "off")
    )
    assert fair.recovery <= 15.0
    assert 0.0 < fair.mean_distance < fair.worst_distance < off.mean_distance < off.worst_distance
    assert fair.clipped_mass > off.clipped_mass == 0.0
    assert off.recovery == 20.0  # never: all batches of a turn
    events = EventAccumulator(str(next((tmp_path / "balanced").rglob("events.out.*")).parent))
    events.Reload()
    assert [point.value for point in events.Scalars("drift/recovery_median")] == [fair.recovery]
    assert len(events.Scalars("drift/recovery")) == 4
    (tag,) = (tag for tag in events.Tags()["scalars"] if tag.startswith("Result/") and tag.endswith("_recovery"))
    assert [point.value for point in events.Scalars(tag)] == [fair.recovery]


def cifar(own, *overrides):
    return [
        "threads=1",
        "experiment=cifar10_lt",
        "data=arrays",
        f"data.path={own}",
        "data.imbalance_ratio=40",
        *overrides,
    ]


SMOKE = ["trainer=smoke", "model.net.width=2", "data.batch_size=8"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet32", "mnist", "mlp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_wrong_channels_are_refused(config, own, tmp_path, tmp_path_factory, model, channels):
    """Before anything is written."""
    data = dict(np.load(own))
    if channels == 1:
        data = {key: part[..., 0] if part.ndim == 4 else part for key, part in data.items()}
    file = tmp_path_factory.mktemp("data") / "own.npz"
    np.savez(file, **data)
    settings = ["experiment=digits", "data=arrays", f"data.path={file}", f"model={model}"]
    size = [] if model == "resnet32" else ["model.net.image_size=12"]
    with pytest.raises(
        ValueError, match=rf"^The images are {channels} x 12 x 12 .*Set model\.net\.in_channels={channels}"
    ):
        training.train(config("logger=many", *settings, *size, f"model.net.in_channels={4 - channels}"))
    assert not list(tmp_path.iterdir())
    right = [f"model.net.in_channels={channels}"]
    if model == "resnet32":
        right += [f"model.standardize.channels={channels}", "model.net.width=2"]
    training.train(
        config("logger=none", *settings, *size, *right, "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    )


def test_model_refuses_oblong_images(config, tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "own.npz"
    images, labels = np.zeros((20, 8, 6), np.uint8), np.arange(20) % 10
    np.savez(file, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    with pytest.raises(ValueError, match=r"8 x 6 pixels, but this model is for square ones\. Set model=resnet32"):
        training.train(config("data=arrays", f"data.path={file}"))


@pytest.mark.slow
def test_drift_trains_resnet32(config):
    small = ["data.cycles=1", "data.turn_size=64", "trainer.max_epochs=1", "trainer.val_check_interval=1.0"]
    resnet = ["model=resnet32", "model.net.width=2", "model.net.in_channels=1", "model.standardize.channels=1"]
    report = training.train(config("logger=none", "experiment=drift", *small, *resnet))
    assert int(report.drawn.sum()) == 128


@pytest.mark.slow
def test_smoke_runs_every_phase(config, own, tmp_path):
    watch = "+callbacks.rates={_target_: lightning.pytorch.callbacks.LearningRateMonitor}"
    cfg = config(*cifar(own, *SMOKE), "trainer.max_epochs=10", "logger=csv", "callbacks=none", watch)
    report = training.train(cfg)
    assert int(report.drawn.sum()) == 10 * 2 * 8
    with open(next(tmp_path.rglob("metrics.csv"))) as file:
        rates = [float(row["lr-SGD"]) for row in csv.DictReader(file) if row["lr-SGD"]]
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1, 0.1, 0.001, 0.00001])
    assert report.best.on_test
    assert 1 <= report.best.epoch <= 10
    assert list(report.shots) == ["many", "medium", "few"]


@pytest.mark.slow
def test_cifar_settings_learn(config, own):
    small = ["model.net.width=4", "data.batch_size=16", "model.scheduler.warm_up=1", "trainer.max_epochs=12"]
    report = training.train(config("logger=none", *cifar(own, *small)))
    assert report.images.tolist() == long_tail_counts(10, 40, 40).tolist()
    # Brightness tells the class, but for the crops' black edges; chance is 0.1.
    assert report.balanced_accuracy > 0.3
    assert report.best.accuracy >= report.balanced_accuracy - 1e-6  # the last epoch was validated on the same images


@pytest.mark.slow
@pytest.mark.parametrize("data", ["digits", "cifar"])
@pytest.mark.parametrize("baseline", ["weighted_sampler", "drw", "balanced_softmax", "logit_adjustment"])
def test_baseline_trains(config, own, capsys, baseline, data):
    cfg = config("logger=none", f"baseline={baseline}", *(cifar(own, *SMOKE) if data == "cifar" else ()))
    report = training.train(cfg)
    assert (report.largest_weight, report.recall.shape) == (1.0, (10,))
    training.show(report, cfg)
    assert re.search("with (weighted_sampler|DeferredReweighting|Balanced|Logit)", capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("fair", ["balanced", "deferred", "long_tail", "worst_class", "calibrated"])
def test_fair_choice_trains_cifar(config, own, fair):
    feedback = ["fair.feedback=train"] if fair == "worst_class" else []
    settings = [f"fair={fair}", *feedback, *cifar(own, *SMOKE), "trainer.max_epochs=10"]
    report = training.train(config("logger=none", *settings))
    assert int(report.drawn.sum()) == 10 * 2 * 8
    if fair in ("balanced", "calibrated"):
        assert report.share_of_draws == pytest.approx([0.1] * 10, abs=1.5 / 160)
    if fair == "deferred":
        # 128 draws at the data's mix, then 32 from all classes alike; the feedback keeps both within half a batch.
        assert report.drawn[0] == pytest.approx(128 * report.images[0] / report.images.sum() + 32 / 10, abs=4)


@pytest.mark.slow
def test_validation_on_the_test_set_feeds_nothing_back(config, own, tmp_path):
    """The remedy of the error is that of the test above."""
    cfg = config("logger=many", "fair=worst_class", *cifar(own, *SMOKE))
    with pytest.raises(ValueError, match=r"validation is on the test set.*Set fair\.feedback=train"):
        training.train(cfg)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_validation_moves_the_objective(config):
    """The metric of the preset is one that the classifier logs."""
    fair = []
    original = FairSampling.on_train_end

    def keep(self, trainer, pl_module):
        fair.append(self.controller)
        original(self, trainer, pl_module)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FairSampling, "on_train_end", keep)
        often = ["trainer.max_epochs=4", "trainer.check_val_every_n_epoch=1", "fair.feedback_delay=1"]
        training.train(config("logger=none", "fair=worst_class", *often))
    recall, reference = fair[0].objective.scores, fair[0].reference
    assert np.isfinite(recall).all()
    assert reference[recall.argmin()] > 0.1 > reference[recall.argmax()]


@pytest.mark.slow
def test_baselines_change_nothing_else(config):
    def trained(*overrides):
        return training.train(config("logger=none", "trainer.max_epochs=6", *overrides))

    off = trained("fair=off")
    sampler = trained("baseline=weighted_sampler")
    # 1452 draws: a class's share has the standard deviation sqrt(0.1 * 0.9 / 1452) < 0.008; five of them.
    assert sampler.share_of_draws == pytest.approx([0.1] * 10, abs=0.04)
    for name in ("drw", "balanced_softmax", "logit_adjustment"):
        other = trained(f"baseline={name}")
        assert other.drawn.tolist() == off.drawn.tolist()
        assert other.recall.tolist() != off.recall.tolist()
    for same in (
        ["baseline=drw", "baseline.loss.begin=6"],
        ["baseline=balanced_softmax", "baseline.loss.tau=0"],
        ["baseline=logit_adjustment", "baseline.adjust.tau=0"],
    ):
        assert trained(*same).recall.tolist() == off.recall.tolist()


@pytest.mark.slow
def test_best_epoch_is_in_checkpoint(config, tmp_path):
    often = ["trainer.check_val_every_n_epoch=1", "callbacks.checkpoint.every_n_epochs=1"]
    report = training.train(config("logger=csv", "trainer.max_epochs=5", *often))
    with open(next(tmp_path.rglob("metrics.csv"))) as file:
        rows = [row for row in csv.DictReader(file) if row["val/balanced_accuracy"]]
    accuracies = [float(row["val/balanced_accuracy"]) for row in rows]
    assert len(accuracies) == 5
    assert report.best == Best(accuracies.index(max(accuracies)) + 1, pytest.approx(max(accuracies)), on_test=False)
    # As if the third had been better than any can be: no later epoch is the best one.
    path = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["state_dict"] |= {"best_accuracy": torch.tensor(2.0), "best_epoch": torch.tensor(3)}
    torch.save(checkpoint, path)
    more = ["trainer.max_epochs=6", f"ckpt_path={path}"]
    assert training.train(config("logger=none", *often, *more)).best == Best(3, 2.0, on_test=False)
