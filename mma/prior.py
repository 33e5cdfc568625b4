"""The prior w(i, e): which action units belong to which basic expression, as data.

From Du, Tao and Martinez, PNAS 2014, in the form of PAPER.md, "Stage 1" (there marked [fact]). Training ties the
expression head and the action unit head together through it; the made corpus is drawn so that it differs from it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mma.descriptors import DESCRIPTOR_SETS, DescriptorSet

DU_PRIOR: dict[str, dict[str, float]] = {
    "happiness": {"AU12": 1.0, "AU25": 1.0, "AU06": 0.51},
    "sadness": {"AU04": 1.0, "AU15": 1.0, "AU01": 0.60, "AU06": 0.50, "AU17": 0.67},
    "fear": {"AU01": 1.0, "AU04": 1.0, "AU20": 1.0, "AU25": 1.0, "AU02": 0.57, "AU05": 0.63, "AU26": 0.33},
    "anger": {"AU04": 1.0, "AU07": 1.0, "AU24": 1.0, "AU10": 0.26, "AU17": 0.52, "AU23": 0.29},
    "surprise": {"AU01": 1.0, "AU02": 1.0, "AU25": 1.0, "AU26": 1.0, "AU05": 0.66},
    "disgust": {"AU09": 1.0, "AU10": 1.0, "AU17": 1.0, "AU04": 0.31, "AU24": 0.26},
}
"""Expression -> action unit -> weight: 1 for prototypical action units, the share of subjects for the others.

An action unit that is not named has weight 0, and so have all of neutral and of `other`, which the table lacks.
AU11 (sadness, .26) is left out: no label set has it, so no network here can be taught it.
"""


def prior_matrix(
    descriptor_set: DescriptorSet, table: Mapping[str, Mapping[str, float]] = DU_PRIOR
) -> npt.NDArray[np.float32]:
    """The table for one descriptor set, float32 (num_expressions, num_action_units), both in the set's orders.

    Rows of expressions without an entry (neutral, other) are 0. Action units that the set lacks drop out. Raises
    ValueError for an expression that no set has, and for a weight that is no number in [0, 1].
    """
    known = {name for each in DESCRIPTOR_SETS.values() for name in each.expressions}
    for expression, weights in table.items():
        if expression not in known or not isinstance(weights, Mapping):
            raise ValueError(f"a prior is {{expression: {{AU: weight}}}}; {expression!r} is none of {sorted(known)}")
        for unit, weight in weights.items():
            if not isinstance(weight, (int, float)) or not 0 <= weight <= 1:
                raise ValueError(f"the prior's weight of {unit} for {expression} is {weight!r}: give 0 to 1")
    rows = [
        [table.get(expression, {}).get(unit, 0.0) for unit in descriptor_set.action_units]
        for expression in descriptor_set.expressions
    ]
    return np.array(rows, dtype=np.float32)
