"""Train a classifier on long-tailed data, with the plugin or without, and show what came of it.

python examples/train.py                     # digits, 100 to 1
python examples/train.py fair=off            # the same run without the plugin
python examples/train.py experiment=mnist    # with data.root=DIR where DIR/MNIST/raw/ has the files
python examples/train.py experiment=drift    # a stream whose long tail turns over; also cifar10_lt, cifar100_lt
python examples/train.py experiment=arrays data.path=FILE.npz model.num_classes=7    # your own images
python examples/train.py baseline=drw        # what to compare with
python examples/train.py -m fair.alpha=2,8   # a sweep, that ends with a table and a picture
python examples/train.py --help              # everything that can be set
"""

import hydra
from omegaconf import DictConfig
from recipes import configs, run, sweep

configs.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    report = sweep.recorded(run.train, cfg)
    if report is None:  # failed, and others are to follow
        return None
    if sweep.in_sweep():
        sweep.show_line(report)
    else:
        run.show(report, cfg)
    return sweep.objective(report)  # what a search maximises


if __name__ == "__main__":
    main()
