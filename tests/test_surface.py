"""What others rely on does not change unseen: the command line, the keys, who imports whom, types and style.

A new option or key is a decision: it is made here, in the same diff.
"""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import typer

from sslnlp.cli import app
from sslnlp.collators import COLLATORS, get_collator
from sslnlp.objectives import OBJECTIVES, get_objective
from sslnlp.recipe.schema import options_of, public_keys

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sslnlp"

COMMANDS = {
    "quickstart": "--budget --out",
    "tokenizer": "data --algorithm --lowercase --memory-mb --out --text --vocab-size",
    "train": "recipe overrides --resume",
    "prepare": "recipe overrides --merge --shard",
    "preview": "recipe overrides --rows",
    "plan": "recipe overrides",
    "report": "runs",
    "curve": "overrides --draws --keep --labels --method --out --seeds",
    "predict": "model data --batch-size --labels --out --overwrite --pair --template --text --top",
    "push": "run repo_id --private --revision",
    "search build": "pairs --beir --budget --documents --encoder --out --set --text",
    "search index": (
        "data --ann --batch-size --dtype --id-column --image-column --language --model --no-whiten --out --reranker "
        "--text-column --title-column --whiten"
    ),
    "search add": "index data --batch-size --id-column --image-column --model --replace --text-column --title-column",
    "search delete": "index ids --ids",
    "search mine": (
        "pairs --batch-size --bm25 --corpus --corpus-limit --depth --language --limit --margin --model --negatives "
        "--out --overwrite --positive-column --query-column --reranker --sample --seed --skip-top --text-column "
        "--title-column"
    ),
    "search query": (
        "index text --ann --depth --fusion --k --mode --model --no-verify --picture --rerank-weight --reranker "
        "--verify -k"
    ),
    "search evaluate": (
        "index beir --ann --baseline --compare --depth --fusion --json --measures --mode --model --no-verify --qrels "
        "--queries --rerank-weight --reranker --run --verify"
    ),
    "search serve": "index --ann --fusion --host --model --no-verify --port --rerank-weight --reranker --verify",
}

KEYS = """
adapt.batch_size adapt.lr adapt.objective adapt.seq_length adapt.steps
collator.name
data.beir data.cache data.columns data.deduplicate data.draw data.label data.labels_per_class data.licence data.limit
data.out_of_scope data.packing data.processes data.seq_length data.split_text data.streaming data.text data.train
data.unlabelled data.valid data.valid_fraction data.valid_rows data.valid_tokens
model.architecture model.config model.dropout model.embedding_init model.fresh model.lora_rank model.pretrained
model.reinit_layers model.size name objective.name out
report.beir report.documents report.every report.label report.pairs report.pictures report.probe_test
report.probe_train report.sts report.templates report.texts
tokenizer.algorithm tokenizer.lowercase tokenizer.memory_mb tokenizer.path tokenizer.vocab_size
train.accumulate train.batch_size train.betas train.budget train.clip train.compile train.decay train.ema
train.embedding_lr_scale train.epochs train.eps train.eval_every train.keep train.keep_best train.layer_decay
train.log_every train.lr train.on_nonfinite train.optimizer train.precision train.relative_lr train.save_every
train.schedule train.seed
train.steps train.trackers train.warmup train.weight_decay train.workers
"""

COLLATOR_OPTIONS = {
    "image_text": "augment captions crop_min image_size max_length patch_size views",
    "image_views": "augment crop_min image_size patch_size views",
    "autoencoding": "rate unit",
    "causal_lm": "",
    "classification": "label_names max_length",
    "denoising": "delete eval_rate infill mask mean_span permute rate rate_end rotate",
    "electra": "eval_rate rate rate_end replace unit",
    "fim": "rate spm",
    "hybrid": "eval_rate masked_share rate rate_end replace unit",
    "joint": "parts",
    "masked_diffusion": "",
    "masked_lm": "eval_rate rate rate_end replace unit",
    "masked_patches": "augment image_size patch_size rate",
    "multi_label": "label_names max_length",
    "pair_views": (
        "crop_max crop_min distance document_length document_prefix gap min_tokens num_negatives query_length "
        "query_prefix rate views"
    ),
    "prefix_lm": "prefix_max prefix_min",
    "ranking": "document_length document_prefix num_negatives query_length query_prefix",
    "reranking": "document_prefix max_length num_negatives query_length query_prefix",
    "retromae": "eval_rate rate rate_end replace unit",
    "regression": "label_names max_length",
    "rotation": "augment image_size patch_size",
    "same_class": "label_names max_length",
    "segment_order": "eval_rate rate rate_end replace segments unit",
    "sentence_order": "eval_rate rate rate_end replace unit",
    "span_corruption": "mean_span rate",
    "tagging": "joiner label_names max_length",
    "tsdae": "rate unit",
    "ul2": "modes r s x",
    "ul2_decoder": "modes r s x",
    "views": "crop_max crop_min distance gap min_tokens rate views",
}

TWO_TOWERS = (
    "beside beside_weight dimension image_size lock mini_batch_size patch_dropout patch_size temperature unlock vision"
)
OBJECTIVE_OPTIONS = {
    "barlow_twins": "dimensions mini_batch_size off_diagonal pooling projector train_layers whitening",
    "byol": "dimensions hidden mini_batch_size momentum momentum_end pooling train_layers whitening",
    "causal_lm": "",
    "classification": "class_weights head label_smoothing ordinal pseudo_labels",
    "clip": TWO_TOWERS,
    "data2vec": "beta layers momentum momentum_end",
    "denoising": "",
    "electra": "corrective corrective_weight discriminator_weight generator_size temperature",
    "few_shot": "neighbours pooling pseudo_labels strength temperature whitening",
    "fim": "",
    "hybrid": "masked_weight",
    "info_nce": "dimensions learn_temperature mini_batch_size pooling symmetric temperature train_layers whitening",
    "joint": "options weights",
    "late_interaction": "temperature",
    "masked_diffusion": "",
    "masked_lm": "label_smoothing",
    "masked_patches": "decoder_layers decoder_width normalise",
    "moco": "dimensions mini_batch_size momentum momentum_end pooling queue symmetric temperature train_layers "
    "whitening",
    "multi_label": "",
    "prefix_lm": "",
    "ranking": "distill distill_temperature distill_weight mini_batch_size pooling symmetric temperature whitening",
    "regression": "mean std",
    "reranking": "loss",
    "retromae": "decoder_rate whitening",
    "rotation": "",
    "segment_order": "masked_weight order_weight segments",
    "sentence_order": "masked_weight order_weight",
    "siglip": TWO_TOWERS,
    "span_corruption": "",
    "tagging": "",
    "tsdae": "layers pooling whitening",
    "ul2": "",
    "ul2_decoder": "",
    "vae": "beta cycles free_bits latent layers ramp whitening word_dropout",
    "vicreg": "covariance dimensions invariance mini_batch_size pooling projector train_layers variance whitening",
}

# Who may import whom: a module imports from its own level and the levels above it in this list.
LEVELS = [
    "errors types arrays rng __init__",
    "registry locks writing quiet text_files scripts",
    "varlen keyed nn attention adapt distributed label_spreading vector_map lora pictures augment picture_encoder",
    "tokenizer",
    "architectures model_config vision models modes masks packed last_layer heads generation embedding_init",
    "data",
    "collators objectives",
    "optim muon checkpoint metrics progress windows train_config sums signals finite "
    "averaging budget precision sharding heap",
    "train evaluation search export card hub predict predict_rows predict_pictures",
    "recipe report",
    "text_to_search text_to_search_cli predict_cli curve quickstart cli __main__",
]
# `card` and `search` may be imported by anything of their level; these pairs may not see each other.
STRANGERS = [("collators", "objectives"), ("objectives", "collators"), ("data", "collators"), ("train", "recipe")]


def options(command: str) -> str:
    found = typer.main.get_command(app)
    for part in command.split():
        found = found.commands[part]  # type: ignore[attr-defined]
    names = [name for p in found.params for name in (*p.opts, *p.secondary_opts) if name != "--help"]
    arguments = [p.name for p in found.params if p.param_type_name == "argument"]
    return " ".join([*arguments, *sorted(name for name in names if name.startswith("-"))])


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_the_command_line(command: str) -> None:
    assert options(command) == COMMANDS[command]


def test_no_other_commands() -> None:
    group = typer.main.get_command(app)
    names = [*group.commands, *(f"search {name}" for name in group.commands["search"].commands)]  # type: ignore[attr-defined]
    assert {name for name in names if name != "search"} == set(COMMANDS)


def test_keys_of_a_recipe() -> None:
    assert public_keys() == sorted(KEYS.split())


def test_options_of_the_registered_classes() -> None:
    assert {name: " ".join(sorted(options_of(get_collator(name)))) for name in COLLATORS} == COLLATOR_OPTIONS
    assert {name: " ".join(sorted(options_of(get_objective(name)))) for name in OBJECTIVES} == OBJECTIVE_OPTIONS


# --- layers ----------------------------------------------------------------------------------------------------------


def part_of(module: str) -> str:
    """`sslnlp.data.sources` -> `data`."""
    return module.split(".")[1] if "." in module else "__init__"


def statements(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """What stands in a file, functions and branches included; nothing that only type checkers read."""
    for node in body:
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        yield node
        inside = (ast.stmt, ast.excepthandler, ast.match_case)  # no expression imports, and most of a file are those
        yield from statements(child for child in ast.iter_child_nodes(node) if isinstance(child, inside))


def imports(path: Path) -> set[str]:
    """The parts of the package that a file imports, also inside functions; imports for type checkers do not count."""
    modules: set[str] = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "sslnlp":
            # `from sslnlp import rng` names a part; `from sslnlp import __version__` does not.
            modules |= {f"sslnlp.{alias.name}" for alias in node.names if not alias.name.startswith("__")}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules.add(node.module)
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
    return {part_of(module) for module in modules if module.split(".")[0] == "sslnlp"}


FILES = sorted(PACKAGE.rglob("*.py"))


def part_of_file(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_part_has_a_level() -> None:
    assert {part_of_file(path) for path in FILES} == {name for level in LEVELS for name in level.split()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    level = {name: n for n, names in enumerate(LEVELS) for name in names.split()}
    own, found = part_of_file(path), imports(path)
    upward = {name for name in found if level[name] > level[own]}
    assert not upward, f"{own} imports {upward}, which stand above it"
    strange = {b for a, b in STRANGERS if a == own} & found
    assert not strange, f"{own} and {strange} do not know each other"


def test_contributors_are_told_the_same_levels() -> None:
    told = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Who may import whom")[2].split("```")[1]
    levels = [set(level.replace(",", " ").replace("|", " ").split()) for level in told.split("<-")]
    assert levels == [{name for name in level.split() if not name.startswith("__")} for level in LEVELS]


@pytest.mark.parametrize("package", ["collators", "curve", "data", "evaluation", "objectives", "recipe", "report"])
def test_what_is_imported_on_first_use_is_there(package: str) -> None:
    module = importlib.import_module(f"sslnlp.{package}")
    for name in module.__all__:
        assert not isinstance(getattr(module, name), ModuleType), f"{name} is a module, which hides what it promises"
    with pytest.raises(AttributeError, match=f"'sslnlp.{package}' has no attribute 'nothing'"):
        _ = module.nothing


def test_the_loop_knows_only_the_base_classes() -> None:
    for name in ("train", "train_config", "windows", "budget", "sums"):
        modules = {
            node.module
            for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module
        }
        known = {module for module in modules if module.startswith(("sslnlp.objectives", "sslnlp.collators"))}
        assert known <= {"sslnlp.objectives.base", "sslnlp.collators.base"}


def test_no_branch_on_an_objectives_name() -> None:
    """The loop, the recipe and the export never spell a registered name."""
    names = set(OBJECTIVES) | set(COLLATORS)
    files = [PACKAGE / f"{name}.py" for name in ("train", "windows", "budget", "models", "cli")]
    files += [path for part in ("recipe", "data", "export") for path in (PACKAGE / part).glob("*.py")]
    checked = 0
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare | ast.Match):
                checked += 1
                spelt = {leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)} & names
                assert not spelt, f"{path.name}: compares with {spelt}"
    assert checked > 100  # the guard guards something


# --- style and types -------------------------------------------------------------------------------------------------


def check(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff() -> None:
    pytest.importorskip("ruff")
    check("ruff", "check", "sslnlp", "recipes", "tests")


def test_mypy_strict() -> None:
    pytest.importorskip("mypy")
    check("mypy")
