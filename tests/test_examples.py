"""The example runs as a user runs it, and shows what it promises."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from lightning_fair.recipes import configs, run

ROOT = Path(__file__).parent.parent


def example(folder, *overrides):
    """Run examples/train.py in ``folder``, as a user would."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "train.py"), *overrides],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )


@pytest.mark.parametrize("fair", ["default", "off", "aggressive"])
def test_the_example_prints_its_table_and_the_tensorboard_command(tmp_path, fair):
    done = example(tmp_path, f"fair={fair}", "trainer.max_epochs=1", "trainer.accelerator=cpu")
    assert done.returncode == 0, done.stderr
    for text in ("training images", "share of draws", "recall", "balanced accuracy", "plain accuracy"):
        assert text in done.stdout
    assert "largest weight" in done.stdout
    assert "effective sample size" in done.stdout
    assert ("without FairSampling" if fair == "off" else "with FairSampling") in done.stdout
    head, tail = (re.search(rf"{c} +│ +{n} │ +([\d.]+) %", done.stdout)[1] for c, n in ((0, 100), (9, 1)))
    assert (head, tail) == ("41.3", "0.4") if fair == "off" else 9.0 < float(head) < 11.0
    folder = re.search(r"tensorboard --logdir (\S+)", done.stdout)[1]
    assert not Path(folder).is_absolute()
    assert list((tmp_path / folder).glob("events.out.tfevents.*"))
    assert "Epoch 0" in done.stdout + done.stderr  # the progress bar


def test_a_wrong_key_ends_the_example_and_names_it(tmp_path):
    done = example(tmp_path, "fair.alpah=1")
    assert done.returncode != 0
    assert "fair.alpah" in done.stderr


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Compose a short run; what the run sets in the process is put back."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")  # so that the test's end takes away what seed_everything sets
    logger = logging.getLogger("lightning.pytorch")
    threads, level = torch.get_num_threads(), logger.level
    configs.register()
    GlobalHydra.instance().clear()
    fast = ["trainer.max_epochs=2", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda *overrides: compose("train", overrides=[f"output_dir={tmp_path}", *fast, *overrides])
    torch.set_num_threads(threads)
    logger.setLevel(level)


def test_with_and_without_the_plugin_take_the_same_number_of_steps(config):
    with_it, without = (run.train(config(f"fair={fair}", "logger=none")) for fair in ("default", "off"))
    assert with_it.images.tolist() == without.images.tolist()
    # 8 batches of 32 each epoch; without the plugin the last is what is left of 242 images.
    assert (int(with_it.drawn.sum()), int(without.drawn.sum())) == (2 * 8 * 32, 2 * 242)
    assert without.largest_weight == 1.0
    assert without.effective_sample_size == pytest.approx(242 / 8)
    assert 0.0 < with_it.effective_sample_size <= 32.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["fair.min_prob=0.2"], "min_prob"),
        (["fair.alpha=100"], "alpha"),
        (["fair.target_probs={0: 0.5, 1: -0.1}"], "target_probs"),
        (["fair.num_classes=5"], "num_classes=10"),
        (["fair.class_names=[a,b]"], "class_names must name every class: got 2 names for 10"),
        (["data.batch_size=0"], "batch_size must be at least 1, got 0"),
        (["data.batch_size=0", "fair=off"], "batch_size must be at least 1, got 0"),
        (["data.imbalance_ratio=0.5"], "imbalance_ratio"),
        (["data.seed=-1"], "seed must be at least 0, got -1"),
        (["seed=-1"], "seed must be at least 0, got -1"),
    ],
)
def test_bad_input_is_an_error_that_names_it_and_writes_nothing(config, tmp_path, overrides, message):
    with pytest.raises(Exception, match=message):
        run.train(config("logger=many", *overrides))
    assert not list(tmp_path.iterdir())  # no logs, no hparams.yaml, no checkpoints


def test_overfit_batches_is_reported_as_what_it_is_a_run_without_the_plugin(config, capsys):
    cfg = config("logger=none", "trainer.overfit_batches=1")
    with pytest.warns(UserWarning, match="FairSampling does nothing with overfit_batches"):
        report = run.train(cfg)
    assert int(report.drawn.sum()) == 2 * 32
    assert (report.largest_weight, report.effective_sample_size) == (1.0, 32.0)
    run.show(report, cfg)
    assert "without FairSampling" in capsys.readouterr().out


def test_a_barebones_run_has_its_report_too(config):
    bare = ["trainer.barebones=true", "trainer.log_every_n_steps=null", "callbacks=none"]
    with_logs, without = (run.train(config("logger=none", *overrides)) for overrides in ([], bare))
    assert without.accuracy == with_logs.accuracy
    assert without.recall.tolist() == with_logs.recall.tolist()


def test_the_same_seed_gives_the_same_report(config):
    first, again = (run.train(config("logger=none")) for _ in range(2))
    assert first.drawn.tolist() == again.drawn.tolist()
    assert first.recall.tolist() == again.recall.tolist()


def test_a_run_goes_on_from_its_checkpoint(config, tmp_path):
    run.train(config("logger=none", "callbacks.checkpoint.every_n_epochs=1", "trainer.check_val_every_n_epoch=1"))
    resumed = run.train(config("logger=none", "trainer.max_epochs=3", f"ckpt_path={tmp_path}/checkpoints/last.ckpt"))
    assert int(resumed.drawn.sum()) == 3 * 8 * 32
