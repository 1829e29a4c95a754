"""`sslnlp prepare`: the token store of a recipe, made before the training, on one machine or in shards on several."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from sslnlp.data.dealing import Shard
from sslnlp.data.prepare import prepare_text
from sslnlp.data.shards import merge_shards, prepare_shard
from sslnlp.errors import UserError
from sslnlp.recipe.build import cache_folder, resolve
from sslnlp.recipe.schema import Recipe
from sslnlp.recipe.tokenizing import text_tokenizer
from sslnlp.writing import room_in


def prepare(recipe: Recipe, *, shard: Shard | None = None, merge: bool = False, console: Console | None = None) -> Path:
    """Make the token store that `sslnlp train` with the same `data.*` and `tokenizer.*` keys then finds.

    With `shard`, only that share of the documents is tokenised; with `merge`, the shards are joined. Returns the
    folder. Raises `UserError` for a recipe that reads tables, and for missing or wrong shards.
    """
    if shard is not None and merge:
        raise UserError("give --shard i/n or --merge, not both: every shard is made first, then they are joined")
    recipe, _ = resolve(recipe)
    if recipe.collator_class.reads != "tokens":
        raise UserError(f"{recipe.name} reads a table, which is not tokenised beforehand: there is nothing to prepare")
    cache = cache_folder(recipe)
    with room_in(cache):
        return _prepare(recipe, cache, shard, merge, console or Console(stderr=True))


def _prepare(recipe: Recipe, cache: Path, shard: Shard | None, merge: bool, console: Console) -> Path:
    tokenizer, _ = text_tokenizer(recipe, cache)
    if shard is not None:
        folder = prepare_shard(recipe.data, tokenizer, shard, cache_dir=cache)
        made = sum(1 for _ in folder.parent.glob(f"*-of-{shard.of}/shard.json"))
        then = "join them with --merge" if made == shard.of else f"{made} of {shard.of} are here"
        console.print(
            f"shard {shard.number}/{shard.of}: {folder}; {then}", highlight=False, markup=False, soft_wrap=True
        )
        return folder
    join = merge_shards if merge else prepare_text
    done = join(recipe.data, tokenizer, cache_dir=cache)
    shown = "  ".join(f"{name} {value:,}" for name, value in done.facts.items() if isinstance(value, int))
    console.print(f"prepared: {done.train.path.parent}  {shown}", highlight=False, markup=False, soft_wrap=True)
    return done.train.path.parent
