"""Pushing with the real client to a hub on the loopback, through everything that goes wrong on the way."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from sslnlp import hub as hub_module
from sslnlp.errors import UserError
from sslnlp.export import export_model
from sslnlp.hub import push
from tests.hub_server import Hub


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["[PAD]", "[UNK]", "[MASK]", "a", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, pad_token_id=0,
    )  # fmt: skip
    run = tmp_path_factory.mktemp("run")
    (run / "state" / "step-00000001").mkdir(parents=True)
    (run / "state" / "step-00000001" / "model.pt").write_bytes(b"private")
    (run / "metrics.jsonl").write_text("{}\n")
    export_model(
        BertForMaskedLM(config), tokenizer, run / "export", card={"title": "t"}, recipe={"seed": 0}, max_length=32
    )
    return run / "export"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "token-of-me")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # Without this our own pauses alone would take seven seconds; the client's own are its business.
        monkeypatch.setattr(hub_module, "_FIRST_WAIT_S", 0.01)
        yield server


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


_LOAD = """
import json, sys, torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
repo, revision, text = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(repo, revision=revision)
model = AutoModelForMaskedLM.from_pretrained(repo, revision=revision).eval()
batch = tokenizer(text, return_tensors="pt")
with torch.no_grad():
    print(json.dumps({"ids": batch["input_ids"].tolist(), "logits": model(**batch).logits.tolist()}))
"""
TEXT = "a quick [MASK] fox"


def said(tokenizer: Any, model: Any) -> tuple[list[list[int]], torch.Tensor]:
    """What stock classes make of a text: its ids and their logits."""
    batch = tokenizer(TEXT, return_tensors="pt")
    with torch.no_grad():
        return batch["input_ids"].tolist(), model.eval()(**batch).logits


def test_what_is_pushed_loads_into_an_empty_cache(
    hub: Hub, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = push(export.parent, "me/tiny", private=True, revision="v1")

    assert url == f"{hub.url}/me/tiny/tree/v1"
    assert hub.repositories["me/tiny"].private
    assert list(hub.content("me/tiny", "main")) == [".gitattributes"], "only the branch asked for was written"
    pushed = hub.content("me/tiny", "v1")
    del pushed[".gitattributes"]
    assert pushed == files(export), "the export whole, and nothing of state/ or the run's folder"
    assert not constants.HF_HUB_DISABLE_XET, "the switch is put back"

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    place: dict[str, Any] = {"revision": "v1", "cache_dir": tmp_path / "empty"}
    ids, logits = said(
        AutoTokenizer.from_pretrained("me/tiny", **place), AutoModelForMaskedLM.from_pretrained("me/tiny", **place)
    )
    expected_ids, expected = said(AutoTokenizer.from_pretrained(export), BertForMaskedLM.from_pretrained(export))
    assert ids == expected_ids
    assert torch.allclose(logits, expected, atol=1e-6)
    assert any((tmp_path / "empty").rglob("model.safetensors"))


@pytest.mark.slow
def test_what_is_pushed_loads_elsewhere(hub: Hub, export: Path, tmp_path: Path) -> None:
    """In a process that knows nothing of this package."""
    push(export.parent, "me/tiny", private=True, revision="v1")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_", "PYTHONPATH"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "empty"), "HF_TOKEN": "token-of-me"}
    run = subprocess.run(
        [sys.executable, "-c", _LOAD, "me/tiny", "v1", TEXT],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    got = json.loads(run.stdout)
    expected_ids, expected = said(AutoTokenizer.from_pretrained(export), BertForMaskedLM.from_pretrained(export))
    assert got["ids"] == expected_ids
    assert torch.allclose(torch.tensor(got["logits"]), expected, atol=1e-6)


def test_two_503s_at_each_step_are_survived(hub: Hub, export: Path) -> None:
    for step in ("POST /api/repos/create", "POST .*/commit/", "POST .*/branch/", "GET .*/xet-write-token/"):
        hub.fail(step, 503, times=2)
    push(export, "me/tiny", revision="v2")
    assert hub.took("POST .*/commit/") == 3
    if importlib.util.find_spec("hf_xet"):
        assert hub.took("GET .*/xet-write-token/") == 3, "the client would upload through Xet without asking"
    assert "model.safetensors" in hub.content("me/tiny", "v2")
    assert hub.took("PUT /lfs/") == 1, "the tries after the first did not send the weights again"


def test_offline_mode_is_said_at_once(
    hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="offline mode: unset HF_HUB_OFFLINE"):
        push(export, "me/tiny")
    assert hub.requests == []
    assert not [r for r in caplog.records if r.name == "sslnlp.hub"], "it was tried again"


def test_a_model_of_pictures_has_no_tokenizer(hub: Hub, export: Path, tmp_path: Path) -> None:
    tower = shutil.copytree(export, tmp_path / "tower")
    (tower / "tokenizer_config.json").rename(tower / "preprocessor_config.json")
    push(tower, "me/tower")
    assert "preprocessor_config.json" in hub.content("me/tower")


def test_a_connection_cut_in_mid_upload_is_survived(hub: Hub, export: Path) -> None:
    hub.cut("PUT /lfs/")
    push(export, "me/tiny")
    assert hub.took("PUT /lfs/") == 2
    assert hub.content("me/tiny")["model.safetensors"] == (export / "model.safetensors").read_bytes()


def test_a_push_that_died_goes_on_where_it_stopped(hub: Hub, export: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub.fail("POST .*/commit/", 500, times=5)
    with pytest.raises(UserError, match="after 5 attempts") as error:
        push(export, "me/tiny")
    assert "run the same push again" in str(error.value)
    assert "\n" not in str(error.value)
    assert len([r for r in caplog.records if r.name == "sslnlp.hub"]) == 4
    assert hub.took("PUT /lfs/") == 1

    push(export, "me/tiny")
    commits = len(hub.repositories["me/tiny"].commits)
    push(export, "me/tiny")

    assert hub.took("PUT /lfs/") == 1, "the weights travelled once in three pushes"
    assert len(hub.repositories["me/tiny"].commits) == commits, "nothing changed, nothing committed"


def test_a_changed_file_is_sent_alone(hub: Hub, export: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(export, tmp_path / "copy"))
    push(copy, "me/tiny")
    (copy / "README.md").write_text("---\nlicense: mit\n---\n\n# New\n")
    push(copy, "me/tiny")
    assert hub.took("PUT /lfs/") == 1
    assert hub.content("me/tiny")["README.md"] == (copy / "README.md").read_bytes()


def test_files_of_an_older_export_do_not_mix_with_the_new_one(hub: Hub, export: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(export, tmp_path / "other"))
    for folder in ("1_Pooling", "1_MultiVectorMask", "2_Normalize", "3_Dense"):
        (other / folder).mkdir()
        (other / folder / "config.json").write_text("{}")
    for name in ("modules.json", "processor_config.json", "preprocessor_config.json", "NOTES.md"):
        (other / name).write_text("[]")
    push(other, "me/tiny")

    push(export, "me/tiny")

    assert set(hub.content("me/tiny")) == {*files(export), ".gitattributes", "NOTES.md"}


def test_a_model_of_pictures_leaves_no_tokenizer_of_an_older_export(hub: Hub, export: Path, tmp_path: Path) -> None:
    pictures = Path(shutil.copytree(export, tmp_path / "pictures", ignore=shutil.ignore_patterns("tokenizer*")))
    (pictures / "preprocessor_config.json").write_text("{}")
    push(export, "me/tiny")

    push(pictures, "me/tiny")

    assert set(hub.content("me/tiny")) == {*files(pictures), ".gitattributes"}


def test_no_token_at_all_is_one_clear_line(
    hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    with pytest.raises(UserError, match="asks for a token"):
        push(export, "me/tiny")


def test_a_refused_token_is_one_clear_line(hub: Hub, export: Path) -> None:
    with pytest.raises(UserError, match="refused the token") as error:
        push(export, "me/tiny", token="stolen")
    assert "stolen" not in str(error.value)
    assert "\n" not in str(error.value)
    assert hub.repositories == {}
    assert hub.took("POST /api/repos/create") == 1, "what cannot succeed is not tried again"


def test_a_token_given_wins_over_the_environment(hub: Hub, export: Path) -> None:
    push(export, "tiny", token="token-of-other")
    assert list(hub.repositories) == ["other/tiny"], "a bare name goes to the token's owner"


@pytest.mark.parametrize("exists", [True, False])
def test_a_name_taken_by_someone_else_is_one_clear_line(hub: Hub, export: Path, exists: bool) -> None:
    if exists:
        push(export, "other/tiny", token="token-of-other")
    with pytest.raises(UserError, match=r"other/tiny cannot be written .*someone else") as error:
        push(export, "other/tiny")
    assert "\n" not in str(error.value)
    assert ("other/tiny" in hub.repositories) is exists


def test_a_name_taken_by_someone_elses_private_model_is_one_clear_line(hub: Hub, export: Path) -> None:
    push(export, "other/secret", private=True, token="token-of-other")
    hub.fail("POST /api/repos/create", 409)
    with pytest.raises(UserError, match=r"other/secret cannot be written"):
        push(export, "other/secret")


def test_a_gateways_error_page_is_no_traceback(hub: Hub, export: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub.fail("POST /api/validate-yaml", 502, times=2)
    push(export, "me/tiny")
    assert hub.took("POST /api/validate-yaml") > 2
    assert [r.getMessage() for r in caplog.records if r.name == "sslnlp.hub"] == [
        "the hub failed (its answer is not JSON); trying again in 0.01 s",
        "the hub failed (its answer is not JSON); trying again in 0.02 s",
    ]
    assert hub.content("me/tiny")["README.md"] == (export / "README.md").read_bytes()


def test_private_weights_never_go_to_a_public_repository(hub: Hub, export: Path) -> None:
    push(export, "me/tiny")
    before = len(hub.repositories["me/tiny"].commits)
    with pytest.raises(UserError, match="exists and is public"):
        push(export, "me/tiny", private=True)
    assert len(hub.repositories["me/tiny"].commits) == before


def test_a_server_out_of_reach_is_one_clear_line(export: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9 did not take the upload after 5 attempts"):
        push(export, "me/tiny")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HF_ENDPOINT", "localhost:8080", "HF_ENDPOINT=localhost:8080 is no address"),
        ("HF_TOKEN", "“token-of-me”", "the token holds characters that no token has; set HF_TOKEN anew"),
        ("", "", "the revision is empty"),
    ],
)
def test_what_can_be_no_address_or_token_is_not_tried(
    hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    if variable:
        monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=message) as error:
        push(export, "me/tiny", revision=None if variable else "")
    assert "“" not in str(error.value), "a token is not printed"
    assert hub.requests == []


def test_an_address_may_end_with_a_slash(hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
    assert push(export, "me/tiny") == f"{hub.url}/me/tiny"
    assert not hub.took(" //")


def test_what_is_no_export_is_refused_before_anything_is_sent(hub: Hub, export: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "export").mkdir(parents=True)
    (tmp_path / "run" / "export" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"lacks model\.safetensors, tokenizer_config\.json"):
        push(tmp_path / "run", "me/tiny")
    with pytest.raises(UserError, match="there is no folder"):
        push(tmp_path / "absent", "me/tiny")
    unfinished = tmp_path / "two words"
    unfinished.mkdir()
    (unfinished / "recipe.json").write_text("{}")
    with pytest.raises(UserError, match="a run without an export, not finished yet: ") as error:
        push(unfinished, "me/tiny")
    command = ["sslnlp", "train", str(unfinished / "recipe.json"), f"out={unfinished}", "--resume"]
    assert shlex.split(str(error.value).split("yet: ")[1]) == command
    for name, content in files(export).items():
        (tmp_path / "run" / "export" / name).write_bytes(content)
    with (tmp_path / "run" / "export" / "model.safetensors").open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(UserError, match=r"model\.safetensors in .* is damaged"):
        push(tmp_path / "run", "me/tiny")
    with pytest.raises(UserError, match="is not a repository name"):
        push(export, "me/a/b")
    assert hub.requests == []
