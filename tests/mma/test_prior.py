"""The Du prior: it must be the published table, looked up by name."""

from __future__ import annotations

import numpy as np
import pytest

from mma.descriptors import ABAW22, DESCRIPTOR_SETS, MMA26
from mma.prior import DU_PRIOR, prior_matrix

PUBLISHED = {
    "happiness": "12 25 6:.51",
    "sadness": "4 15 1:.60 6:.50 17:.67",
    "fear": "1 4 20 25 2:.57 5:.63 26:.33",
    "anger": "4 7 24 10:.26 17:.52 23:.29",
    "surprise": "1 2 25 26 5:.66",
    "disgust": "9 10 17 4:.31 24:.26",
}
"""The table of PAPER.md, typed a second time."""


def test_prior_is_the_published_table_without_au11():
    expected = {}
    for expression, row in PUBLISHED.items():
        pairs = [(*cell.split(":"), "1")[:2] for cell in row.split()]
        expected[expression] = {f"AU{int(number):02d}": float(weight) for number, weight in pairs}
    assert expected == DU_PRIOR


@pytest.mark.parametrize("descriptor_set", DESCRIPTOR_SETS.values(), ids=lambda each: each.name)
def test_matrix_follows_the_names_of_the_set(descriptor_set):
    matrix = prior_matrix(descriptor_set)
    assert matrix.dtype == np.float32
    assert matrix.shape == (len(descriptor_set.expressions), len(descriptor_set.action_units))
    for row, expression in zip(matrix, descriptor_set.expressions, strict=True):
        for weight, unit in zip(row, descriptor_set.action_units, strict=True):
            assert weight == np.float32(DU_PRIOR.get(expression, {}).get(unit, 0.0))


def test_neutral_and_other_imply_no_action_unit():
    assert not prior_matrix(ABAW22)[[0, ABAW22.expressions.index("other")]].any()


def test_every_action_unit_of_the_table_is_in_the_default_set():
    named = set().union(*DU_PRIOR.values())
    assert named <= set(MMA26.action_units)
    assert set(MMA26.action_units) - named == {"AU14"}  # PAPER.md: distribution matching leaves AU14 alone
