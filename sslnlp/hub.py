"""Publishing an export with the ordinary `huggingface_hub` client, to any server that speaks its protocol."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]
from safetensors import SafetensorError, safe_open

from sslnlp.errors import UserError, first_line

logger = logging.getLogger(__name__)
T = TypeVar("T")

# The client's own base class of everything that can go wrong on the wire; which HTTP library it comes from has
# changed between its versions.
_TransportError = next(c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")
_ATTEMPTS = 5
_FIRST_WAIT_S = 1.0
# What only an export puts into a repository: removed there when the export pushed now has no such file, so that an
# older shard, pooling or processor never mixes with new weights. Everything else that people keep there stays.
_OWNED = ["*.safetensors", "*.safetensors.index.json", "modules.json", "generation_config.json"]
_OWNED += ["1_Pooling/*", "1_MultiVectorMask/*", "2_Normalize/*", "2_Dense/*", "3_Normalize/*", "3_Dense/*"]
_OWNED += ["sentence_bert_config.json", "config_sentence_transformers.json"]
_OWNED += ["processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]
_PRIVATE = ["state/*", "*/state/*", "*.pt", "*.log", "metrics.jsonl", ".*", "*/.*"]


def push(
    run_or_export_dir: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload an export and return the address it has then.

    Takes the export itself or the run's folder that holds `export/`; nothing else of a run leaves the machine. The
    repository (and the branch `revision`) is created where missing. Server errors and lost connections are tried
    again with growing pauses; what the server holds already is not sent twice, so the same call also resumes.

    `token` defaults to `HF_TOKEN`, then the cached login; the server is `HF_ENDPOINT` where set.

    Raises `UserError` in offline mode, for an incomplete export, a refused token, a name that belongs to someone else,
    a public repository where `private` was asked for, an address that is none, or a server that stays out of reach.
    """
    folder = export_folder(Path(run_or_export_dir))
    if constants.HF_HUB_OFFLINE:  # the client would refuse each of our attempts
        raise UserError("nothing is pushed in offline mode: unset HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE)")
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    _check_address(endpoint, token or get_token() or "", revision)
    # Handed over explicitly: the client reads the variable once, when it is imported.
    api = HfApi(endpoint=endpoint or None, token=token, library_name="sslnlp")
    try:
        repo_id = _retry(lambda: _create(api, repo_id, private))
        if private and not _retry(lambda: api.repo_info(repo_id)).private:
            raise UserError(f"{repo_id} exists and is public; make it private on the hub or push under another name")
        if revision is not None and revision != constants.DEFAULT_REVISION:
            _retry(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
        with _transfer(api, repo_id, revision):
            _retry(
                lambda: api.upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    revision=revision,
                    ignore_patterns=list(_PRIVATE),
                    delete_patterns=list(_OWNED),
                    commit_message="Upload with sslnlp",
                )
            )
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is not a repository name: {first_line(error)}") from error
    except Exception as error:
        if isinstance(error, UserError) or (cause := _wire_error(error)) is None:
            raise
        known = (token or get_token()) is not None
        raise UserError(_explain(cause, repo_id, revision, api.endpoint, known)) from error
    return f"{api.endpoint}/{repo_id}" + (f"/tree/{revision}" if revision else "")


def _check_address(endpoint: str, token: str, revision: str | None) -> None:
    """Refuses what the client would try again as if the server were away, or end on with an error of its own."""
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise UserError(f"HF_ENDPOINT={endpoint} is no address of a server; it begins with https:// or http://")
    if not token.isascii():
        raise UserError("the token holds characters that no token has; set HF_TOKEN anew, or run `hf auth login`")
    if revision == "":
        raise UserError("the revision is empty; name a branch, or leave it out to push to the main one")


def _create(api: HfApi, repo_id: str, private: bool) -> str:
    """Create the repository where missing; its whole name. Whether an existing one may be written shows later.

    The client's own `exist_ok` is not used: where the server says 403 it reads the address of an existing repository
    on another endpoint than the one it was imported with, and fails on that.
    """
    try:
        api.create_repo(repo_id, private=private or None)
    except HfHubHTTPError as error:
        # 403 is also the answer to a token that may write to this repository but not create others.
        if not (_status(error) == 409 or (_status(error) == 403 and api.repo_exists(repo_id))):
            raise
    return repo_id if "/" in repo_id else f"{api.whoami()['name']}/{repo_id}"


def export_folder(path: Path) -> Path:
    """The export that a run's folder holds, or that `path` is. Raises `UserError` naming what it lacks, or what of it
    is damaged, and how to make it again."""
    if not path.is_dir():
        raise UserError(f"there is no folder {str(path)!r} to push; give a run's folder or its export/")
    folder = path / "export" if (path / "export").is_dir() else path
    weights, reads = sorted(folder.glob("*.safetensors")), ("tokenizer_config.json", "preprocessor_config.json")
    there = {
        "config.json": (folder / "config.json").is_file(),
        "model.safetensors": bool(weights),
        reads[0]: any((folder / name).is_file() for name in reads),  # a model of pictures alone has no tokenizer
    }
    if not any(there.values()) and (path / "recipe.json").is_file():
        raise UserError(f"{str(path)!r} is a run without an export, not finished yet: {_going_on(path)}")
    if missing := ", ".join(name for name, found in there.items() if not found):
        raise UserError(f"{str(folder)!r} is not a complete export: it lacks {missing}; {how_again(folder)}")
    checked = folder / "config.json"
    try:
        json.loads(checked.read_text(encoding="utf-8"))
        for checked in weights:
            with safe_open(checked, framework="pt") as opened:
                opened.keys()
    except (SafetensorError, OSError, ValueError) as error:
        what = f"{checked.name} in {str(folder)!r} is damaged: {first_line(error)}"
        raise UserError(f"{what}; {how_again(folder)}") from error
    return folder


def how_again(export: Path) -> str:
    """What to do about an export that is not whole: a finished run that goes on writes its export anew."""
    run = export.parent
    return f"make it again: {_going_on(run)}" if (run / "recipe.json").is_file() else "train or download it again"


def _going_on(run: Path) -> str:
    """The command that finishes a run where it is now: the `out` of its recipe is where it began."""
    return f"sslnlp train {shlex.quote(str(run / 'recipe.json'))} {shlex.quote(f'out={run}')} --resume"


@contextmanager
def _transfer(api: HfApi, repo_id: str, revision: str | None) -> Iterator[None]:
    """Choose how large files travel, for the uploads inside.

    With `hf_xet` installed the client uploads through Xet and never asks whether the server has it, so a server
    without it (a mirror, a self-hosted hub) would fail. Asked for a Xet token, such a server answers that there is no
    such address; then Xet is switched off, as HF_HUB_DISABLE_XET does, and files go as Git LFS objects.
    """
    if constants.HF_HUB_DISABLE_XET or importlib.util.find_spec("hf_xet") is None:
        yield
        return
    url = f"{api.endpoint}/api/models/{repo_id}/xet-write-token/{(revision or 'main').replace('/', '%2F')}"

    def ask() -> bool:
        answer = get_session().get(url, headers=build_hf_headers(token=api.token))
        if answer.status_code in (404, 405, 501):
            return False
        hf_raise_for_status(answer)
        return True

    if _retry(ask):
        yield
        return
    constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = False


def _retry(call: Callable[[], T]) -> T:
    """`call()`, again after a pause while the failure is one that passes: 429, 5xx, a lost connection."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return call()
        except Exception as error:
            cause = _wire_error(error)
            if cause is None or not _passes(cause):
                raise
            wait = _FIRST_WAIT_S * 2 ** (attempt - 1)
            logger.warning("the hub failed (%s); trying again in %g s", _said(cause), wait)
            time.sleep(wait)
    return call()


def _wire_error(error: BaseException) -> BaseException | None:
    """The error of the wire in a chain of causes: the client wraps a failed file upload in a RuntimeError.

    An answer that is not JSON counts: it is a gateway's error page, which the client parses before it looks at the
    status.
    """
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, (_TransportError, ConnectionError, json.JSONDecodeError)):
        seen = seen.__cause__
    return seen


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _passes(error: BaseException) -> bool:
    status = _status(error)
    return status is None or status == 429 or status >= 500


def _said(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return "its answer is not JSON"
    return first_line(getattr(error, "server_message", None) or error)


def _explain(error: BaseException, repo_id: str, revision: str | None, endpoint: str, has_token: bool) -> str:
    status = _status(error)
    said = _said(error)
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        problem = "refused the token" if has_token else "asks for a token"
        return f"{endpoint} {problem}; set HF_TOKEN to a token that may write, or run `hf auth login`"
    if status in (401, 403, 409):  # a private repository of somebody else is reported as 401, not found
        return (
            f"{repo_id} cannot be written ({said}): the name belongs to someone else or the token may only read; "
            "push under your own name"
        )
    if status == 404:
        return f"{endpoint} has no {repo_id}{f' at {revision}' if revision else ''}: {said}"
    if status is None or status >= 500:
        return f"{endpoint} did not take the upload after {_ATTEMPTS} attempts ({said}); run the same push again later"
    return f"{endpoint} refused the upload ({status}): {said}"
