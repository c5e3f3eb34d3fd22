"""``python -m recipes.cifar counts|prepare|recover``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from recipes.cifar.config import METHODS
from recipes.cifar.counts import markdown
from recipes.cifar.data import load_data
from recipes.cifar.recoveries import CASES, recover_all
from recipes.timit.corpus import CorpusError


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors of use end in one line on stderr and exit status 2."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (CorpusError, ValueError, RuntimeError, FileNotFoundError, FileExistsError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.cifar", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    counts = commands.add_parser("counts", help="parameters of every row beside the paper's accuracies, in Markdown")
    counts.add_argument("--width", type=int, default=64, help="channels of ResNet18's first stage (default: 64)")
    counts.set_defaults(run=_counts)

    prepare = commands.add_parser("prepare", help="build a stand-in for CIFAR-10 in its binary layout")
    prepare.add_argument("data", choices=["photos"])
    prepare.add_argument("--out", type=Path, required=True, help="folder to write")
    prepare.add_argument("--per-class", type=int, default=1000, help="training patches of a picture (default: 1000)")
    prepare.add_argument("--stride", type=int, default=8, help="pixels between patches (default: 8)")
    prepare.add_argument("--seed", type=int, default=0, help="of the choice and order of patches")
    prepare.add_argument("--wheels", type=Path, help="folder of the two wheels (default: download them, 23 MB)")
    prepare.add_argument("--work", type=Path, help="folder of the download (default: OUT-work)")
    prepare.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    prepare.add_argument("--quiet", action="store_true", help="no progress bar")
    prepare.set_defaults(run=_prepare)

    recover = commands.add_parser("recover", help="recover permutations without labels, by several methods; a table")
    recover.add_argument("--data", type=Path, required=True, help="folder of the binary files")
    recover.add_argument("--out", type=Path, required=True, help="folder of the outcomes; finished ones are kept")
    recover.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), help="default: all")
    recover.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="default: all")
    recover.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="N", help="default: 0 to 4")
    recover.add_argument("--images", type=int, default=5000, help="of train that a method sees (default: 5000)")
    recover.add_argument("--threads", type=int, help="CPU threads (default: torch's own)")
    recover.add_argument("--quiet", action="store_true", help="no progress bars")
    recover.set_defaults(run=_recover)
    return parser


def _counts(args: argparse.Namespace) -> None:
    print(markdown(width=args.width))


def _prepare(args: argparse.Namespace) -> None:
    from recipes.cifar.prepare import prepare_photos

    prepare_photos(
        args.out,
        per_class=args.per_class,
        stride=args.stride,
        seed=args.seed,
        wheels=args.wheels,
        work=args.work,
        overwrite=args.overwrite,
        progress=not args.quiet,
    )
    print(load_data(args.out).summary())


def _set_threads(args: argparse.Namespace) -> None:
    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"expected --threads >= 1, got {args.threads}")
        torch.set_num_threads(args.threads)


def _recover(args: argparse.Namespace) -> None:
    _set_threads(args)
    data = load_data(args.data)
    print(data.summary())
    options = {"cases": args.cases, "methods": args.methods, "seeds": args.seeds, "images": args.images}
    print(recover_all(data, args.out, progress=not args.quiet, **options))


if __name__ == "__main__":
    sys.exit(main())
