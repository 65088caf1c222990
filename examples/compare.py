"""Train with the plugin, without it, and with torch's WeightedRandomSampler, and print the recalls side by side.

python examples/compare.py                                      # digits, 100 to 2 of a class, three seeds
python examples/compare.py experiment=mnist data.root=DIR       # any settings of train.py but baseline=...
python examples/compare.py fair=long_tail fair.max_repeats=16   # of the plugin's presets this one only
python examples/compare.py seed=7                               # one seed
python examples/compare.py trainer.enable_progress_bar=true     # for long trainings
"""

import os
import textwrap
from collections.abc import Sequence

import hydra
import rich
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from recipes import configs, sweep, training
from recipes.report import Report, comparison

configs.register()

# A column of the table, and the choice that it stands for.
BASELINES = {"without": "fair=off", "Weighted\nRandom\nSampler": "baseline=weighted_sampler"}
PRESETS = ("balanced", "long_tail", "worst_class")
SEEDS = (1, 2, 3)


@hydra.main(version_base="1.3", config_path="../conf", config_name="compare")
def main(cfg: DictConfig) -> None:
    if sweep.in_sweep():
        raise SystemExit("compare.py cannot be swept with -m: give it one value of each setting, or sweep train.py.")
    given = list(HydraConfig.get().overrides.task)
    methods = choose_methods(given)
    seeds = (cfg.seed,) if any(value.startswith("seed=") for value in given) else SEEDS
    folder = cfg.output_dir
    runs = {name: [_config(values, seed, seeds, folder) for seed in seeds] for name, values in methods.items()}
    failed = check(runs)
    reports: dict[str, list[Report]] = {}
    names = [name for name in runs if name not in failed]
    try:
        for number, name in enumerate(names, 1):
            print(f"Training {number} of {len(names)}: {methods[name][0]}")
            try:
                reports[name] = [_train(run) for run in runs[name]]
            except Exception as error:
                leave_out(name, error, failed, runs)
                print(f"Left out: {sweep.error_text(error)}")
    except (KeyboardInterrupt, SystemExit) as end:  # Lightning turns Ctrl-C into an exit
        print(f"\nInterrupted. Trainings finished: {len(reports)} of {len(names)}.")
        raise SystemExit(1) from end
    finally:
        if reports:
            print()
            rich.print(
                comparison(reports, title=f"Recall of each class in the test, seed {', '.join(map(str, seeds))}")
            )
            print(notes(list(reports), given, len(seeds)))
    if training.tensorboard_dir(runs["without"][0]):
        print(f"\nCharts of seed {seeds[0]}, in a browser at http://localhost:6006:")
        print(f"    tensorboard --logdir {training.quoted(os.path.relpath(folder))}")
        print("Tab Scalars: val/balanced_accuracy. Tab Custom Scalars: the mix of the batches.")


def choose_methods(given: Sequence[str]) -> dict[str, list[str]]:
    """Return the settings of each column of the table; those of the plugin do not reach the other methods.

    Raises:
        SettingsError: If a method is given that has a column anyway, or that has none.
    """
    groups = {value: value.lstrip("+~").partition("=")[0].partition(".")[0] for value in given}
    for value, group in groups.items():
        if group == "baseline" or value == "fair=off":
            raise sweep.SettingsError(
                f"compare.py trains fair=off and baseline=weighted_sampler itself: remove {value}, or use train.py."
            )
    presets = [value.removeprefix("fair=") for value in given if value.startswith("fair=")] or PRESETS
    # Lightning's bars would leave two lines for each run.
    shared = ["trainer.enable_progress_bar=false", *(value for value in given if groups[value] != "fair")]
    methods = {name: [choice, *shared] for name, choice in BASELINES.items()}
    return methods | {name: [f"fair={name}", *shared, *_of_plugin(given)] for name in presets}


def check(runs: dict[str, list[DictConfig]]) -> dict[str, Exception]:
    """Return the errors of the methods that cannot run on the data, and print them, before anything is trained.

    Raises:
        SettingsError: See :func:`leave_out`.
    """
    failed: dict[str, Exception] = {}
    for name, (first, *_) in runs.items():
        try:
            training.prepare(first)
        except Exception as error:
            leave_out(name, error, failed, runs)
    for name, error in failed.items():
        print(f"Left out: {' '.join(name.split())}: {sweep.error_text(error)}")
    return failed


def leave_out(name: str, error: Exception, failed: dict[str, Exception], runs: dict[str, list[DictConfig]]) -> None:
    """Add a method to those that failed.

    Raises:
        SettingsError: If it is the run without the plugin, or the last of the presets, so that nothing is left to
            compare: then a setting that was given is wrong, or the data.
    """
    failed[name] = error
    for needed in (["without"], [other for other in runs if other not in BASELINES]):
        if failed.keys() >= set(needed):
            sweep.raise_error(failed[needed[0]])


def notes(columns: Sequence[str], given: Sequence[str], seeds: int) -> str:
    """Return the explanation of a table's columns and rows."""
    presets, text = [name for name in columns if name not in BASELINES], ""
    if presets:
        preset = presets[0] if len(presets) == 1 else "..."
        settings = "".join(f", {value}" for value in _of_plugin(given))
        text = f'{", ".join(presets)}: with FairSampling(preset="{preset}"){settings}. '
    text += "images: for training. mean, worst: of the classes. data mix: mean, weighted by the images."
    return textwrap.fill(text + " ±: standard deviation over the seeds." * (seeds > 1), 79)


def _of_plugin(given: Sequence[str]) -> list[str]:
    return [value for value in given if value.lstrip("+~").startswith("fair.")]


def _config(values: list[str], seed: int, seeds: tuple[int, ...], output_dir: str) -> DictConfig:
    """Return the settings of a run. The first seed alone is logged, because charts of all of them hide each other."""
    folder = os.path.join(output_dir, f"{values[0].replace('=', '_')}_seed_{seed}")
    unlogged = [] if seed == seeds[0] else ["logger=none"]
    overrides = [*values, *unlogged, f"seed={seed}", f"output_dir='{folder}'"]
    return hydra.compose("train", overrides, return_hydra_config=True)


def _train(cfg: DictConfig) -> Report:
    # The names of the logs and the values in HParams are those of this run, not of the command line.
    HydraConfig.instance().set_config(cfg)
    return training.train(cfg)


if __name__ == "__main__":
    main()
