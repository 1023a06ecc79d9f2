"""Scorers by name."""

from coa_compress.protocols import Scorer
from coa_compress.registry import Registry
from coa_compress.scoring.activation import score_activation
from coa_compress.scoring.fisher import score_fisher
from coa_compress.scoring.magnitude import score_magnitude
from coa_compress.scoring.random import score_random
from coa_compress.scoring.sensitivity import score_output_sensitivity
from coa_compress.scoring.surgeon import score_surgeon
from coa_compress.scoring.taylor import score_taylor

SCORERS: Registry[Scorer] = Registry("scorer", group="coa_compress.scorers")
"""Every built-in scorer; plug-ins come by the entry-point group ``coa_compress.scorers``."""

SCORERS.register("activation")(score_activation)
SCORERS.register("fisher")(score_fisher)
SCORERS.register("magnitude")(score_magnitude)
SCORERS.register("random")(score_random)
SCORERS.register("sensitivity")(score_output_sensitivity)
SCORERS.register("surgeon")(score_surgeon)
SCORERS.register("taylor")(score_taylor)
