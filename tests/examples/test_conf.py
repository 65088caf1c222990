"""Every file under conf/ composes, builds what it names, and refuses wrong keys and types."""

import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError
from recipes import configs
from recipes.checks import check_config
from recipes.training import tensorboard_dir

from lightning_fair import FairSampling
from lightning_fair.schedules import Linear

CONF = Path(__file__).parents[2] / "conf"
GROUPS = ("data", "model", "fair", "baseline", "callbacks", "trainer", "logger", "experiment", "hparams_search")
NEEDS = {name: ["data.path=own.npz"] for name in ("data/arrays", "experiment/arrays")}  # required values
FILES = sorted(path for group in GROUPS for path in (CONF / group).glob("*.yaml"))


@pytest.fixture(autouse=True, scope="module")
def _hydra():
    configs.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides):
    return compose("train", overrides=["output_dir=out", *overrides])


def test_every_choice_is_documented():
    readme = (CONF / "README.md").read_text()
    documented, current = {}, ""
    for line in readme.splitlines():
        if line.startswith("| "):
            group, choices = line.split("|")[1:3]
            current = group.strip(" `") or current
            documented.setdefault(current, set()).update(re.findall("`(.*?)`", choices))
    files = {group: {path.stem for path in FILES if path.parent.name == group} for group in GROUPS}
    assert {group: documented[group] for group in GROUPS} == files
    # Each file begins with a comment on its use.
    assert all(path.read_text().removeprefix("# @package _global_\n").startswith("# ") for path in FILES)


def test_help_shows_choices():
    """With what they mean, and not the schemas."""
    text = compose("train", return_hydra_config=True).hydra.help.template
    assert re.search(r"\nfair +balanced +batches with the same number of each class .*\n +deferred +the data", text)
    assert all(path.stem in text for path in FILES)
    assert not re.search(r"schema|small_cnn|\$", text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_file_composes_and_builds(path):
    """The data modules read nothing before ``prepare_data``, so no data are needed."""
    choice = f"{path.parent.name}/{path.stem}"
    cfg = composed(choice.replace("/", "="), "trainer.accelerator=cpu", *NEEDS.get(choice, []))
    OmegaConf.resolve(cfg)
    check_config(cfg)
    parts = [cfg.data, cfg.model, cfg.fair, cfg.trainer, *cfg.callbacks.values(), *cfg.logger.values()]
    for part in filter(None, parts):
        assert type(instantiate(part, _convert_="all")).__name__ == part._target_.split(".")[-1]
    # Completed in the run, by labels, class counts, parameters or an optimizer.
    for part in filter(None, [*cfg.baseline.values(), cfg.model.optimizer, cfg.model.scheduler]):
        assert instantiate(part).func.__name__ == part._target_.split(".")[-1]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("fair.alpah=1", "fair.alpah"),
        ("fair.lambda1=abc", "fair.lambda1"),
        ("data.batch_size=many", "data.batch_size"),
        ("data.ratio=10", "data.ratio"),
        ("model.net.dropuot=0.1", "model.net.dropuot"),
        ("trainer.max_epoch=1", "trainer.max_epoch"),
        ("trainer.max_epochs=1.5", "trainer.max_epochs"),
        ("baseline=drw baseline.loss.bta=1", "baseline.loss.bta"),
        ("experiment=cifar10_lt model.optimizer.lr=1", "model.optimizer.lr"),
        ("fair=off fair.alpha=1", "fair.alpha"),
        ("logger.tensorboard.nmae=x", "logger.tensorboard.nmae"),
        ("callbacks.checkpoint.save_top_k=all", "callbacks.checkpoint.save_top_k"),
        ("seed=abc", "seed"),
        ("sede=1", "sede"),
    ],
)
def test_wrong_key_or_type_is_named(override, named):
    with pytest.raises(ConfigCompositionException, match=named):
        composed(*override.split())


@pytest.mark.parametrize(
    ("override", "match"),
    [("fair=of", r"fair/of'[\s\S]*balanced[\s\S]*long_tail[\s\S]*off"), ("modle=mlp", "modle")],
)
def test_unknown_choice_is_an_error(override, match):
    with pytest.raises(Exception, match=match):
        composed(override)


@pytest.mark.parametrize(
    ("fair", "message"),
    [
        ({"alpha": "fast"}, r"fair\.alpha must be a number or a schedule.*'fast'"),
        ({"alpha": True}, r"fair\.alpha must be"),
        ({"target_probs": 3}, r"fair\.target_probs must be a name, a list"),
        ({"target_probs": ["a", "b"]}, r"fair\.target_probs must be"),
    ],
)
def test_values_without_a_type_are_checked(fair, message):
    with pytest.raises(TypeError, match=message):
        check_config(OmegaConf.create({"fair": fair}))


def test_negative_seed_is_named():
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        check_config(OmegaConf.create({"seed": -1, "fair": None}))


def test_alpha_schedule_and_target_mapping():
    schedule = "{_target_: lightning_fair.schedules.Linear, start: 0.0, end: 8.0, duration: 100}"
    cfg = composed(f"fair.alpha={schedule}", "fair.target_probs={0: 0.5}", "fair.num_classes=10")
    check_config(cfg)
    fair = instantiate(cfg.fair, _convert_="all")
    assert instantiate(cfg.fair.alpha) == Linear(0.0, 8.0, 100)
    assert isinstance(fair, FairSampling)
    assert fair.settings.target_probs == {0: 0.5}
    assert instantiate(composed("fair.target_probs=[0.5,0.5]").fair).settings.target_probs == [0.5, 0.5]


def test_weights_without_a_bound():
    """In a file it is ``.inf``."""
    cfg = composed("fair.max_weight=inf")
    assert cfg.fair.max_weight == OmegaConf.create("x: .inf").x == instantiate(cfg.fair).settings.max_weight


def test_order_of_overrides():
    """An experiment overrides the groups, and the command line overrides both."""
    assert composed().trainer.max_epochs == 10
    cfg = composed("experiment=mnist", "trainer.max_epochs=7")
    assert cfg.data._target_.endswith("MNISTDataModule")
    assert cfg.model.net.image_size == 28
    assert cfg.trainer.max_epochs == 7
    assert composed("model=mlp").model.net._target_.endswith("mlp")


@pytest.mark.parametrize(("name", "classes"), [("cifar10_lt", 10), ("cifar100_lt", 100)])
def test_cifar_has_published_settings(name, classes):
    cfg = composed(f"experiment={name}")
    task = instantiate(cfg.model, _convert_="all")
    ((optimizer,), (scheduler,)) = task.configure_optimizers()
    assert type(optimizer) is torch.optim.SGD
    settings = {key: optimizer.defaults[key] for key in ("lr", "momentum", "weight_decay", "nesterov", "dampening")}
    assert settings == {"lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4, "nesterov": False, "dampening": 0.0}
    rates = []
    for _ in range(cfg.trainer.max_epochs):
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    # LDAM-DRW's adjust_learning_rate, epochs from 1.
    assert rates == pytest.approx(
        [0.02, 0.04, 0.06, 0.08, 0.1, *[0.1] * 155, *[0.1 * 0.01] * 20, *[0.1 * 0.01 * 0.01] * 20]
    )
    assert (cfg.data.batch_size, cfg.data.imbalance_ratio, cfg.data.seed) == (128, 100, None)
    assert task.net(torch.zeros(2, 3, 32, 32)).shape == (2, classes)
    assert (task.num_classes, task.augment.padding, task.augment.flip) == (classes, 4, 0.5)


def test_cifar_with_arrays_and_smoke():
    cfg = composed("experiment=cifar10_lt", "data=arrays", "data.path=own.npz", "trainer=smoke")
    assert (cfg.data.path, cfg.data.imbalance_ratio) == ("own.npz", 100)
    assert (cfg.trainer.max_epochs, cfg.model.scheduler.drops) == (10, [8, 9])
    assert composed("experiment=cifar10_lt", "trainer=cpu").trainer.max_epochs == 200


@pytest.mark.slow
def test_arrays_experiment_equals_cifar():
    """The same network and schedule, on the data as they are."""
    own, lt = (
        composed(f"experiment={name}", "data.path=own.npz", "model.num_classes=7", *data)
        for name, data in (("arrays", []), ("cifar10_lt", ["data=arrays"]))
    )
    assert own.model == lt.model
    assert (own.trainer, own.epochs, own.threads) == (lt.trainer, 200, None)
    assert (own.model.net.num_classes, own.data.imbalance_ratio) == (7, 1)


@pytest.mark.slow
@pytest.mark.parametrize("model", [path.stem for path in (CONF / "model").glob("*.yaml")])
def test_num_classes_reaches_network(model):
    task = instantiate(composed(f"model={model}", "model.num_classes=7").model, _convert_="all")
    assert [m.out_features for m in task.net.modules() if isinstance(m, torch.nn.Linear)][-1] == 7
    assert task.num_classes == 7


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "begin"), [(2, 1), (3, 2), (4, 3), (5, 4), (10, 8), (200, 160)])
def test_schedules_end_in_last_epoch(epochs, begin):
    """The weights of DRW begin at the latest in the last epoch."""
    assert composed(f"trainer.max_epochs={epochs}", "baseline=drw").baseline.loss.begin == begin


def test_epoch_at_needs_max_epochs():
    cfg = composed("experiment=cifar10_lt", "baseline=drw", "trainer.max_epochs=null")
    with pytest.raises(InterpolationResolutionError, match=r"needs trainer\.max_epochs, got None"):
        OmegaConf.resolve(cfg)


@pytest.mark.parametrize("experiment", ["digits", "cifar10_lt"])
def test_baseline_needs_fair_off(experiment):
    cfg = composed(f"experiment={experiment}", "baseline=drw")
    assert not cfg.fair
    assert cfg.baseline.loss.begin == round(0.8 * cfg.trainer.max_epochs)
    check_config(cfg)
    cfg = composed(f"experiment={experiment}", "baseline=drw", "fair=balanced")
    with pytest.raises(ValueError, match=r"\(DeferredReweighting\) must be used with fair=off.*baseline=none"):
        check_config(cfg)


def test_seed_reaches_data():
    assert composed("seed=5").data.seed == 5


def test_run_names():
    """They fit any file system, and end at a whole setting."""
    target = "+fair.target_probs={_target_: x.Shift, start: 'ü'}"
    name = configs.name_of(["data.path=/a b/c.npz", *(f"model.net.a{n}=1" for n in range(40)), target])
    assert re.fullmatch(r"\+fair\.target_probs=[\w.,-]+,data\.path=-a-b-c\.npz(,model\.net\.a\d=1)*,and-more", name)
    assert len(name) <= 100
    assert configs.name_of(["fair.max_weight=1."]) == "fair.max_weight=1"
    assert configs.name_of(["ckpt_path=a", "threads=1", "trainer.enable_progress_bar=false"]) == ""
    assert configs.name_of(["++threads=2", "+ckpt_path=a", "~logger", "logger@x=csv"]) == ""
    assert configs.name_of(["loggerx=1", "+data.rootx=2", "thread=3"]) == "loggerx=1,+data.rootx=2,thread=3"
    assert configs.run_name() == ""


def test_tensorboard_dir(monkeypatch):
    assert tensorboard_dir(composed()) == "out"
    assert tensorboard_dir(composed("logger=many")) == "out"
    assert tensorboard_dir(composed("logger=csv")) is None
    assert tensorboard_dir(composed("logger=none")) is None
    assert tensorboard_dir(composed("trainer.fast_dev_run=true")) is None
