"""One yaml file = one recipe; its header names the source, what is faithful, and the number to expect.

Memory in a header is on paper: what autograd keeps of an image (its saved tensors, counted under bf16 on a CPU) times
loop.per_gpu, 16 bytes a trained parameter and 4 a teacher's. A GPU keeps norms and losses in float32 and needs room
for their gradients: half as much again, and 2 GiB, are on the safe side. At the default of 64 all stay below 20 GB.
"""

from pathlib import Path

from ..common.plugins import Kind

RECIPES = Kind("recipes", Path(__file__).resolve().parent, suffix=".yaml")
RENAMED = {"pwself_repo": "pwself"}  # names of older versions
