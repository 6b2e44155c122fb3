"""``python stages/train.py``: train cells."""

import argparse
from pathlib import Path

from resnet_cifar import params, settings
from resnet_cifar.cells import DATA, RUNS, SCRATCH, run_files, select
from resnet_cifar.errors import TrainingError, exit_with
from resnet_cifar.files import check_no_link
from resnet_cifar.progress import say
from resnet_cifar.training.session import Session
from resnet_cifar.training.stop import end_with_dvc
from resnet_cifar.training.train import train_cells

EPILOG = f"""\
examples:
  python stages/train.py --cells resnet-3-0 resnet-9-4    ResNet-20 with seed 0 and ResNet-56 with seed 4
  python stages/train.py --cells 'resnet-9-*'             all seeds of ResNet-56 that params.yaml names
  python stages/train.py                                  every cell of params.yaml

A cell is NET-N-SEED: its network has 6N+2 layers. Parameters come from params.yaml. On a GPU many cells train at once.
An interrupted run goes on when the same command is given again, and ends with the same bytes. It needs torch, numpy,
safetensors, PyYAML and pydantic, and no DVC.

`dvc repro` does not know what this trained by hand, and deletes it before it trains the cell itself: give --runs
another folder and record the cells with `resnet-cifar sweep --from FOLDER`.

{settings.explain(*settings.TRAINING)}"""


def main() -> None:
    """Run the command."""
    exit_with(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(
        description="Train cells: runs/<cell>/{weights.safetensors, history.csv, run.json}.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DATA, help="the preprocessed data set")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the finished runs")
    parser.add_argument("--scratch", type=Path, default=SCRATCH, help="folder of the interrupted runs' states")
    parser.add_argument("--cells", nargs="+", default=["*"], metavar="CELL", help="cells or patterns (default: all)")
    args = parser.parse_args()

    # DVC's next run deletes what an orphan of a killed one has trained to its end; from a saved state it goes on.
    if stage := settings.dvc_stage():
        end_with_dvc(stage)
    study = params.load()
    cells = select(args.cells, study.list_cells())
    for cell in cells:
        check_no_link(run_files(args.runs, cell).weights)
    session = Session(study, args.data, args.runs, args.scratch, settings.read(), say)
    session.check_engine(cells)
    failed = train_cells(session, cells)
    if failed:
        raise TrainingError("; ".join(f"{cell}: {reason}" for cell, reason in failed.items()))
