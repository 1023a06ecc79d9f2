"""The picture of the README: what the networks of a run make of test images.

python -m benchmarks.pictures runs/demo [--rows "builtin: cat" ...] [--out FILE]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from coa_compress.artifacts import Picture
from coa_compress.stages.files import load_pictures

_OUT = Path(__file__).resolve().parent.parent / "docs" / "figures" / "pictures.jpg"
_ROWS = ("builtin: cat", "builtin: outdoor_3003")
_INCHES = 2.4


def main(given: Sequence[str] | None = None) -> None:
    """Write the picture.

    Args:
        given: What follows the name of the module; None for the arguments of this process.
    """
    parser = argparse.ArgumentParser(prog="benchmarks.pictures", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--rows", nargs="+", default=list(_ROWS), help="titles of its pictures")
    parser.add_argument("--out", type=Path, default=_OUT)
    arguments = parser.parse_args(given)
    folders = sorted(arguments.run.glob("*_measure"))
    if not folders:
        parser.error(f"{arguments.run} holds no finished run: give the folder that --out named")
    found = {picture.title: picture for picture in load_pictures(folders[0])}
    missing = [title for title in arguments.rows if title not in found]
    if missing:
        parser.error(f"{arguments.run} has no {', '.join(missing)}: it has {', '.join(found)}")
    save([found[title] for title in arguments.rows], arguments.out)


def save(pictures: Sequence[Picture], path: Path) -> None:
    """Write rows of images below each other, with the titles of their columns and captions.

    Args:
        pictures: The rows, at least one.
        path: A ``.jpg`` or ``.png`` file.
    """
    # late: matplotlib takes long to import; and without its windows, which need a screen
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max(len(picture.images) for picture in pictures)
    size = (_INCHES * columns, 0.78 * _INCHES * len(pictures))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    every_axes = figure.subplots(len(pictures), columns, squeeze=False)
    for number, (axes_of_row, picture) in enumerate(zip(every_axes, pictures, strict=True)):
        for axes in axes_of_row:
            axes.axis("off")
        for axes, (name, image) in zip(axes_of_row, picture.images.items(), strict=False):
            axes.imshow(image.numpy())
            shown = [name] if number == 0 else []
            shown += [picture.captions[name]] if name in picture.captions else []
            axes.set_title(", ".join(shown), fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
