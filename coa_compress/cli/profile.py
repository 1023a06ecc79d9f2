"""``coa-compress profile``: what a network costs, and the table for a latency budget."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from coa_compress.cli.arguments import Device, Model, Weights
from coa_compress.cli.profile_tables import profile_text
from coa_compress.cli.progress import Screen
from coa_compress.cli.session import session, staged
from coa_compress.errors import SettingError


def profile(  # noqa: PLR0913 - one parameter an option
    source: Model,
    *,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="HxW", help="Height and width of the input; repeatable."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Images in the input, else 1; repeatable.")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, help="Channels of the input; else as the model has.")
    ] = None,
    weights: Weights = None,
    device: Device = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads inside an operation.")
    ] = None,
    dtype: Annotated[
        Literal["fp32", "tf32", "fp16", "bf16"], typer.Option(help="Number format.")
    ] = "fp32",
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Lay images out with the channels last.")
    ] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Run by torch.compile.")] = False,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph", help="Replay one pass as a CUDA graph.")
    ] = False,
    engine: Annotated[
        Literal["torch", "onnxruntime"],
        typer.Option(help="onnxruntime times the exported network in turns with torch."),
    ] = "torch",
    rounds: Annotated[int, typer.Option(min=1, help="Timed passes.")] = 20,
    cross_check: Annotated[
        bool,
        typer.Option("--cross-check", help="MACs by fvcore and thop too, and why they differ."),
    ] = False,
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the latency table for budgets: a minute or more."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Show what a model costs: parameters, MACs, activations, memory, file size, latency, layers.

    Each --batch is measured at each --size; what does not fit into memory is noted in its row.
    """
    with session(interrupted="nothing was changed") as screen, _threads(threads):
        from coa_compress.profiling.cross_check import cross_check as check_macs
        from coa_compress.profiling.execution import Execution
        from coa_compress.profiling.profile import Sweep, profile_network
        from coa_compress.provenance import device_title, usable_device
        from coa_compress.sources import open_source, parse_size

        execution = Execution(
            dtype=dtype, channels_last=channels_last, compiled=compiled, cuda_graph=cuda_graph
        )
        sizes = [parse_size(text) for text in size or []]
        place = usable_device(device)
        _check(execution, place, engine=engine, table=table, n_rows=len(sizes) * len(batch or [1]))
        opened = open_source(source, size=sizes[0] if sizes else None, weights=weights)
        sweep = Sweep(
            shapes=_shapes(opened.example.shape, sizes, batch or [1], channels),
            device=device_title(place),
            execution=execution,
            rounds=rounds,
        )
        example = _input(sweep.shapes[0], opened.example)
        checked = None
        if cross_check:
            checked = staged(screen, "cross-check", lambda: check_macs(opened.model, example))
        with _other_engine(engine, opened.model) as other:
            model, given = _placed(opened.model, place), example.to(place)
            measured = staged(
                screen,
                "profile",
                lambda: profile_network(
                    model, given, sweep, engine=other, progress=screen.on_progress
                ),
            )
        if table is not None:
            staged(screen, "table", lambda: _write_table(model, given, table, screen))
    if as_json:
        typer.echo(json.dumps(profile_document(source, measured, checked), allow_nan=False))
    else:
        typer.echo(profile_text(measured, checked))
        if table is not None:
            typer.echo(f"latency table: {table}")


def profile_document(source: str, measured: Any, checked: Any) -> dict[str, Any]:
    """Return what ``--json`` prints; docs/speed.md lists the fields.

    Args:
        source: How the network was named.
        measured: What ``profile_network`` returned.
        checked: What ``cross_check`` returned, or None.
    """
    return {
        "model": source,
        **asdict(measured),
        "cross_check": None if checked is None else asdict(checked),
    }


def _check(execution: Any, place: str, *, engine: str, table: Path | None, n_rows: int) -> None:
    import torch

    from coa_compress.profiling.execution import Execution
    from coa_compress.profiling.onnx_runtime import check_onnx_runtime

    execution.check(torch.device(place))
    if table is not None and (execution != Execution() or n_rows > 1):
        message = (
            "a latency table is of one size and plain fp32: give --table one --size and no "
            "--dtype, --channels-last, --compile, --cuda-graph or second --batch"
        )
        raise SettingError(message)
    if engine == "onnxruntime":
        if execution.dtype != "fp32":
            message = f"onnxruntime runs the exported fp32 network: leave --dtype {execution.dtype}"
            message += " out, or --engine onnxruntime"
            raise SettingError(message)
        check_onnx_runtime(torch.device(place))


def _shapes(
    shape: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    depth: int | None,
) -> list[tuple[int, ...]]:
    """Return the shapes of all inputs, the batches of one size beside each other."""
    inner = [*([depth] if depth else shape[1:2]), *shape[2:-2]]
    return [
        (batch, *inner, *size)
        for size, batch in product(sizes or [(shape[-2], shape[-1])], batches)
    ]


def _input(shape: Sequence[int], like: Any) -> Any:
    import torch

    if tuple(shape) == tuple(like.shape):
        return like
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def _placed(model: Any, place: str) -> Any:
    """Return a network on a device; on a GPU a copy, since an export needs the one on the CPU."""
    from coa_compress.copying import copied, placed

    return model if place == "cpu" else placed(copied(model), place)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Limit the CPU threads of torch within a block."""
    if count is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _other_engine(name: str, model: Any) -> Iterator[Any]:
    """Offer a builder of the network in another engine; its files are gone on exit."""
    if name == "torch":
        yield None
        return
    from coa_compress.exporting import export_onnx
    from coa_compress.profiling.onnx_runtime import OnnxNetwork

    with tempfile.TemporaryDirectory() as folder:

        def build(example: Any) -> OnnxNetwork:
            file = Path(folder) / "network.onnx"
            export_onnx(model, example.cpu(), file)
            return OnnxNetwork(file, example)

        yield name, build


def _write_table(model: Any, example: Any, file: Path, screen: Screen) -> None:
    from coa_compress.copying import placed
    from coa_compress.profiling.latency_table import save_table
    from coa_compress.stages.limits import Place, build_table
    from coa_compress.structure.analysis import analyze

    structure = analyze(placed(model, "cpu"), example.cpu())
    place = Place(structure, placed(model, example.device), example)
    save_table(build_table(place, screen.on_progress), file)
