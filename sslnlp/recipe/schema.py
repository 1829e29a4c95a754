"""What a recipe is: a dataclass of dataclasses, read from Python, JSON and `key=value`, always strictly."""

from __future__ import annotations

import copy
import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sslnlp.collators import COLLATORS, get_collator
from sslnlp.data.config import DataConfig
from sslnlp.errors import UserError, suggest
from sslnlp.model_config import ModelConfig
from sslnlp.objectives import OBJECTIVES, get_objective
from sslnlp.recipe.adapt_config import AdaptConfig
from sslnlp.recipe.overrides import coerce, fields_of
from sslnlp.registry import check_name, keywords_of
from sslnlp.report.config import ReportConfig
from sslnlp.train_config import TrainConfig

if TYPE_CHECKING:
    from sslnlp.collators.base import Collator
    from sslnlp.objectives.base import Objective

Algorithm = Literal["bpe", "wordpiece", "unigram", "bytes"]

_SET_BY_THE_RUN = {"tokenizer", "seed", "horizon", "table", "training"}
"""Collator fields that are facts of the run, not options of a recipe."""


DURATIONS = ("train.steps", "train.epochs", "train.budget")
_OF_CLASSES = ("objective.", "collator.")
"""Beginnings of keys that a class declares, which brings torch."""


@dataclass(init=False)
class Options:
    """A registered class by name and its options: `Options("masked_lm", rate=0.3)`.

    The options are the class's own keyword arguments, bound strictly when the recipe is resolved.
    """

    name: str | None
    options: dict[str, Any]

    def __init__(self, name: str | None = None, **options: Any) -> None:
        self.name, self.options = name, options


@dataclass(kw_only=True)
class TokenizerConfig:
    """Which tokenizer: an existing one, the pretrained model's own, or one trained on `data.train`."""

    path: str | None = None
    """A folder or hub name. None: the tokenizer of `model.pretrained`, else a new one trained on the data."""
    algorithm: Algorithm = "bpe"
    vocab_size: int = 8192
    """Specials counted. `algorithm=bytes` has its 256 bytes and no choice."""
    lowercase: bool = False
    memory_mb: int = 1024
    """MiB that training may take: text is read once, and the rarest words beyond it are dropped."""


@dataclass(kw_only=True)
class Recipe:
    """One run, from text to export. Every field is a key of the command line (`data.train=...`, `train.steps=...`)."""

    objective: Options
    collator: Options = field(default_factory=Options)
    """`name=None`: the objective's own collator."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    out: str = "out/run"
    name: str = "recipe"
    given: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    """Keys somebody chose on the command line or in a recipe.json: a stage never inherits over them."""

    @property
    def objective_class(self) -> type[Objective]:
        if self.objective.name is None:
            raise UserError("the recipe names no objective: give objective.name (for example masked_lm)")
        return get_objective(self.objective.name).bound(self.objective.options)

    @property
    def collator_class(self) -> type[Collator]:
        return get_collator(self.collator.name or self.objective_class.collator).bound(self.collator.options)


SECTIONS = tuple(f.name for f in dataclasses.fields(Recipe) if f.init and f.name not in {"out", "name"})


def options_of(cls: type[Objective] | type[Collator]) -> dict[str, Any]:
    """The options a class accepts and their annotations: an objective's keyword-only arguments, a collator's fields."""
    from sslnlp.collators.base import Collator

    if issubclass(cls, Collator):
        return {name: kind for name, kind in fields_of(cls).items() if name not in _SET_BY_THE_RUN}
    return keywords_of(cls.__init__)


def bind(section: str, cls: type[Objective] | type[Collator], options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` checked against what `cls` accepts and coerced to its annotations; `UserError` otherwise."""
    accepted = options_of(cls)
    bound = {}
    for name, value in options.items():
        if name not in accepted:
            raise UserError(f"unknown key '{section}.{name}' for {cls.name}.{suggest(name, accepted)}")
        bound[name] = coerce(f"{section}.{name}", value, accepted[name])
    return bound


def override(recipe: Recipe, pairs: Mapping[str, Any]) -> Recipe:
    """`recipe` with dotted keys replaced, strictly: unknown keys and values of the wrong type are a `UserError`.

    Choosing another `objective.name` or `collator.name` forgets the options written for the old one.
    """
    recipe = copy.deepcopy(recipe)
    recipe.given |= set(pairs)
    if chosen := [key for key in DURATIONS if key in pairs]:
        for key in DURATIONS:  # saying how long replaces what the recipe says
            if key not in chosen:
                setattr(recipe.train, key.partition(".")[2], None)
    if "train.lr" in pairs:  # it replaces a rate in proportion to the weights, which replaces it
        if coerce("train.relative_lr", pairs.get("train.relative_lr"), float | None) is not None:
            raise UserError("give one of train.lr and train.relative_lr, not both")
        recipe.train.relative_lr = None
    for section in ("objective", "collator"):
        if (key := f"{section}.name") in pairs:
            _rename(recipe, section, coerce(key, pairs[key], str | None))
    for key, value in pairs.items():
        if not key.startswith(_OF_CLASSES):
            _set(recipe, key, value)
    for section in SECTIONS[2:]:
        setattr(recipe, section, dataclasses.replace(getattr(recipe, section)))  # runs its own checks once more
    for key, value in pairs.items():  # last: what is wrong with the others does not wait for torch
        if key.startswith(_OF_CLASSES) and key not in ("objective.name", "collator.name"):
            _set(recipe, key, value)
    return recipe


def _rename(recipe: Recipe, section: str, name: str | None) -> None:
    current: Options = getattr(recipe, section)
    if name == current.name:
        return
    if name is not None:  # a class brings torch, which a name that is none does not wait for
        check_name(section, name, OBJECTIVES if section == "objective" else COLLATORS)
    before = recipe.collator_class if recipe.objective.name else None
    usual = before is not None and recipe.collator.name in (None, recipe.objective_class.collator)
    setattr(recipe, section, Options(name))
    if section == "objective" and usual:  # another objective brings its own collator, as the first one had its own
        recipe.collator.name = None
    if before is not None and recipe.collator_class is not before:
        recipe.collator = Options(recipe.collator.name)


def _set(recipe: Recipe, key: str, value: Any) -> None:
    section, _, rest = key.partition(".")
    if section in ("out", "name") and not rest:
        setattr(recipe, section, coerce(key, value, str))
        return
    if section not in SECTIONS:
        raise UserError(f"unknown key {key!r}.{suggest(section, (*SECTIONS, 'out', 'name'))}")
    config = getattr(recipe, section)
    if not rest:
        first = "name" if isinstance(config, Options) else next(iter(fields_of(config)))
        raise UserError(f"{key!r} is a group of keys: give one of them, as {section}.{first}=...")
    if isinstance(config, Options):
        cls = recipe.objective_class if section == "objective" else recipe.collator_class
        config.options.update(bind(section, cls, {rest: value}))
        return
    name, _, inner = rest.partition(".")
    accepted = fields_of(config)
    if name not in accepted:
        near, groups = suggest(name, accepted), [g for g in SECTIONS if name in fields_of(getattr(recipe, g))]
        raise UserError(f"unknown key {key!r}." + (f" Did you mean '{groups[0]}.{rest}'?" if groups else near))
    if inner:
        _set_inside(config, key, name, inner, value, accepted[name])
    else:
        setattr(config, name, coerce(key, value, accepted[name]))


def _set_inside(config: Any, key: str, name: str, inner: str, value: Any, annotation: Any) -> None:
    # `model.config.hidden_size=64`: one entry of a free mapping.
    current = getattr(config, name)
    if not isinstance(current, Mapping):
        raise UserError(f"unknown key {key!r}: {name} is a single value, not a group of keys")
    kinds = typing.get_args(annotation) or (str, Any)
    setattr(config, name, {**current, inner: coerce(key, value, kinds[-1])})


def public_keys() -> list[str]:
    """Every fixed key of the command line, sorted. The options of objectives and collators come on top."""
    keys = ["out", "name", "objective.name", "collator.name"]
    hints = typing.get_type_hints(Recipe)
    for section in SECTIONS[2:]:
        keys += [f"{section}.{name}" for name in fields_of(hints[section])]
    return sorted(keys)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain data that `from_dict` reads back: what stands under `recipe` in recipe.json."""
    plain: dict[str, Any] = {"name": recipe.name, "out": recipe.out}
    for section in SECTIONS:
        config = getattr(recipe, section)
        if isinstance(config, Options):
            plain[section] = {"name": config.name, **config.options}
        else:
            plain[section] = dataclasses.asdict(config)
    jsonable: dict[str, Any] = json.loads(json.dumps(plain))
    return jsonable


def from_dict(plain: Mapping[str, Any]) -> Recipe:
    """The inverse of `to_dict`, as strict as the command line. Every key counts as given."""
    pairs = flat(plain)
    if pairs.get("train.relative_lr") is not None:
        pairs.pop("train.lr", None)
    return override(Recipe(objective=Options(None)), pairs)


def flat(plain: Mapping[str, Any]) -> dict[str, Any]:
    """What `to_dict` made, by the keys of the command line: `train.lr`, not `lr` inside `train`."""
    pairs: dict[str, Any] = {}
    for section, value in plain.items():
        if isinstance(value, Mapping):
            pairs |= {f"{section}.{name}": item for name, item in value.items()}
        else:
            pairs[section] = value
    return pairs
