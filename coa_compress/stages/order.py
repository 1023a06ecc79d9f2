"""The stages in the order of the data."""

from coa_compress.stages.adapt import Adapt
from coa_compress.stages.allocate import Allocate
from coa_compress.stages.distill import Distill
from coa_compress.stages.measure import Measure
from coa_compress.stages.prune import Prune
from coa_compress.stages.refit import Refit
from coa_compress.stages.score import Score
from coa_compress.stages.state import Stage
from coa_compress.stages.train import Train

STAGES: tuple[type[Stage], ...] = (
    Train,
    Score,
    Allocate,
    Prune,
    Refit,
    Distill,
    Adapt,
    Measure,
)
"""Every stage; a recipe runs those it names, in this order."""
