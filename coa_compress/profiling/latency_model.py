"""Predicted time of one pass as a function of the widths, from a table measured on a device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from coa_compress.costs import CostFunction, CostTerm, Extent, Vectors

Times = NDArray[np.float64]
"""Milliseconds."""


@dataclass(frozen=True, slots=True, eq=False)
class OperationTimes:
    """Measured times of one operation.

    Args:
        sizes: Ascending sizes of each axis at which the others were at their full size.
        sweeps: Time at each of these sizes; the last is the full size.
        corners: Some of the sizes of each axis.
        grid: Time at every combination of them.
    """

    sizes: tuple[NDArray[np.float64], ...]
    sweeps: tuple[Times, ...]
    corners: tuple[NDArray[np.float64], ...]
    grid: Times

    def at(self, sizes: NDArray[np.float64]) -> Times:
        """Return the time at several sizes.

        Between corners the grid is interpolated linearly; each sweep then gives the detail along
        its axis, such as stairs, as a factor. Beyond what was measured the nearest size counts.

        Args:
            sizes: Shape ``(n_vectors, n_axes)``.
        """
        times = self._on_grid(sizes)
        for axis, (known, sweep) in enumerate(zip(self.sizes, self.sweeps, strict=True)):
            along = np.tile([one[-1] for one in self.sizes], (len(known), 1))
            along[:, axis] = known
            detail = sweep / self._on_grid(along)
            times = times * np.interp(sizes[:, axis], known, detail)
        return times

    def _on_grid(self, sizes: NDArray[np.float64]) -> Times:
        lows: list[NDArray[np.int64]] = []
        parts: list[NDArray[np.float64]] = []
        for axis, corners in enumerate(self.corners):
            clipped = np.clip(sizes[:, axis], corners[0], corners[-1])
            low = np.clip(np.searchsorted(corners, clipped, side="right") - 1, 0, len(corners) - 2)
            if len(corners) == 1:
                low = np.zeros(len(clipped), dtype=np.int64)
            high = np.minimum(low + 1, len(corners) - 1)
            span = np.maximum(corners[high] - corners[low], 1e-12)
            lows.append(low)
            parts.append((clipped - corners[low]) / span)
        total = np.zeros(len(sizes))
        for corner in product((0, 1), repeat=len(lows)):
            weight = np.ones(len(sizes))
            index: list[NDArray[np.int64]] = []
            for axis, (end, low, part) in enumerate(zip(corner, lows, parts, strict=True)):
                weight = weight * (part if end else 1 - part)
                index.append(np.minimum(low + end, len(self.corners[axis]) - 1))
            total += weight * (self.grid[tuple(index)] if index else float(self.grid))
        return total


@dataclass(frozen=True, slots=True)
class Fit:
    """How the times of single operations make up that of the network.

    Args:
        operations: Factor on their sum: in a network they meet warm or cold caches.
        fixed_ms: What takes time whatever the widths.
        ms_per_element: Time for each element that the other operations read or write.
    """

    operations: float
    fixed_ms: float
    ms_per_element: float


class LatencyModel:
    """Predicted milliseconds of one pass.

    Args:
        group_names: Order of the entries of a width vector.
        operations: For each operation the sizes it has, and its measured times.
        traffic: Elements that all other operations read and write.
        fit: How they add up.
    """

    def __init__(
        self,
        group_names: tuple[str, ...],
        operations: Sequence[tuple[Sequence[Extent], OperationTimes]],
        traffic: CostFunction,
        fit: Fit,
    ) -> None:
        self.group_names = group_names
        self.fit = fit
        self._operations = [
            ([_sizes_of(group_names, axis) for axis in axes], times) for axes, times in operations
        ]
        self._traffic = traffic

    def of_vectors(self, widths: Vectors) -> Times:
        """Return the predicted milliseconds of several width vectors.

        Args:
            widths: Shape ``(n_vectors, n_groups)``, in the order of ``group_names``.
        """
        total: Times = (
            self.fit.operations * self.operations_ms(widths)
            + self.fit.fixed_ms
            + self.fit.ms_per_element * self._traffic.of_vectors(widths)
        )
        return total

    def operations_ms(self, widths: Vectors) -> Times:
        """Return the sum of the times of single operations, each by itself."""
        total = np.zeros(len(widths))
        for axes, times in self._operations:
            columns = [axis.values(widths)[:, 0] for axis in axes]
            sizes = np.stack(columns, axis=1) if columns else np.zeros((len(widths), 0))
            total += times.at(sizes)
        return total


def _sizes_of(group_names: tuple[str, ...], extent: Extent) -> CostFunction:
    return CostFunction(group_names, (CostTerm("", 1, (extent,)),))


def fit_times(operations: Times, traffic: Times, measured: Times) -> Fit:
    """Return the fit with the least relative squared error, every part from 0.

    Args:
        operations: Sum of the times of single operations in each network, shape ``(n,)``.
        traffic: Elements that the other operations of each network read and write.
        measured: Measured time of each network.

    >>> fit = fit_times(np.array([4.0, 2.0, 1.0]), np.array([100.0, 50.0, 30.0]),
    ...                 np.array([6.0, 3.5, 2.3]))
    >>> round(fit.operations, 2), round(fit.fixed_ms, 2), round(fit.ms_per_element, 3)
    (1.0, 1.0, 0.01)
    """
    columns = np.stack([operations, np.ones_like(measured), traffic], axis=1)
    scaled = columns / measured[:, None]
    best, least = np.array([measured.sum() / max(operations.sum(), 1e-12), 0.0, 0.0]), np.inf
    for chosen in product((False, True), repeat=3):
        if not any(chosen):
            continue
        part = scaled[:, chosen]
        norms = np.maximum(np.linalg.norm(part, axis=0), 1e-300)
        values = np.linalg.lstsq(part / norms, np.ones(len(measured)), rcond=1e-9)[0] / norms
        error = float(np.square(part @ values - 1).sum())
        # with a little preference for fewer parts: three networks fit three parts exactly
        error += 1e-5 * sum(chosen)
        if (values >= 0).all() and error < least:
            least = error
            best = np.zeros(3)
            best[list(chosen)] = values
    return Fit(*(float(value) for value in best))


def plain_times(times: OperationTimes) -> dict[str, object]:
    """Return measured times as JSON values."""
    return {
        "sizes": [one.tolist() for one in times.sizes],
        "sweeps_ms": [one.tolist() for one in times.sweeps],
        "corners": [one.tolist() for one in times.corners],
        "grid_ms": times.grid.tolist(),
    }


def read_times(plain: Mapping[str, list[float]]) -> OperationTimes:
    """Return measured times from JSON values."""
    return OperationTimes(
        sizes=tuple(np.array(one) for one in plain["sizes"]),
        sweeps=tuple(np.array(one) for one in plain["sweeps_ms"]),
        corners=tuple(np.array(one) for one in plain["corners"]),
        grid=np.array(plain["grid_ms"]),
    )
