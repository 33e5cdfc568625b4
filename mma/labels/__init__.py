"""Frame label sets for stage 1: one importer a format, all into one common table, mapped by name.

`read_labels("rafdb", folder)` gives a `LabelSet`. Each format is one small file here, registered by its name in
`mma.labels.registry`. No pixels are read: a table says where an image or a video frame lies and what is known of it.
"""

from mma.labels.registry import FORMATS, LabelFormat, read_labels
from mma.labels.table import LABEL_SCHEMA, LabelArrays, LabelSet, label_arrays

__all__ = ["FORMATS", "LABEL_SCHEMA", "LabelArrays", "LabelFormat", "LabelSet", "label_arrays", "read_labels"]
