"""``python -m recipes.shufflenet counts``."""

from __future__ import annotations

import argparse
import sys

from recipes.shufflenet.counts import PAPER_MIXINGS, count_all, markdown
from recipes.shufflenet.model import CHANNELS, MIXINGS, STAGE2


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors of use end in one line on stderr and exit status 2."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.shufflenet", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    counts = commands.add_parser("counts", help="parameters and multiply-adds beside the paper's, as a Markdown table")
    counts.add_argument("--widths", nargs="+", type=float, default=list(CHANNELS), metavar="WIDTH")
    counts.add_argument(
        "--mixings", nargs="+", default=list(PAPER_MIXINGS), choices=MIXINGS, metavar="NAME",
        help=f"of {', '.join(MIXINGS)} (default: {' '.join(PAPER_MIXINGS)})",
    )  # fmt: skip
    counts.add_argument("--stage2", nargs="+", default=list(STAGE2), choices=STAGE2, help="default: both")
    counts.add_argument("--image-size", type=int, default=224, help="height and width in pixels (default: 224)")
    counts.set_defaults(run=_counts)
    return parser


def _counts(args: argparse.Namespace) -> None:
    if args.image_size < 1:
        raise ValueError(f"expected --image-size >= 1, got {args.image_size}")
    counts = count_all(args.widths, args.mixings, args.stage2, image_size=args.image_size)
    print(markdown(counts, image_size=args.image_size))


if __name__ == "__main__":
    sys.exit(main())
