"""Ctrl-C in `examples/train.py`: the checkpoint, and the command that resumes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from recipe_helpers import ROOT, process_settings_restored, run_script
from recipes import configs, training
from recipes.interrupt import Interruption, resume_command

pytestmark = pytest.mark.usefixtures("sigint_counts")

SHORT = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "logger=none"]


class CtrlC(L.Callback):
    """Presses Ctrl-C in the steps with these numbers, from 1."""

    def __init__(self, *steps):
        self.steps, self.seen = steps, 0

    def on_train_batch_start(self, trainer, *_):
        self.seen += 1
        if self.seen in self.steps:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def interrupt(tmp_path, capsys):
    """Return a function that trains, presses Ctrl-C, and returns what was printed."""
    configs.register()
    GlobalHydra.instance().clear()

    def act(*steps, overrides=()):
        cfg = compose("train", overrides=[f"output_dir={tmp_path}", "trainer.max_epochs=3", *SHORT, *overrides])
        handler = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises(SystemExit):
                training.train(cfg, CtrlC(*steps), Interruption(cfg))
        finally:
            signal.signal(signal.SIGINT, handler)  # Lightning ignores it from then on
        return capsys.readouterr().out

    with process_settings_restored(), initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield act


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


# An epoch has 9 steps. No checkpoint is saved after its last one, nor before a validation.
@pytest.mark.parametrize(("pressed", "saved"), [(3, 3), pytest.param(9, 10, marks=pytest.mark.slow)])
def test_saves_after_the_step(interrupt, tmp_path, pressed, saved):
    assert "interrupted.ckpt" in interrupt(pressed)
    assert step_of(tmp_path / "checkpoints" / "interrupted.ckpt") == saved


@pytest.mark.slow
def test_saves_before_no_validation(interrupt, tmp_path):
    """Nor within a window of accumulated gradients."""
    interrupt(2, overrides=["trainer.val_check_interval=2", "trainer.check_val_every_n_epoch=1"])
    assert step_of(tmp_path / "checkpoints" / "interrupted.ckpt") == 3
    interrupt(3, overrides=["trainer.accumulate_grad_batches=2"])
    assert step_of(tmp_path / "checkpoints" / "interrupted.ckpt") == 2


# No step is the last of a window, none but the last of an epoch, and a validation after each.
@pytest.mark.parametrize(
    ("settings", "saved"),
    [
        (["trainer.limit_train_batches=1"], 2),
        pytest.param(["trainer.accumulate_grad_batches=100"], 2, marks=pytest.mark.slow),
        pytest.param(["trainer.val_check_interval=1", "trainer.check_val_every_n_epoch=1"], 18, marks=pytest.mark.slow),
    ],
)
def test_saves_at_end_of_epoch(interrupt, tmp_path, settings, saved):
    assert "interrupted.ckpt" in interrupt(1, overrides=settings)
    assert step_of(tmp_path / "checkpoints" / "interrupted.ckpt") == saved


@pytest.mark.slow
def test_end_of_epoch_resumes(interrupt, tmp_path):
    """The network is that of the whole run, bit for bit."""
    settings = ["trainer.max_epochs=4", "trainer.accumulate_grad_batches=100", *SHORT]
    interrupt(1, overrides=settings)
    ends = []
    for path in ("null", f"'{tmp_path}/checkpoints/interrupted.ckpt'"):
        folder = tmp_path / str(len(ends))
        training.train(compose("train", overrides=[f"output_dir={folder}", *settings, f"ckpt_path={path}"]))
        ends.append(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    assert all(torch.equal(one, other) for one, other in zip(*(end.values() for end in ends), strict=True))


def interruption():
    trainer = {"fast_dev_run": False, "barebones": False, "enable_checkpointing": None}
    return Interruption(OmegaConf.create({"trainer": trainer, "output_dir": "out", "ckpt_path": None}))


def test_end_before_the_checkpoint_is_told(capsys):
    callback = interruption()
    for callback.is_asked in (False, True):
        callback.on_train_end()
    assert capsys.readouterr().out.count("The training ended before Ctrl-C could interrupt it") == 1


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.default_int_handler])
def test_ignored_ctrl_c_stays_ignored(handler):
    """As in a background run of a shell."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        interruption().setup(L.Trainer(accelerator="cpu", logger=False), None, "fit")
        assert (signal.getsignal(signal.SIGINT) is signal.SIG_IGN) == (handler is signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_second_ctrl_c_ends_at_once(interrupt, tmp_path):
    """With the newest checkpoint; the message names none if there is none."""
    often = [
        "callbacks.checkpoint.every_n_epochs=1",
        "trainer.val_check_interval=1",
        "trainer.check_val_every_n_epoch=1",
    ]
    printed = interrupt(10, 11, overrides=often)
    assert "Interrupted. To resume:" in printed
    assert "checkpoints/last" in printed
    assert not (tmp_path / "checkpoints" / "interrupted.ckpt").exists()


@pytest.mark.parametrize("off", ["trainer.enable_checkpointing=false", "trainer.fast_dev_run=20"])
def test_no_checkpoint_is_told(interrupt, tmp_path, off):
    printed = interrupt(2, overrides=[off, "callbacks=none"])
    assert f"No checkpoint was saved, because of {off}, so this run cannot be resumed." in printed
    assert not list(tmp_path.rglob("*.ckpt"))


def test_command_is_that_of_the_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    typed = ["python", "examples/train.py", "fair.target_probs={0: 0.5}", "fair=off"]
    monkeypatch.setattr(sys, "orig_argv", [*typed, "ckpt_path=a", "+ckpt_path=b", "++ckpt_path=c"])
    command = resume_command(tmp_path / "runs" / "last.ckpt")
    assert shlex.split(command) == [*typed, "ckpt_path=runs/last.ckpt"]
    parser = OverridesParser.create()
    for path in ("it's a=b/x.ckpt", "outputs/ä/x.ckpt", "a,b/(x)"):
        word = shlex.split(resume_command(path))[-1]
        assert parser.parse_override(word).value() == path


@pytest.mark.slow
def test_printed_command_resumes(tmp_path):
    """Ctrl-C at some time, then the printed command: the end is that of the uninterrupted run, bit for bit."""
    settings = [*SHORT, "epochs=40", "callbacks.checkpoint.every_n_epochs=1", "fair=long_tail"]
    assert run_script("train.py", tmp_path, *settings, "hydra.run.dir=whole").returncode == 0
    # A folder whose name the shell and Hydra would both split.
    arguments = [sys.executable, str(ROOT / "examples/train.py"), *settings, "hydra.run.dir='cut =1'"]
    process = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while not list((tmp_path / "cut =1").rglob("*.ckpt")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    command = re.search(r"To resume:\n\n +(.+)\n", printed)[1]
    assert "interrupted.ckpt" in command
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    whole, resumed = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "cut =1"))
    for report in (whole, resumed):
        del report["seconds"], report["overrides"], report["config"]
    assert resumed == whole
    ends = [
        torch.load(max((tmp_path / name).rglob("last*.ckpt"), key=os.path.getmtime)) for name in ("whole", "cut =1")
    ]
    assert all(
        torch.equal(one, other) for one, other in zip(*(end["state_dict"].values() for end in ends), strict=True)
    )
