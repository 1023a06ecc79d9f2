"""The command line: it parses, calls and prints, and decides nothing."""

import os
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with 0, 1 (a defect), 2 (a mistake) or 130 (interrupted).

    Args:
        arguments: What follows the program name; None for those of this process.

    Raises:
        SystemExit: Always.
    """
    # several threads, and MKL unless told before it is loaded, may add up in another order each
    # time: a run that was killed could then not end with the same bits
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    from coa_compress.cli.commands import run

    raise SystemExit(run(arguments))
