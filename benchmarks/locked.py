"""One update of CLIP with a locked text tower: its states read once, as runs do, beside the tower run in every update.

    python -m benchmarks.locked TOWER PICTURES... [--batch 128] [--steps 2] [--rounds 4] [--out FILE.json]

TOWER is a folder of a text tower with its tokenizer, PICTURES are files with captions. Contenders take turns on one
core, from pictures and captions to the update; a ViT `tiny` with patches of 16 pixels learns beside the tower. What the
first pass over the captions takes is said before the turns.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import command, compare, positive

WARM_UP = 2
"""Updates before the first turn."""


def contender(gate: Callable[..., None], *, keys: list[str], keep: bool, steps: int) -> None:
    """Updates in turns; `keep`: the captions' states were read before."""
    import time

    import torch

    from sslnlp.recipe import build_objective, build_parts, load_recipe, resolve
    from sslnlp.recipe.rows import remember

    parts = build_parts(resolve(load_recipe("clip_image_text", keys))[0])
    objective = build_objective(parts)
    began = time.process_time()
    kept = keep and remember(parts, objective)
    first_pass = time.process_time() - began
    objective.train()
    optimizer = torch.optim.AdamW((p for p in objective.parameters() if p.requires_grad), lr=1e-4)
    size, done = parts.recipe.train.batch_size, 0

    def updates(number: int) -> None:
        nonlocal done
        for _ in range(number):
            batch = parts.collator(parts.stream.rows(range(done * size, (done + 1) * size)))
            objective(batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            done += 1

    updates(WARM_UP)
    gate(kept=kept, first_pass=first_pass)
    while True:
        updates(steps)
        gate(units=steps * size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tower")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--caption", default="caption", help="the column of captions")
    parser.add_argument("--batch", type=positive, default=128)
    parser.add_argument("--steps", type=positive, default=2, help="updates of a turn")
    parser.add_argument("--rounds", type=positive, default=4)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keys = [f"data.train={json.dumps(arguments.pictures)}", f"data.columns.caption={arguments.caption}"]
    keys += [f"model.pretrained={arguments.tower}", "objective.lock=text", "objective.patch_size=16"]
    keys += [f"train.batch_size={arguments.batch}", "train.epochs=20", "data.valid_fraction=0.05"]
    options: dict[str, Any] = {"keys": keys, "steps": arguments.steps}
    said: dict[str, Any] = {}
    both = {name: (contender, {**options, "keep": name == "read once"}) for name in ("read once", "in every update")}
    found = compare(both, rounds=arguments.rounds, unit="pictures", check=said.update)
    found.show("CLIP with a locked text tower")
    print(f"the first pass over the captions: {said['read once']['first_pass']:.1f} s of CPU")
    if arguments.out:
        found.write(arguments.out)


if __name__ == "__main__":
    command(main)
