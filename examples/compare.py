"""Train with the plugin, without it, and with torch's WeightedRandomSampler, and print the recalls side by side.

python examples/compare.py                                      # digits, 100 to 2 of a class, three seeds
python examples/compare.py experiment=mnist data.root=DIR       # any settings of train.py
python examples/compare.py fair=long_tail fair.max_repeats=16   # of the plugin's presets this one only
python examples/compare.py seed=7                               # one seed
python examples/compare.py trainer.enable_progress_bar=true     # for long trainings
"""

import os

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
NOTES = """\
balanced, long_tail, worst_class: with FairSampling(preset="...").
images: for training. mean, worst: of the classes. data mix: mean, weighted
by the images. ±: standard deviation over the seeds."""


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(cfg: DictConfig) -> None:
    if sweep.in_sweep():
        raise SystemExit("compare.py cannot be swept with -m: give it one value of each setting, or sweep train.py.")
    given = list(HydraConfig.get().overrides.task)
    shared = [value for value in given if not value.startswith(("fair", "baseline="))]
    of_plugin = [value for value in given if value.startswith("fair.")]
    presets = [value.removeprefix("fair=") for value in given if value.startswith("fair=")] or PRESETS
    seeds = (cfg.seed,) if any(value.startswith("seed=") for value in given) else SEEDS
    shared = ["trainer.enable_progress_bar=false", *shared]  # Lightning's bars would leave two lines for each run
    methods = {name: [choice, *shared] for name, choice in BASELINES.items()}
    methods |= {name: [f"fair={name}", *shared, *of_plugin] for name in presets}
    reports: dict[str, list[Report]] = {}
    for number, (name, values) in enumerate(methods.items(), 1):
        print(f"Training {number} of {len(methods)}: {values[0]}")
        try:
            reports[name] = [training.train(_config(values, seed, seeds, cfg.output_dir)) for seed in seeds]
        except Exception as error:
            if not reports:
                raise
            print(f"Left out: {sweep.error_text(error)}")
    print()
    rich.print(comparison(reports, title=f"Recall of each class in the test, seed {', '.join(map(str, seeds))}"))
    print(NOTES)
    if training.tensorboard_dir(cfg):
        print(f"\nCharts of seed {seeds[0]}, in a browser at http://localhost:6006:")
        print(f"    tensorboard --logdir {training.quoted(os.path.relpath(cfg.output_dir))}")
        print("Tab Scalars: val/balanced_accuracy. Tab Custom Scalars: the mix of the batches.")


def _config(values: list[str], seed: int, seeds: tuple[int, ...], output_dir: str) -> DictConfig:
    """Return the settings of a run. The first seed alone is logged, because charts of all of them hide each other."""
    folder = os.path.join(output_dir, f"{values[0].replace('=', '_')}_seed_{seed}")
    unlogged = [] if seed == seeds[0] else ["logger=none"]
    return hydra.compose("train", [*values, *unlogged, f"seed={seed}", f"output_dir='{folder}'"])


if __name__ == "__main__":
    main()
