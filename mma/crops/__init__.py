"""Cut faces for training stage 1: the store that caches them, and the flat file that a node's workers map.

`jobs.cropping.ensure_crops` fills the store; `found` says which rows of a label table have a crop, and `flat_faces`
gives those.
"""

from mma.crops.flat import flat_faces
from mma.crops.rows import NO_ROW, OUTCOMES, WITH_FACE, crop_spec
from mma.crops.store import found, outcomes

__all__ = ["NO_ROW", "OUTCOMES", "WITH_FACE", "crop_spec", "flat_faces", "found", "outcomes"]
