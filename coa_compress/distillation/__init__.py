"""What a student learns from its teacher: where features are compared, and by which losses."""

from coa_compress.distillation.adapters import FeatureAdapters
from coa_compress.distillation.balancing import geometric_mean
from coa_compress.distillation.contrastive import contrastive_ratio
from coa_compress.distillation.features import FEATURE_TERMS, at_each_tap
from coa_compress.distillation.objective import Objective, Terms
from coa_compress.distillation.taps import Tap, feature_taps

__all__ = [
    "FEATURE_TERMS",
    "FeatureAdapters",
    "Objective",
    "Tap",
    "Terms",
    "at_each_tap",
    "contrastive_ratio",
    "feature_taps",
    "geometric_mean",
]
