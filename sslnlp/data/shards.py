"""Preparation in shards: every machine tokenises its share of the documents, and joining gives the single run's store.

Shard i of n (i counts from 1) has its share of the documents (see `dealing`). What depends on the whole corpus (which
copy of a duplicate is the first, which documents of small hash are held out) is not decided by a shard: it notes the
hash and length of each of its documents, and the join makes the same decisions as a single run, from the same numbers
in the same order.

    shards-<key>/2-of-8/   store/ (see `store`)  notes.npy (NOTE, one a document)  pieces.npy  shard.json
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from sslnlp.data.config import DataConfig
from sslnlp.data.dealing import Shard, read_share
from sslnlp.data.joining import Parts
from sslnlp.data.prepare import Prepared, bars, join, opened, prepared
from sslnlp.errors import UserError
from sslnlp.locks import in_turn


def prepare_shard(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    shard: Shard,
    *,
    cache_dir: str | Path,
) -> Path:
    """Read and tokenise one shard of `data.train`, and return its folder; a killed one goes on where it was.

    Nothing is done when the shard is there already. Raises `UserError` for a wrong source.
    """
    train, _, key = opened(config, tokenizer, cache_dir)
    root = Path(config.cache or cache_dir)
    final = root / f"shards-{key}" / str(shard)
    with in_turn(root, f"shards-{key}-{shard}"):
        if not (final / "shard.json").exists():
            aside = final.with_name(f".{final.name}.building")
            aside.mkdir(parents=True, exist_ok=True)
            with bars() as bar:
                store = read_share(
                    config, train, shard, tokenizer, aside,
                    fingerprint=f"{key}-{shard}", advance=bar(f"shard {shard.number}/{shard.of}", None),
                )  # fmt: skip
            facts = {"fingerprint": key, "shard": shard.number, "of": shard.of, "documents": len(store)}
            (aside / "shard.json").write_text(json.dumps(facts) + "\n")
            shutil.rmtree(final, ignore_errors=True)
            os.replace(aside, final)
    return final


def merge_shards(config: DataConfig, tokenizer: PreTrainedTokenizerBase, *, cache_dir: str | Path) -> Prepared:
    """Join all shards into the store that `prepare_text` makes, byte for byte; a later run finds it under that name.

    Raises `UserError` when shards are missing, or were made from other text, another tokenizer or other options.
    """
    train, valid, key = opened(config, tokenizer, cache_dir)
    root = Path(config.cache or cache_dir)
    final = root / f"text-{key}"
    with in_turn(root, final.name):
        if not (final / "facts.json").exists():
            parts = Parts(_complete(root, key))
            aside = root / f".{final.name}.joining"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            with bars() as bar:
                join(config, tokenizer, train, valid, parts, aside, key, bar)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(aside, final)
    return prepared(final)


def _complete(root: Path, key: str) -> list[Path]:
    """The folders of all shards of one set. Raises `UserError` when there is no whole set."""
    place = root / f"shards-{key}"
    sets: dict[int, dict[int, Path]] = {}
    for path in place.glob("*-of-*/shard.json"):
        facts = json.loads(path.read_text())
        if facts["fingerprint"] != key:
            raise UserError(f"{path.parent} was made from other text, another tokenizer or other data keys; remove it")
        sets.setdefault(facts["of"], {})[facts["shard"]] = path.parent
    whole = [found for of, found in sets.items() if len(found) == of]
    if whole:
        return list(whole[0].values())
    if not sets:
        others = " (those there are were made from other text, another tokenizer or other data keys)"
        raise UserError(
            f"no shards of this recipe are in {root}{others if any(root.glob('shards-*')) else ''}: make them with "
            "--shard 1/n ... n/n and the same keys, in the same data.cache or copied into it"
        )
    of, found = max(sets.items(), key=lambda one: len(one[1]) / one[0])
    missing = [str(number) for number in range(1, of + 1) if number not in found]
    one = len(missing) == 1
    raise UserError(
        f"shard{'' if one else 's'} {', '.join(missing)} of {of} {'is' if one else 'are'} missing in {place}: "
        + (f"make it with --shard {missing[0]}/{of}" if one else f"make each with --shard i/{of}")
    )
