"""Every file under conf/ composes, has the defaults of what it builds, and refuses wrong keys and types."""

import dataclasses
import inspect
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from hydra.utils import get_object, instantiate
from lightning import Trainer
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import InterpolationResolutionError
from recipes import configs
from recipes.run import check, tensorboard_dir

from lightning_fair import FairSampling
from lightning_fair.schedules import Linear

CONF = Path(__file__).parents[2] / "conf"
GROUPS = ("data", "model", "fair", "baseline", "callbacks", "trainer", "logger", "experiment", "hparams_search")
NEEDS = {name: ["data.path=own.npz"] for name in ("data/arrays", "experiment/arrays")}  # what has no default
FILES = sorted(path for group in GROUPS for path in (CONF / group).glob("*.yaml"))
TARGETS = {name: schema for name, schema in configs.SCHEMAS.items() if hasattr(schema, "_target_")}


@pytest.fixture(autouse=True)
def _hydra():
    configs.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(tmp_path, *overrides):
    return compose("train", overrides=[f"output_dir={tmp_path}", *overrides])


def test_every_group_has_files():
    assert {path.parent.name for path in FILES} == set(GROUPS)
    fair = {path.stem for path in (CONF / "fair").glob("*.yaml")}
    assert fair == {"default", "off", "aggressive", "deferred", "progressive", "hard_classes"}
    experiments = {path.stem for path in (CONF / "experiment").glob("*.yaml")}
    assert experiments == {"digits", "mnist", "cifar10_lt", "cifar100_lt", "arrays", "drift"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_file_composes_and_instantiates(tmp_path, path):
    choice = f"{path.parent.name}/{path.stem}"
    cfg = composed(tmp_path, choice.replace("/", "="), "trainer.accelerator=cpu", *NEEDS.get(choice, []))
    OmegaConf.resolve(cfg)
    check(cfg)
    # The data modules read nothing before prepare_data, so they can be made without the data.
    parts = [cfg.data, cfg.model, cfg.fair, cfg.trainer, *cfg.callbacks.values(), *cfg.logger.values()]
    for part in filter(None, parts):
        assert type(instantiate(part, _convert_="all")).__name__ == part._target_.split(".")[-1]
    # What is completed later: by labels, class counts, parameters or an optimiser.
    for part in filter(None, [*cfg.baseline.values(), cfg.model.optimizer, cfg.model.scheduler]):
        assert instantiate(part).func.__name__ == part._target_.split(".")[-1]


@pytest.mark.parametrize("name", TARGETS)
def test_defaults_equal_those_of_the_signature(name):
    schema = TARGETS[name]
    target = get_object(schema._target_)
    parameters = inspect.signature(target).parameters
    for field in dataclasses.fields(schema):
        if field.name in ("_target_", "_partial_"):
            continue
        assert field.name in parameters, f"{schema._target_} has no argument {field.name}"
        default = field.default if field.default is not dataclasses.MISSING else tuple(field.default_factory())
        expected = parameters[field.name].default
        assert default == (MISSING if expected is inspect.Parameter.empty else expected), field.name


@pytest.mark.parametrize("name", [name for name, schema in TARGETS.items() if "lightning_fair" in schema._target_])
def test_everything_of_ours_that_can_be_set_is_in_the_schema(name):
    schema = TARGETS[name]
    fields = {field.name for field in dataclasses.fields(schema)} - {"_target_", "_partial_"}
    made_in_the_run = {"class_counts", "optimizer", "labels"} if hasattr(schema, "_partial_") else set()
    assert fields == set(inspect.signature(get_object(schema._target_)).parameters) - made_in_the_run


def test_every_trainer_argument_that_takes_a_plain_value_can_be_set():
    fields = {field.name for field in dataclasses.fields(configs.Trainer)} - {"_target_"}
    objects = {"callbacks", "logger", "plugins"}
    newer = {"enable_autolog_hparams", "model_registry"}  # than Lightning 2.4, which must get no argument it lacks
    assert fields == set(inspect.signature(Trainer).parameters) - objects - newer


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
        ("logger.tensorboard.nmae=x", "logger.tensorboard.nmae"),
        ("callbacks.checkpoint.save_top_k=all", "callbacks.checkpoint.save_top_k"),
        ("seed=abc", "seed"),
        ("sede=1", "sede"),
    ],
)
def test_a_wrong_key_or_type_is_an_error_that_names_it(tmp_path, override, named):
    with pytest.raises(ConfigCompositionException, match=named):
        composed(tmp_path, override)


def test_off_has_nothing_to_set(tmp_path):
    with pytest.raises(ConfigCompositionException, match=r"fair\.alpha"):
        composed(tmp_path, "fair=off", "fair.alpha=1")


def test_an_unknown_choice_is_an_error_that_lists_the_choices(tmp_path):
    with pytest.raises(Exception, match=r"fair/of'[\s\S]*aggressive[\s\S]*default[\s\S]*off"):
        composed(tmp_path, "fair=of")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fair.alpha=fast", r"fair\.alpha must be a number or a schedule.*'fast'"),
        ("fair.alpha=true", r"fair\.alpha must be"),
        ("fair.target_probs=3", r"fair\.target_probs must be a name, a list"),
        ("fair.target_probs=[a,b]", r"fair\.target_probs must be"),
    ],
)
def test_values_of_several_types_are_checked_too(tmp_path, override, message):
    with pytest.raises(TypeError, match=message):
        check(composed(tmp_path, override))


def test_a_negative_seed_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        check(composed(tmp_path, "seed=-1"))


def test_alpha_can_be_a_schedule_and_the_target_a_list_or_a_mapping(tmp_path):
    schedule = "{_target_: lightning_fair.schedules.Linear, start: 0.0, end: 8.0, duration: 100}"
    cfg = composed(tmp_path, f"fair.alpha={schedule}", "fair.target_probs={0: 0.5}", "fair.num_classes=10")
    check(cfg)
    fair = instantiate(cfg.fair, _convert_="all")
    assert fair.settings.alpha == Linear(0.0, 8.0, 100)
    assert fair.settings.target_probs == {0: 0.5}
    assert instantiate(composed(tmp_path, "fair.target_probs=[0.5,0.5]").fair).settings.target_probs == [0.5, 0.5]


def test_the_strong_setting_is_stronger_and_stable(tmp_path):
    cfg = composed(tmp_path, "fair=aggressive").fair
    assert cfg.alpha > composed(tmp_path).fair.alpha
    assert cfg.lambda2 > 0
    assert cfg.horizon < 16  # the default for 10 classes
    # With the number of classes known, the callback checks the gain at once.
    assert isinstance(instantiate(cfg, num_classes=10), FairSampling)


def test_experiments_override_groups_and_the_command_line_overrides_both(tmp_path):
    assert composed(tmp_path).trainer.max_epochs == 80
    cfg = composed(tmp_path, "experiment=mnist", "trainer.max_epochs=7")
    assert cfg.data._target_.endswith("MNISTDataModule")
    assert cfg.model.net.image_size == 28
    assert cfg.trainer.max_epochs == 7
    assert composed(tmp_path, "model=mlp").model.net._target_.endswith("mlp")


@pytest.mark.parametrize(("name", "classes"), [("cifar10_lt", 10), ("cifar100_lt", 100)])
def test_cifar_has_the_recipe_of_the_field(tmp_path, name, classes):
    cfg = composed(tmp_path, f"experiment={name}")
    task = instantiate(cfg.model, _convert_="all")
    ((optimizer,), (scheduler,)) = task.configure_optimizers()
    assert type(optimizer) is torch.optim.SGD
    settings = {key: optimizer.defaults[key] for key in ("lr", "momentum", "weight_decay", "nesterov", "dampening")}
    assert settings == {"lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4, "nesterov": False, "dampening": 0.0}
    rates = [0.1 * scheduler.lr_lambdas[0](epoch) for epoch in range(cfg.trainer.max_epochs)]
    # LDAM-DRW's adjust_learning_rate, epochs from 1.
    assert rates == pytest.approx(
        [0.02, 0.04, 0.06, 0.08, 0.1, *[0.1] * 155, *[0.1 * 0.01] * 20, *[0.1 * 0.01 * 0.01] * 20]
    )
    assert (cfg.data.batch_size, cfg.data.imbalance_ratio, cfg.data.seed) == (128, 100, None)
    assert task.net(torch.zeros(2, 3, 32, 32)).shape == (2, classes)
    assert (task.num_classes, task.augment.padding, task.augment.flip) == (classes, 4, 0.5)


def test_arrays_and_the_smoke_trainer_go_with_the_cifar_experiment(tmp_path):
    cfg = composed(tmp_path, "experiment=cifar10_lt", "data=arrays", "data.path=own.npz", "trainer=smoke")
    assert (cfg.data.path, cfg.data.imbalance_ratio) == ("own.npz", 100)
    assert (cfg.trainer.max_epochs, cfg.model.scheduler.drops) == (10, [8, 9])
    assert composed(tmp_path, "experiment=cifar10_lt", "trainer=cpu").trainer.max_epochs == 200


def test_own_images_have_an_experiment_with_the_cifar_recipe_on_the_data_as_they_are(tmp_path):
    own, lt = (
        composed(tmp_path, f"experiment={name}", "data.path=own.npz", "model.num_classes=7", *data)
        for name, data in (("arrays", []), ("cifar10_lt", ["data=arrays"]))
    )
    assert own.model == lt.model
    assert (own.trainer, own.epochs, own.threads) == (lt.trainer, 200, None)
    assert (own.model.net.num_classes, own.data.imbalance_ratio) == (7, 1)


@pytest.mark.parametrize("model", [path.stem for path in (CONF / "model").glob("*.yaml")])
def test_one_number_of_classes_reaches_the_network(tmp_path, model):
    task = instantiate(composed(tmp_path, f"model={model}", "model.num_classes=7").model, _convert_="all")
    assert [m.out_features for m in task.net.modules() if isinstance(m, torch.nn.Linear)][-1] == 7
    assert task.num_classes == 7


@pytest.mark.parametrize(("epochs", "begin"), [(2, 1), (3, 2), (4, 3), (5, 4), (10, 8), (200, 160)])
def test_what_is_deferred_begins_in_the_last_epoch_at_the_latest_and_what_moves_has_arrived_there(
    tmp_path, epochs, begin
):
    def progress(choice):
        cfg = composed(tmp_path, f"trainer.max_epochs={epochs}", choice)
        return instantiate(cfg.fair, _convert_="all").settings.target_probs.progress

    deferred, progressive = progress("fair=deferred"), progress("fair=progressive")
    assert [deferred(0, epoch) for epoch in (0, begin - 1, begin, epochs - 1)] == [0.0, 0.0, 1.0, 1.0]
    assert [progressive(0, epoch) for epoch in (0, epochs - 1)] == [0.0, 1.0]
    assert progressive(0, epochs - 2) < 1.0
    assert composed(tmp_path, f"trainer.max_epochs={epochs}", "baseline=drw").baseline.loss.begin == begin


def test_a_share_of_the_training_needs_a_limit_of_epochs(tmp_path):
    cfg = composed(tmp_path, "experiment=cifar10_lt", "baseline=drw", "trainer.max_epochs=null")
    with pytest.raises(InterpolationResolutionError, match=r"needs trainer\.max_epochs, got None"):
        OmegaConf.resolve(cfg)


@pytest.mark.parametrize("experiment", ["digits", "mnist", "cifar10_lt"])
def test_a_baseline_turns_the_plugin_off_and_is_refused_beside_it(tmp_path, experiment):
    cfg = composed(tmp_path, f"experiment={experiment}", "baseline=drw")
    assert not cfg.fair
    assert cfg.baseline.loss.begin == round(0.8 * cfg.trainer.max_epochs)
    check(cfg)
    cfg = composed(tmp_path, f"experiment={experiment}", "baseline=drw", "fair=default")
    with pytest.raises(ValueError, match=r"\(DeferredReweighting\) goes with fair=off.*baseline=none"):
        check(cfg)


def test_hard_classes_feeds_losses_back_and_is_stable(tmp_path):
    cfg = composed(tmp_path, "fair=hard_classes").fair
    assert cfg.lambda2 > 0
    for num_classes in (2, 10, 100, 1000):
        assert isinstance(instantiate(cfg, num_classes=num_classes), FairSampling)


def test_one_seed_reaches_the_data(tmp_path):
    assert composed(tmp_path, "seed=5").data.seed == 5


def test_tensorboard_folder_is_told_only_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tensorboard_dir(composed(tmp_path)) == "tensorboard"
    assert tensorboard_dir(composed(tmp_path, "logger=many")) == "tensorboard"
    assert tensorboard_dir(composed(tmp_path, "logger=csv")) is None
    assert tensorboard_dir(composed(tmp_path, "logger=none")) is None
    assert tensorboard_dir(composed(tmp_path, "trainer.fast_dev_run=true")) is None
