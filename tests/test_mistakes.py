"""Mistakes of a person are told at once: before anything is imported that takes seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

MISTAKES = """
train pretrain_brt
train pretrain_bert corpus.txt
train pretrain_bert data.tran=corpus.txt
train pretrain_bert train.steps=many
train pretrain_bert model.size=huge
train pretrain_bert collator.rate=0.3 train.step=5
train pretrain_bert collator.rate=0.3 train.batch_size=0
train pretrain_bert objective.name=masked_ml
train pretrain_bert collator.name=masked_ml
train pretrain_bert train.budget=soon
train pretrain_bert
train pretrain_bert data.train=nowhere.txt
train clip_image_text data.train=pictures/*.png
train finetune_classification data.train=here.csv model.pretrained=./nowhere
train finetune_classification data.train=here.csv model.pretrained=.
train finetune_classification data.train=here.csv data.unlabelled=nowhere.txt
train pretrain_bert data.train=here.csv report.pairs=nowhere.jsonl
train pretrain_bert data.train=empty.csv
train pretrain_bert data.train=here.csv data.valid=empty.txt
train pretrain_bert data.train=here.csv out=run
train pretrain_bert data.train=here.csv out=taken
train pretrain_bert data.train=here.csv out=here.csv/run
train pretrain_bert data.train=here.csv out=nowhere --resume
prepare pretrain_bert data.train=nowhere.txt
preview pretrain_bert data.train=nowhere.txt
plan finetune_classification data.train=here.csv data.valid=nowhere.csv
curve data.train=here.csv data.valid=nowhere.csv
curve data.train=here.csv data.vald=nowhere.csv
curve data.train=here.csv data.valid=empty.csv
curve data.train=here.csv data.valid=here.csv model.pretrained=./nowhere
curve data.train=here.csv
train pretrain_bert data.train=here.csv train.processes=2
tokenizer nowhere.txt --out tokenizer
tokenizer empty.txt --out tokenizer
predict model nowhere.csv --out said.jsonl
predict model here.csv --out said.jsonl --template a
predict nowhere/at/all here.csv --out said.jsonl
predict nowhere/at/all pictures --out said.jsonl --labels cat,dog
predict encoder pictures --out said.jsonl --labels cat
predict run here.csv --out said.jsonl
predict encoder here.csv --out said.jsonl
predict classifier here.csv --out said.jsonl --text body
predict classifier here.csv --out said.jsonl --pair body
predict classifier here --out said.jsonl
predict classifier empty.csv --out said.jsonl
search index nowhere.csv --out new
search index nowhere.csv --out new --model encoder
search index here.csv --out new --model encoder --text-column body
search index here.csv --out new --model nowhere/at/all
search build nowhere.jsonl --documents here.csv --text here.csv --out new
search build here.csv --documents nowhere.csv --text here.csv --out new
search build here.csv --documents encoder --text here.csv --out new
search build here.csv --documents here.csv --text nowhere.txt --out new
search build here.csv --documents here.csv --text empty.txt --out new
search build here.csv --documents here.csv --encoder ./nowhere --out new
search build here.csv --documents here.csv --text here.csv --out new --beir nowhere
search build here.csv --documents here.csv --text here.csv --out new --budget soon
search build here.csv --documents here.csv --text here.csv --out new --set pairs.train.step=1
search build here.csv --documents here.csv --text here.csv --out taken
search mine nowhere.csv --out mined.jsonl
search mine here.csv --out mined.jsonl --corpus nowhere.csv
search mine here.csv --out mined.jsonl --model nowhere/at/all
search mine here.csv --out mined.jsonl --reranker run
report nowhere
report taken
report encoder
report run pair=here.csv
report run documents=many
report run pairs=nowhere.jsonl
report run against=taken
quickstart --budget soon
quickstart --out taken
"""


OF_SEARCH = """
search evaluate nowhere here
search evaluate index nowhere
search evaluate index --queries here.csv
search evaluate index --queries here.csv --qrels nowhere.tsv
search evaluate index here --mode dens
search evaluate index here --measures ndgc
search evaluate index here --baseline dense
search evaluate index here --reranker nowhere/at/all
search evaluate --qrels here/qrels/test.tsv --compare nowhere.trec
search index here.csv --out new --reranker run
search query nowhere one
search query index one --reranker nowhere/at/all
search query index one --mode dense
search add index nowhere.csv
search delete index nothing
search serve nowhere
"""
"""What opens an index, which is made with numpy."""


OF_TABLES = """
train pretrain_bert data.train=here.csv data.text=body
train finetune_classification data.train=here.csv data.label=labl
train finetune_ranking data.train=here.csv data.columns.query=ask
preview pretrain_bert data.train=here.csv data.text=body
"""
"""What reads the head of a table, with pandas and pyarrow."""


def test_a_mistake_is_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    """Not timed: what makes a line late is what is imported before it, torch and transformers, which take seconds."""
    files = {
        "here.csv": "text,label\none,1\n",
        "empty.csv": "",
        "empty.txt": "",
        "taken/notes.md": "words",
        "run/recipe.json": "{}",
        "encoder/config.json": '{"architectures": ["BertModel"]}',
        "classifier/config.json": '{"architectures": ["BertForSequenceClassification"]}',
        "here/queries.jsonl": '{"_id": "q", "text": "one"}\n',
        "here/qrels/test.tsv": "q 0 0 1\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    lists = (MISTAKES, OF_SEARCH, OF_TABLES)
    mistakes, of_search, of_tables = (commands.strip().splitlines() for commands in lists)
    code = (
        "import sys; from sslnlp.cli import run_command\n"
        "heavy = {'torch', 'transformers', 'datasets', 'evaluate', 'scipy', 'numpy'}\n"
        "def tell(commands):\n"
        "    for command in commands:\n"
        "        assert run_command(command.split()) == 2, command\n"
        "        assert not heavy & set(sys.modules), (command, heavy & set(sys.modules))\n"
        f"tell({mistakes})\n"
        "heavy -= {'scipy', 'numpy'}\n"
        "assert run_command(['search', 'index', 'here.csv', '--out', 'index']) == 0\n"
        f"tell({of_search})\n"
        "heavy -= {'datasets'}\n"
        f"tell({of_tables})\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert [line.startswith("error: ") for line in said] == [True] * len(mistakes + of_search + of_tables), said
    shutil.rmtree(tmp_path / "index")
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == files.keys()
    assert len(list(tmp_path.iterdir())) == len({name.partition("/")[0] for name in files})
