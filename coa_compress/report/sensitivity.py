"""Sensitivity curves as a picture."""

from pathlib import Path
from typing import Any

from coa_compress.artifacts import Curves
from coa_compress.errors import DataError

FORMATS = (".svg", ".png")
"""What a picture may be."""
_LEAST_LOSS = 1e-6
_DASHES = ("-", "--", ":", "-.")


def check_picture_path(path: Path) -> None:
    """Check that a picture can be written there, before work is done for it.

    Raises:
        DataError: If the ending is unknown or there is no such folder.

    >>> check_picture_path(Path("curves.gif"))
    Traceback (most recent call last):
    coa_compress.errors.DataError: cannot draw curves.gif: the name must end in .svg or .png
    """
    if path.suffix.lower() not in FORMATS:
        message = f"cannot draw {path}: the name must end in {' or '.join(FORMATS)}"
        raise DataError(message)
    if not path.absolute().parent.is_dir():
        message = f"cannot draw {path}: there is no folder {path.parent}"
        raise DataError(message)


def draw_curves(curves: Curves, path: Path, *, title: str) -> None:
    """Write a picture with a line for each group: part of the channels kept against the loss.

    Args:
        curves: Measured curves by group name.
        path: An ``.svg`` or ``.png`` file.
        title: What stands above it.

    Raises:
        DataError: If the file cannot be written.
    """
    check_picture_path(path)
    # late: matplotlib takes long to import; and without its windows, which need a screen
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, curve) in enumerate(curves.items()):
        parts = [width / curve.widths[-1] for width in curve.widths]
        losses = [max(loss, _LEAST_LOSS) for loss in curve.losses]
        dashes = _DASHES[number // 10 % len(_DASHES)]
        axes.plot(parts, losses, dashes, marker=".", color=f"C{number % 10}", label=name)
    axes.set(yscale="log", xlabel="part of the channels kept", title=title)
    axes.set_ylabel("change of the output, relative to its variance")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="x-small", ncols=1 + len(curves) // 30)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    try:
        # no date: the same curves make the same file
        date = {"Date": None} if path.suffix.lower() == ".svg" else None
        figure.savefig(path, dpi=150, metadata=date)
    except OSError as error:
        message = f"cannot draw {path}: {error.strerror or error}: check the path and its rights"
        raise DataError(message) from None
