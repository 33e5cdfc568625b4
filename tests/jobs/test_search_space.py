"""Search spaces: what is refused and how, what is drawn, and what a drawn configuration makes of train's options."""

from __future__ import annotations

import math

import numpy as np
import pytest
import yaml

from jobs.outcome import InputError
from jobs.search_space import check_space, flat_settings, read_space, told, with_settings
from jobs.train import Options


def space_of(tmp_path, content) -> tuple:
    path = tmp_path / "space.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return read_space(str(path))


OPTIONS = Options(store=("s",), labels="l", out="o")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"fit.learning-rat": [0.1]}, ["'fit.learning_rat'", "did you mean 'fit.learning_rate'"]),
        ({"network": {"cel": ["gru"]}}, ["'network.cel'", "did you mean 'network.cell'"]),
        ({"units": [3]}, ["'units'", "network.units"]),
        ({"labels": ["x"]}, ["'labels'", "did you mean"]),
        ({"network.cell": []}, ["network.cell", "no value to choose from"]),
        ({"network.cell": ["gru", "gruu"]}, ["network.cell", "gruu"]),
        ({"network.units": [64, 64]}, ["network.units", "same value twice"]),
        ({"fit.learning_rate": {"uniform": [0.1, 0.1]}}, ["fit.learning_rate", "from 0.1 to 0.1 is empty"]),
        ({"fit.learning_rate": {"uniform": [0.2, 0.1]}}, ["is empty"]),
        ({"fit.learning_rate": {"log-uniform": [0.0, 0.1]}}, ["begins above 0"]),
        ({"fit.learning_rate": {"log-uniform": ["1e-3", 0.1]}}, ["takes two numbers", "1.0e-3"]),
        ({"fit.learning_rate": {"normal": [0.0, 0.1]}}, ["uniform, log-uniform"]),
        ({"network.cell": {"uniform": [0, 1]}}, ["network.cell"]),
        ({"fit.loss": [None]}, ["fit.loss cannot be null"]),
        ({"fit.epochs": [5], "fit": {"epochs": [6]}}, ["names fit.epochs twice"]),
        ("a: [", ["no YAML"]),
        ("[1, 2]", ["must map names"]),
        ("", ["must map names"]),
    ],
)
def test_wrong_spaces_are_refused_with_the_name_and_the_mend(tmp_path, content, words):
    with pytest.raises(InputError) as refused:
        space_of(tmp_path, content)
    assert "\n" not in str(refused.value)
    assert all(word in str(refused.value) for word in ["space", *words]), refused.value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"network.units": [8, 0]}, "network.units: --network.units 0: give 1 or more"),
        ({"network.dropout": {"uniform": [0.0, 1.5]}}, "network.dropout: --network.dropout 1.5"),
        ({"network.lengths": ["cut"], "network.readout": ["last", "attention"]}, "--network.lengths cut is for"),
    ],
)
def test_values_that_no_configuration_takes_are_refused(tmp_path, content, words):
    with pytest.raises(InputError, match=words.replace(".", r"\.")):
        check_space(space_of(tmp_path, content), OPTIONS)


def test_a_value_that_needs_another_one_may_stand_beside_it(tmp_path):
    content = {"network.lengths": ["cut", "true"], "network.readout": ["last", "routed-dense"]}
    check_space(space_of(tmp_path, content), with_settings(OPTIONS, {"network.readout": "attention"}))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="--space"):
        read_space(str(tmp_path / "none.yaml"))


def test_each_configuration_is_its_own_however_many_there_are(tmp_path):
    narrow = space_of(tmp_path, {"network.units": [8, 16, 32], "fit.learning_rate": {"log-uniform": [1e-4, 1e-1]}})
    wide = space_of(
        tmp_path,
        {
            "network.cell": ["gru", "lstm"],
            "fit.learning_rate": {"log-uniform": [1e-4, 1e-1]},
            "network.units": [8, 16, 32],
        },
    )
    drawn = [{each.name: each.draw(0, number) for each in narrow} for number in range(50)]
    again = [{each.name: each.draw(0, number) for each in wide} for number in range(20)]
    assert all(one.items() <= other.items() for one, other in zip(drawn, again))
    assert len({each["fit.learning_rate"] for each in drawn}) == 50
    assert drawn != [{each.name: each.draw(1, number) for each in narrow} for number in range(50)]


def test_draws_cover_their_range_evenly(tmp_path):
    space = {
        each.name: each
        for each in space_of(
            tmp_path,
            {
                "fit.learning_rate": {"log-uniform": [1.0e-4, 1.0e-1]},
                "network.dropout": {"uniform": [0.0, 0.5]},
                "network.units": {"uniform": [3, 6]},
                "network.layers": {"log-uniform": [1, 4]},
                "sequence.descriptors": [["va"], ["va", "aus"]],
            },
        )
    }
    drawn = {name: [each.draw(0, number) for number in range(2000)] for name, each in space.items()}
    rates = np.log10(drawn["fit.learning_rate"])
    assert np.histogram(rates, 3, (-4, -1))[0] == pytest.approx([667] * 3, abs=80)
    assert np.histogram(drawn["network.dropout"], 5, (0, 0.5))[0] == pytest.approx([400] * 5, abs=70)
    assert np.bincount(drawn["network.units"])[3:] == pytest.approx([500] * 4, abs=80)
    assert all(isinstance(value, int) for value in drawn["network.units"] + drawn["network.layers"])
    expected = [2000 * (math.log(k + 0.5) - math.log(max(k - 0.5, 0.5))) / math.log(4.5 / 0.5) for k in range(1, 5)]
    assert np.bincount(drawn["network.layers"])[1:] == pytest.approx(expected, abs=80)
    assert {drawn["sequence.descriptors"][k] for k in range(20)} == {("va",), ("va", "aus")}


def test_settings_reach_the_options_and_come_back(tmp_path):
    space = space_of(
        tmp_path,
        {
            "network.cell": ["lstm"],
            "fit.batch-size": [64],
            "sequence.descriptors": [["va", "aus"]],
            "step-s": [None, 0.2],
        },
    )
    settings = {each.name: each.choices[-1] for each in space}
    options = with_settings(OPTIONS, settings)
    assert (options.network.cell, options.fit.batch_size, options.step_s) == ("lstm", 64, 0.2)
    assert options.sequence.descriptors == ("va", "aus")
    assert options.network.units == OPTIONS.network.units
    assert with_settings(options, {"step_s": None}).step_s == 0.2  # null leaves what the command line has
    assert with_settings(OPTIONS, {"sequence.descriptors": ["aus"]}).sequence.descriptors == ("aus",)  # as JSON has it
    assert flat_settings(options)["network.cell"] == "lstm"
    assert with_settings(OPTIONS, flat_settings(options)) == options


def test_settings_that_do_not_go_together_are_a_value_error():
    with pytest.raises(ValueError, match=r"network\.lengths"):
        with_settings(OPTIONS, {"network.readout": "attention", "network.lengths": "cut"})


def test_the_default_space_is_sound_and_optuna_can_name_each_value():
    space = read_space(None)
    assert {"network.cell", "fit.learning_rate", "sequence.descriptors", "sequence.fill", "step_s"} <= {
        each.name for each in space
    }
    for number in range(40):
        with_settings(OPTIONS, {each.name: each.draw(3, number) for each in space})
    for each in space:
        value = each.draw(0, 0)
        distribution = each.distribution()
        suggested = told(value) if each.choices is not None else value
        assert distribution._contains(distribution.to_internal_repr(suggested))
        assert each.value(suggested) == value
