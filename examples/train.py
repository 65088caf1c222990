r"""Train a classifier on long-tailed data, with the plugin or without, and print a report.

python examples/train.py                     # digits, 100 to 2 of a class
python examples/train.py fair=off            # the same run without the plugin
python examples/train.py experiment=mnist    # data.root=DIR if DIR/MNIST/raw/ has the files
python examples/train.py experiment=drift    # a stream whose long tail is reversed; also cifar10_lt, cifar100_lt
python examples/train.py experiment=arrays data.path=FILE.npz model.num_classes=7    # your own images
python examples/train.py baseline=drw        # a common method, to compare with
python examples/train.py -m experiment=drift data.cycles=4 data.buffer_size=8 data.max_reuse=16 \
  fair.alpha=2,8,24 fair.max_weight=2,5,50   # a sweep, which ends with a table and a picture
python examples/train.py --help              # the choices; --cfg job shows all settings
"""

import hydra
from omegaconf import DictConfig
from recipes import configs, sweep, training
from recipes.interrupt import Interruption

configs.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    if sweep.in_sweep():
        return sweep.run_in_sweep(training.train, cfg)  # for a search to maximize
    training.show(sweep.train_and_record(lambda cfg: training.train(cfg, Interruption(cfg)), cfg), cfg)
    return None


if __name__ == "__main__":
    main()
