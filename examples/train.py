"""Train a classifier on long-tailed data, with the plugin or without, and show what came of it.

python examples/train.py                     # digits, 100 to 1
python examples/train.py fair=off            # the same run without the plugin
python examples/train.py experiment=mnist    # with data.root=DIR where DIR/MNIST/raw/ has the files
python examples/train.py --help              # everything that can be set
"""

import hydra
from omegaconf import DictConfig

from lightning_fair.recipes import configs, run

configs.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(cfg: DictConfig) -> float:
    report = run.train(cfg)
    run.show(report, cfg)
    return report.balanced_accuracy  # what a sweep maximises


if __name__ == "__main__":
    main()
