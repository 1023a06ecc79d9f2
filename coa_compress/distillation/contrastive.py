"""Contrast: an output shall be closer to what is right than to what was given."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from coa_compress.errors import ModelError, TrainingError

FeatureNetwork = Callable[[Tensor], Sequence[Tensor]]
"""Returns features of a batch, one tensor a place; a gradient must flow through it to its input."""

_LEAST = 1e-7


def contrastive_ratio(
    anchor: Sequence[Tensor],
    positive: Sequence[Tensor],
    negative: Sequence[Tensor],
    parts: Sequence[float],
) -> Tensor:
    """Return how much closer features are to the right ones than to the wrong ones.

    The weighted mean over the places of the L1 distance to the positive over that to the negative
    (Wu et al. 2021, AECR-Net, arXiv:2104.09367, eq. 4). For a restored image the positive is the
    truth and the negative the input, but they may be features of anything.

    Args:
        anchor: Features of the output, one tensor a place.
        positive: Features of what the output should be, same shapes; used without gradient.
        negative: Features of what it should not be, same shapes; used without gradient.
        parts: Weight of each place; AECR-Net gives deeper places more.

    Returns:
        A scalar from 0; 1 for an anchor half way between the two, if the parts add up to 1.

    Raises:
        TrainingError: If there is no feature.

    >>> right, wrong = torch.zeros(1, 4), torch.ones(1, 4)
    >>> contrastive_ratio([0.25 * wrong], [right], [wrong], [1.0])
    tensor(0.3333)
    """
    if not anchor:
        message = "the contrast has no features: set stages.distill.taps above 0 or its weight to 0"
        raise TrainingError(message)
    ratios = [
        part
        * (mine - right.detach()).abs().mean()
        / ((mine - wrong.detach()).abs().mean() + _LEAST)
        for part, mine, right, wrong in zip(parts, anchor, positive, negative, strict=True)
    ]
    return torch.stack(ratios).sum()


class TappedNetwork:
    """The features of a network at some of its modules; the forward pass ends at the last of them.

    Args:
        model: Any network, such as the teacher; unchanged, and without hooks between calls.
        paths: Dotted paths of modules that every forward pass reaches.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 1))
    >>> [tuple(x.shape) for x in TappedNetwork(net, ["0"])(torch.zeros(1, 1, 4, 4))]
    [(1, 2, 4, 4)]
    """

    def __init__(self, model: nn.Module, paths: Sequence[str]) -> None:
        self.model = model
        self.paths = tuple(paths)

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """Return the features of a batch, in the order of the paths.

        Raises:
            ModelError: If a module is not there or not reached.
        """
        found: dict[str, Tensor] = {}
        handles = [self._watch(path, found) for path in self.paths]
        try:
            self.model(images)
        except _AllFoundError:
            pass
        finally:
            for handle in handles:
                handle.remove()
        missing = [path for path in self.paths if path not in found]
        if missing:
            message = f"{type(self.model).__name__} does not reach {missing[0]!r}: take other taps"
            raise ModelError(message)
        return [found[path] for path in self.paths]

    def _watch(self, path: str, found: dict[str, Tensor]) -> torch.utils.hooks.RemovableHandle:
        def keep(_module: nn.Module, _args: object, output: Tensor) -> None:
            found[path] = output.float()
            if len(found) == len(self.paths):
                raise _AllFoundError

        return self.model.get_submodule(path).register_forward_hook(keep)


class _AllFoundError(Exception):
    """Every place has been reached: the rest of the forward pass is not needed."""
