"""Allocators by name."""

from coa_compress.allocation.greedy import allocate_greedy
from coa_compress.allocation.knapsack import allocate_knapsack
from coa_compress.allocation.threshold import allocate_global
from coa_compress.allocation.uniform import allocate_uniform
from coa_compress.protocols import Allocator
from coa_compress.registry import Registry

ALLOCATORS: Registry[Allocator] = Registry("allocator", group="coa_compress.allocators")
"""Every built-in allocator; plug-ins come by the entry-point group ``coa_compress.allocators``."""

ALLOCATORS.register("knapsack")(allocate_knapsack)
ALLOCATORS.register("greedy")(allocate_greedy)
ALLOCATORS.register("global")(allocate_global)
ALLOCATORS.register("uniform")(allocate_uniform)
