"""Transformers, one block at a time.

Rules of this room: no model class is known by name (`stack.py` finds the blocks by their shape, so
transformers need not be installed); what Brevitas can do to a layer, Brevitas does (`recipe.py`);
solving and proving are those of the whole package, one block seen as a model (`quantize.py`).
"""

from brevitas_axe.blocks.channel_split import SplitLinear, channel_split
from brevitas_axe.blocks.export import export_layers
from brevitas_axe.blocks.kv_cache import kv_cache, simulated_cache
from brevitas_axe.blocks.quantize import BlocksResult, quantize_blocks
from brevitas_axe.blocks.stack import find_blocks

__all__ = [
    "BlocksResult",
    "SplitLinear",
    "channel_split",
    "export_layers",
    "find_blocks",
    "kv_cache",
    "quantize_blocks",
    "simulated_cache",
]
