r"""Print the table of a sweep again and save its picture, from the results in its folder.

python examples/train.py -m experiment=drift data.cycles=4 data.buffer_size=8 data.max_reuse=16 \
  fair.alpha=2,8,24 fair.max_weight=2,5,50                                      # ends with both
python examples/sweep_report.py outputs/sweeps/DATE                            # again
python examples/sweep_report.py outputs/sweeps/DATE --metrics worst_class_recall recovery --out FOLDER
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.report import METRICS
from recipes.sweep import summarize
from recipes.sweep_chart import PANELS


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the sweep")
    parser.add_argument("--out", type=Path, help="folder for sweep.csv, sweep.md and sweep.png (default: the sweep's)")
    parser.add_argument("--metrics", choices=list(METRICS), nargs="+", default=PANELS, help="metrics of the picture")
    args = parser.parse_args(argv)
    try:
        summarize(args.folder, args.out, args.metrics)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
