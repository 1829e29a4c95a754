"""An export of several modes: its logits are stored, and an installation that computes something else is found out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sslnlp import modes
from sslnlp.errors import UserError
from sslnlp.export import ExportError, export_model, reloaded, self_check
from sslnlp.models import ModelConfig, build_model
from sslnlp.modes import SELF_CHECK
from sslnlp.objectives.hybrid import Hybrid
from tests.tiny_tokenizers import tiny


def model_of(architecture: str = "llama") -> Any:
    config = ModelConfig(architecture=architecture, size="nano", dropout=0.1)
    return build_model(config, tiny(), transformers.AutoModelForCausalLM, max_length=32)


def write(folder: Path, model: Any = None, **options: Any) -> Path:
    options = {"card": {"title": "tiny"}, "recipe": {}, "modes": Hybrid.modes, "max_length": 32} | options
    return export_model(model if model is not None else model_of(), tiny(), folder, **options)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen3"])
def test_stock_models_give_the_stored_logits(architecture: str, tmp_path: Path) -> None:
    model = model_of(architecture).train()
    path = write(tmp_path / "export", model)
    assert model.training
    assert not hasattr(model.config, "is_causal")
    self_check(path)
    stored = load_file(path / SELF_CHECK)
    assert "is_causal" not in json.loads((path / "config.json").read_text()), "loaded as it is, it generates"
    for name, flag in (("causal", True), ("bidirectional", False)):
        config = transformers.AutoConfig.from_pretrained(path)
        config.is_causal = flag
        stock = transformers.AutoModelForCausalLM.from_pretrained(path, config=config).eval()
        with torch.no_grad():
            logits = stock(input_ids=stored["input_ids"][:1]).logits[..., stored["columns"]]
        assert torch.allclose(logits, stored[f"logits.{name}"][:1], atol=1e-5)
    with safe_open(path / SELF_CHECK, framework="pt") as file:
        assert file.metadata()["transformers"] == transformers.__version__
    build_model(ModelConfig(pretrained=str(path)), tiny(), transformers.AutoModelForCausalLM, max_length=32)


def test_an_installation_that_ignores_the_field_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "export")
    configured = modes._configured
    with monkeypatch.context() as patch:
        patch.setattr(modes, "_configured", lambda model, fields: configured(model, {}))
        with pytest.raises(UserError, match=r"mode 'bidirectional' \(is_causal=False\).*install transformers") as error:
            self_check(path)
        assert "\n" not in str(error.value)
        with pytest.raises(UserError, match="'bidirectional'"):
            build_model(ModelConfig(pretrained=str(path)), tiny(), transformers.AutoModelForCausalLM, max_length=32)
        with pytest.raises(UserError, match="computes the same in mode 'causal'"):
            write(tmp_path / "other")
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


def test_stored_logits_that_are_not_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "export")
    with safe_open(path / SELF_CHECK, framework="pt") as file:
        about = file.metadata()
    stored = load_file(path / SELF_CHECK)
    stored["logits.causal"][0, 3, 5] += 0.01
    save_file(stored, path / SELF_CHECK, metadata=about)
    with pytest.raises(UserError, match="mode 'causal'"):
        self_check(path)
    (path / SELF_CHECK).write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        self_check(path)
    (path / SELF_CHECK).unlink()
    self_check(path)  # an export of one mode has none

    def wrong(folder: Path) -> None:
        raise UserError("something else")

    monkeypatch.setattr(reloaded, "self_check", wrong)
    with pytest.raises(ExportError, match="not the one that was trained: something else"):
        write(tmp_path / "export")


def test_the_card_tells_how_and_its_code_runs(tmp_path: Path) -> None:
    path = write(tmp_path / "export")
    section = (path / "README.md").read_text().split("## Ways to use it")[1].split("\n## ")[0]
    assert "self_check" in section
    code = section.split("```python\n")[1].split("```")[0].replace("PATH_OR_NAME", str(path))
    scope: dict[str, Any] = {}
    exec(code, scope)
    stored = load_file(path / SELF_CHECK)
    for name in Hybrid.modes:
        with torch.no_grad():
            logits = scope[name].eval()(input_ids=stored["input_ids"][:1]).logits[..., stored["columns"]]
        assert torch.allclose(logits, stored[f"logits.{name}"][:1], atol=1e-5), name
    plain = write(tmp_path / "plain", modes=None)
    assert "Ways to use it" not in (plain / "README.md").read_text()
    assert not (plain / SELF_CHECK).exists()


@pytest.mark.parametrize("attention", ["row_keyed", "sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen3"])
def test_which_way_a_model_reads(architecture: str, attention: str) -> None:
    model = model_of(architecture)
    model.set_attn_implementation(attention)
    assert modes.reads_ahead(model, {"is_causal": False})
    assert not modes.reads_ahead(model, {"is_causal": True})
    assert not modes.reads_ahead(model, {})
