"""A search space: which options of `train` a sweep varies, over what, read from YAML and checked before any trial."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np
import yaml

from cluster.storage import read
from cluster.uri import StorageError, display
from jobs.cli import option_words, parse_options
from jobs.outcome import InputError, input_errors
from jobs.train import Options

GROUPS = ("network", "fit", "sequence")
OWN = ("step_s", "steps", "precision")
"""Beside those of the groups, the options of `train` that may vary."""
RANGES = ("uniform", "log-uniform")
TRIES = 64
"""Configurations in which a value is tried before it is refused."""

O = TypeVar("O", bound=Options)  # noqa: E741


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One option and the values that it may take: `choices`, or numbers from `low` to `high`."""

    name: str
    """As `fit.learning_rate`."""
    choices: tuple[Any, ...] | None = None
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def draw(self, seed: int, number: int) -> Any:
        """The value of configuration `number`: of no other's, and of no other dimension's, draws."""
        name = int.from_bytes(hashlib.blake2b(self.name.encode(), digest_size=8).digest(), "big")
        rng = np.random.default_rng([seed, number, name])
        if self.choices is not None:
            return self.choices[int(rng.integers(len(self.choices)))]
        if self.whole:
            low, high = self.low - 0.5, self.high + 0.5
            value = (
                math.exp(rng.uniform(math.log(max(low, 0.5)), math.log(high))) if self.log else rng.uniform(low, high)
            )
            return int(min(max(round(value), self.low), self.high))
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        return float(f"{value:.4g}")

    def distribution(self) -> Any:
        """The same for Optuna, choices as the words that `told` gives."""
        from optuna import distributions

        if self.choices is not None:
            return distributions.CategoricalDistribution([told(value) for value in self.choices])
        if self.whole:
            return distributions.IntDistribution(int(self.low), int(self.high), log=self.log)
        return distributions.FloatDistribution(self.low, self.high, log=self.log)

    def suggestion(self, value: Any) -> Any:
        """What Optuna calls a value."""
        return value if self.choices is None else told(value)

    def value(self, suggested: Any) -> Any:
        """The value that Optuna's suggestion stands for."""
        if self.choices is None:
            return suggested
        return {told(value): value for value in self.choices}[suggested]


Space = tuple[Dimension, ...]


def told(value: Any) -> str:
    """A value in a table, as on the command line."""
    if isinstance(value, (tuple, list)):
        return "+".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else "default" if value is None else str(value)


def read_space(uri: str | None) -> Space:
    """The space of a YAML file; None: `templates/search_space.yaml`.

    Raises InputError for an unknown name (with the nearest known one), an empty choice or range, and a value of the
    wrong kind; whether the option takes it is for `check_space`.
    """
    shown = "the default space" if uri is None else f"--space {display(uri)}"
    with input_errors(StorageError, OSError, ValueError, option="--space"):
        content = files("jobs").joinpath("templates/search_space.yaml").read_bytes() if uri is None else read(uri)
    try:
        settings = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise InputError(f"{shown} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict) or not settings:
        raise InputError(f"{shown} must map names of train's options to what they may be, as network.cell: [gru, lstm]")
    space = tuple(_dimension(name, asked, shown) for name, asked in _leaves(settings))
    names = [each.name for each in space]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{shown} names {twice[0]} twice")
    return space


def searchable() -> dict[str, Any]:
    """The names of all options that may vary, with their types."""
    hints = get_type_hints(Options)
    inner = {f"{group}.{each}": kind for group in GROUPS for each, kind in get_type_hints(hints[group]).items()}
    return inner | {name: hints[name] for name in OWN}


def with_settings(options: O, settings: Mapping[str, Any]) -> O:
    """The options with some of them changed, by name; None leaves one as it is.

    Raises ValueError where they do not go together.
    """
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        if value is None:
            continue
        value = tuple(value) if isinstance(value, list) else value
        group, _, rest = name.rpartition(".")
        (inner.setdefault(group, {}) if group else own)[rest] = value
    groups = {group: replace(getattr(options, group), **values) for group, values in inner.items()}
    return replace(options, **own, **groups)


def flat_settings(options: Options) -> dict[str, Any]:
    """All options that may vary, by name, as they are."""
    inner = {f"{group}.{key}": value for group in GROUPS for key, value in vars(getattr(options, group)).items()}
    return inner | {name: getattr(options, name) for name in OWN}


def _leaves(settings: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, asked in settings.items():
        name = f"{prefix}{str(key).replace('-', '_')}"
        if isinstance(asked, dict) and name in GROUPS:
            yield from _leaves(asked, f"{name}.")
        else:
            yield name, asked


def _dimension(name: str, asked: Any, shown: str) -> Dimension:
    known = searchable()
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise InputError(f"{shown}: train has no option {name!r} that could vary; did you mean {nearest!r}?")
    if isinstance(asked, dict):
        return _range(name, asked, shown)
    values = asked if isinstance(asked, list) else [asked]
    if not values:
        raise InputError(f"{shown}: {name} has no value to choose from")
    choices = tuple(_typed(name, value, shown) for value in values)
    if len({told(value) for value in choices}) < len(choices):
        raise InputError(f"{shown}: {name} has the same value twice")
    return Dimension(name=name, choices=choices)


def _range(name: str, asked: Mapping[Any, Any], shown: str) -> Dimension:
    kind = next(iter(asked), None)
    how = str(kind).replace("_", "-")
    if len(asked) != 1 or how not in RANGES:
        raise InputError(f"{shown}: {name}: give a list, or one of {', '.join(RANGES)} with [low, high]")
    ends = asked[kind]
    if not isinstance(ends, list) or len(ends) != 2 or not all(_is_number(end) for end in ends):
        raise InputError(f"{shown}: {name}: {how} takes two numbers, [low, high], not {ends!r} (in YAML, 1.0e-3)")
    low, high = ends
    if not low < high:
        raise InputError(f"{shown}: {name}: the range from {low} to {high} is empty")
    if how == "log-uniform" and not low > 0:
        raise InputError(f"{shown}: {name}: a logarithmic range begins above 0, not at {low}")
    low, high = (_typed(name, end, shown) for end in ends)
    if not _is_number(low) or not _is_number(high):
        raise InputError(f"{shown}: {name} is no number: give a list of values")
    whole = all(isinstance(end, int) for end in ends) and "int" in str(searchable()[name])
    return Dimension(name=name, low=low, high=high, log=how == "log-uniform", whole=whole)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _typed(name: str, value: Any, shown: str) -> Any:
    """The value as the option's own parser makes it."""
    if value is None:
        if type(None) in get_args(searchable()[name]):
            return None
        raise InputError(f"{shown}: {name} cannot be null")
    rest = name.rpartition(".")[2]
    alone = dataclasses.make_dataclass("Alone", [(rest, searchable()[name])], kw_only=True)
    try:
        return getattr(parse_options(alone, "train", option_words(alone, {rest: value}, shown)), rest)
    except InputError as error:
        raise InputError(f"{shown}: {name}: {error}") from error


def check_space(space: Space, options: Options) -> None:
    """Raises InputError for a value that goes together with no drawn values of the others."""
    for each in space:
        for value in each.choices if each.choices is not None else (each.low, each.high):
            refused = None
            for number in range(TRIES):
                others = {other.name: other.draw(0, number) for other in space}
                try:
                    with_settings(options, {**others, each.name: value})
                except ValueError as error:
                    refused = refused or error
                    continue
                break
            else:
                raise InputError(f"the search space: {each.name}: {refused}") from refused
