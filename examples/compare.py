"""Train with the plugin, without it, and with torch's WeightedRandomSampler, and print the recalls side by side.

python examples/compare.py                                     # digits, 100 to 1
python examples/compare.py experiment=mnist data.root=DIR      # any settings of train.py
python examples/compare.py fair=long_tail fair.max_repeats=16  # of the plugin's choices this one only
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
CHOICES = ("balanced", "long_tail", "worst_class")


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(cfg: DictConfig) -> None:
    given = list(HydraConfig.get().overrides.task)
    shared = [value for value in given if not value.startswith(("fair", "baseline="))]
    of_plugin = [value for value in given if value.startswith("fair.")]
    choices = [value.removeprefix("fair=") for value in given if value.startswith("fair=")] or CHOICES
    methods = {name: [choice, *shared] for name, choice in BASELINES.items()}
    methods |= {name: [f"fair={name}", *shared, *of_plugin] for name in choices}
    reports: dict[str, Report] = {}
    for name, values in methods.items():
        print(f"Training with {values[0]}")
        folder = os.path.join(cfg.output_dir, values[0].replace("=", "_"))
        try:
            reports[name] = training.train(hydra.compose("train", [*values, f"output_dir='{folder}'"]))
        except Exception as error:
            if not reports:
                raise
            print(f"Left out: {sweep.error_text(error)}")
    rich.print(comparison(reports, title=f"Recall in the test, seed {cfg.seed}"))
    print("data mix: mean, weighted by the images")
    if training.tensorboard_dir(cfg):
        print(f"\nCharts: tensorboard --logdir {training.quoted(os.path.relpath(cfg.output_dir))}")


if __name__ == "__main__":
    main()
