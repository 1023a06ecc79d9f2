"""Which networks can be cut exactly: one row a network, for tests/zoo or any importable factory.

    python -m benchmarks.coverage [--model package.module:factory ... --size 64x64 ...]
        [--outputs all ...] [--zoo] [--keep-macs 0.5] [--keep-params 0.5] [--mode auto]
        [--json FILE]

Several factories take as many sizes and outputs, or the last given: outputs ``0`` lets the channels
of all others go.

Each network is analyzed and cut three times: to a fraction of its MACs and of its parameters by one
fraction of all widths, and to random widths that are multiples of nothing. Every student is
compared with its teacher in double precision at two input sizes, and the MACs that budgets go by
with those that the counter finds, which must be the same. The time of the analysis has another
export in it. The exit code is 1 if one is not exact. Rows that the file holds already, made by the
same command, are not made again.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.records import markdown_table, new_record, read_record, write_record
from coa_compress.allocation.uniform import allocate_uniform
from coa_compress.artifacts import Budget, Cut
from coa_compress.errors import BudgetError, CoaError, NoEffectWarning, SettingError
from coa_compress.profiling.counting import count_macs
from coa_compress.structure.analysis import analyze
from coa_compress.structure.exactness import exactness
from coa_compress.structure.exported import ExportedStructure
from coa_compress.structure.graph import export_graph
from coa_compress.structure.torch_export import FAILURES
from coa_compress.structure.trials import TOLERANCE, stirred

_ZOO = Path(__file__).resolve().parent.parent / "tests" / "zoo"
_STEPS = (8, 4, 2, 1)


@dataclass(frozen=True, slots=True)
class Subject:
    """A network to cut.

    Args:
        name: What the row is called.
        build: Makes the network and an input.
        outputs: Numbers of the outputs whose channels must stay; empty for all.
    """

    name: str
    build: Callable[[], tuple[nn.Module, Tensor]]
    outputs: tuple[int, ...] = ()


def main() -> int:
    """Run the benchmark; return 1 if a network cannot be cut exactly."""
    given = _arguments()
    subjects = _asked(given)
    if given.zoo or not given.model:
        subjects += zoo(given.only)
    record = {**new_record("coverage"), "tolerance": TOLERANCE, "seeds": [0], "rows": []}
    done = _rows_before(given.json, record["command"])
    for subject in subjects:
        row = done.get(subject.name) or measure(subject, given)
        record["rows"].append(row)
        print(_progress(row), flush=True)
        if given.json is not None:
            write_record(given.json, record)
    print(render(record))
    return int(not all(row["exact"] for row in record["rows"]))


def zoo(only: Sequence[str] = ()) -> Iterator[Subject]:
    """Yield the networks of tests/zoo, those named or all."""
    for path in sorted(_ZOO.glob("[a-z]*.py")):
        if not only or path.stem in only:
            yield Subject(path.stem, partial(_from_file, path))


def measure(subject: Subject, given: argparse.Namespace) -> dict[str, Any]:
    """Return the row of one network; what fails is in it as ``error``."""
    row: dict[str, Any] = {"name": subject.name, "exact": False}
    try:
        torch.manual_seed(0)
        network, example = subject.build()
        row["input"] = list(example.shape)
        row |= _measured(stirred(network.eval()), example, subject, given)
    except (CoaError, *FAILURES) as error:
        row["error"] = str(error).splitlines()[0] if str(error) else type(error).__name__
    return row


def render(record: Mapping[str, Any]) -> str:
    """Return the rows as a Markdown table."""
    head = ["network", "groups", "channels", "params left", "MACs left", "step", "mode"]
    head += ["attributes that follow", "frozen", "largest error", "sizes"]
    head += ["export s", "analysis s", "cut s", "check s"]
    lines = [_line(row) for row in record["rows"]]
    exact = sum(bool(row["exact"]) for row in record["rows"])
    return (
        f"{markdown_table(head, lines)}\n\n{exact} of {len(lines)} exact, to "
        f"{record['tolerance']:.0e} of the largest output in double precision. Seconds are "
        f"processor time on {record['device_name']}, {record['threads']} threads. Made by "
        f"`{record['command']}`."
    )


def _measured(
    network: nn.Module, example: Tensor, subject: Subject, given: argparse.Namespace
) -> dict[str, Any]:
    clock = _Clock()
    clock.time("export", lambda: export_graph(network, example))
    ask = partial(analyze, mode=given.mode, outputs=subject.outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        structure = clock.time("analysis", lambda: ask(network, example))
    row: dict[str, Any] = {
        "groups": len(structure.groups),
        "channels": sum(structure.widths.values()),
        "mode": structure.mode,
        "frozen": list(structure.frozen),
        "unknown_operators": list(structure.unknown_ops),
    }
    errors, apart = [], [_macs_apart(structure, network, structure.widths, example)]
    asked = {"params": given.keep_params, "macs": given.keep_macs, "random": None}
    for kind, keep in asked.items():
        step, widths = _widths(structure, kind, keep)
        cut, kept = clock.time("cut", partial(_cut, structure, widths))
        found = clock.time("check", partial(exactness, structure, cut, kept, example))
        errors.append(found.error)
        apart.append(_macs_apart(structure, cut.student, widths, example))
        row |= {"sizes": [list(size) for size in found.sizes]}
        if keep is not None:
            row |= {f"{kind}_kept": _kept(structure, kind, widths), f"{kind}_step": step}
    row["attributes"] = _attributes(cut) if structure.mode == "module" else []
    row |= {"relative_error": max(errors), "macs_apart": max(apart)}
    row["exact"] = max(errors) <= TOLERANCE and not row["macs_apart"]
    return {**row, "seconds": clock.seconds}


class _Clock:
    """Adds up the processor time of named things, which another load does not change."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, call: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = call()
        spent = time.process_time() - start
        self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 3)
        return result


def _widths(
    structure: ExportedStructure, kind: str, keep: float | None
) -> tuple[int, dict[str, int]]:
    """Return the coarsest step that meets a budget, and the widths; random ones for none."""
    if keep is None:
        generator = torch.Generator().manual_seed(0)
        return 1, {
            name: int(torch.randint(1, width, (1,), generator=generator))
            for name, width in structure.widths.items()
        }
    for step in _STEPS:
        limits: dict[str, Any] = {f"keep_{kind}": keep, "round_to": step, "min_channels": step}
        try:
            return step, allocate_uniform(structure.groups, {}, structure.costs, Budget(**limits))
        except BudgetError:
            if step == _STEPS[-1]:
                raise
    raise AssertionError


def _cut(structure: ExportedStructure, widths: Mapping[str, int]) -> tuple[Cut, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    kept = {
        name: torch.randperm(full, generator=generator)[: widths[name]].sort().values
        for name, full in structure.widths.items()
    }
    return structure.cut(kept), kept


def _macs_apart(
    structure: ExportedStructure, network: nn.Module, widths: Mapping[str, int], example: Tensor
) -> float:
    """Return how far the MACs that budgets go by are from those that the counter finds."""
    counted = count_macs(network, example)
    return abs(structure.costs.macs(widths) - counted) / max(1, counted)


def _kept(structure: ExportedStructure, kind: str, widths: Mapping[str, int]) -> float:
    cost = structure.costs.macs if kind == "macs" else structure.costs.params
    return cost(widths) / cost(structure.widths)


def _attributes(cut: Cut) -> list[str]:
    """Return the attributes of classes that are not torch's own which follow a width."""
    kinds = {path: type(module) for path, module in cut.student.named_modules()}
    found = [(kinds[p.module], p.attribute) for p in cut.patches]
    own = [(kind, name) for kind, name in found if not kind.__module__.startswith("torch.nn")]
    return sorted({f"{kind.__name__}.{name}" for kind, name in own})


def _line(row: Mapping[str, Any]) -> list[str]:
    if "error" in row:
        return [row["name"], *["-"] * 8, row["error"], *["-"] * 5]
    step = row["macs_step"]
    same = step == row["params_step"]
    return [
        row["name"],
        str(row["groups"]),
        str(row["channels"]),
        f"{row['params_kept']:.1%}",
        f"{row['macs_kept']:.1%}",
        str(step) if same else f"{row['params_step']}, {step}",
        row["mode"],
        ", ".join(row["attributes"]) or "-",
        str(len(row["frozen"])),
        f"{row['relative_error']:.0e}",
        str(len(row["sizes"])),
        *[f"{row['seconds'][name]:.1f}" for name in ("export", "analysis", "cut", "check")],
    ]


def _progress(row: Mapping[str, Any]) -> str:
    state = row.get("error") or f"{row['mode']}, error {row['relative_error']:.0e}"
    return f"{row['name']}: {'exact' if row['exact'] else 'NOT EXACT'}, {state}"


def _rows_before(path: Path | None, command: str) -> dict[str, dict[str, Any]]:
    if path is None or not path.is_file():
        return {}
    record = read_record(path)
    rows = record["rows"] if record["command"] == command else []
    return {row["name"]: row for row in rows if row["exact"]}


def _from_file(path: Path) -> tuple[nn.Module, Tensor]:
    spec = spec_from_file_location(f"zoo_{path.stem}", path)
    if spec is None or spec.loader is None:
        message = f"cannot read {path.name}"
        raise SettingError(message)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build(), module.example()


def _asked(given: argparse.Namespace) -> list[Subject]:
    sizes = [*given.size, *[given.size[-1]] * len(given.model)]
    outputs = [*given.outputs, *[given.outputs[-1]] * len(given.model)]
    return [
        Subject(model.rpartition(":")[2], partial(_from_name, model, size), _numbers(which))
        for model, size, which in zip(given.model, sizes, outputs, strict=False)
    ]


def _numbers(which: str) -> tuple[int, ...]:
    """Return the numbers of outputs in words such as ``0,2``; none for ``all``."""
    return () if which == "all" else tuple(int(number) for number in which.split(","))


def _from_name(name: str, size: str) -> tuple[nn.Module, Tensor]:
    module, _, factory = name.partition(":")
    try:
        network = getattr(import_module(module), factory)()
    except (ImportError, AttributeError) as error:
        message = f"cannot build --model {name}: {error}: give package.module:factory"
        raise SettingError(message) from None
    if not isinstance(network, nn.Module):
        message = f"--model {name} made {type(network).__name__}, not a torch.nn.Module"
        raise SettingError(message)
    return network, torch.rand(_shape(size))


def _shape(size: str) -> tuple[int, ...]:
    """Return the shape of an input.

    >>> _shape("64x96"), _shape("4x64x64")
    ((1, 3, 64, 96), (1, 4, 64, 64))
    """
    numbers = [int(number) for number in size.split("x")]
    return (1, 3, *numbers) if len(numbers) == 2 else (1, *numbers)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", default=[], help="package.module:factory")
    parser.add_argument("--size", nargs="+", default=["64x64"], help="of each; 4x64x64 for 4 in")
    parser.add_argument("--outputs", nargs="+", default=["all"], help="of each; 0,2 or all")
    parser.add_argument("--zoo", action="store_true", help="the networks of tests/zoo, too")
    parser.add_argument("--only", nargs="+", default=[], help="names of tests/zoo")
    parser.add_argument("--mode", choices=["auto", "module", "graph"], default="auto")
    parser.add_argument("--keep-macs", type=float, default=0.5)
    parser.add_argument("--keep-params", type=float, default=0.5)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
