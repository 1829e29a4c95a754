"""Checkpoints under fire: kills at every flush, truncation, flipped bits, a disk that refuses more bytes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sslnlp.checkpoint import keep_last, load_checkpoint, newest_valid, save_checkpoint
from sslnlp.errors import UserError
from tests.contract import digest, make_trainer


def payload(value: float = 1.0, size: int = 64) -> dict[str, Any]:
    model = torch.nn.Linear(size, size)
    torch.nn.init.constant_(model.weight, value)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, size)).sum().backward()
    optimizer.step()
    return {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict(), "rng": torch.arange(8)}


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    parts = payload(0.1)
    meta = {"step": 7, "loss": 2.5, "words": ["Grüße", "你好"]}
    path = save_checkpoint(tmp_path / "deep" / "state", 7, parts, meta)

    loaded, read = load_checkpoint(path)

    assert read == meta
    assert list(read) == list(meta), "figures stand in the card of a resumed run as in that of any other"
    assert set(loaded) == {"model", "optimizer", "rng"}
    assert torch.equal(loaded["model"]["weight"], parts["model"]["weight"])
    exp_avg = parts["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(loaded["optimizer"]["state"][0]["exp_avg"], exp_avg)
    assert loaded["optimizer"]["param_groups"] == parts["optimizer"]["param_groups"]
    assert newest_valid(path.parent) == path


def test_newest_is_by_step_and_not_by_name(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 5):
        save_checkpoint(tmp_path, step, {"a": torch.zeros(1)}, {})
    newest = newest_valid(tmp_path)
    assert newest is not None
    assert newest.name == "step-100000000"


def test_nothing_there_is_none_and_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "step-notanumber").mkdir()
    assert newest_valid(tmp_path / "absent") is None
    assert newest_valid(tmp_path) is None


@pytest.mark.parametrize("file", ["model.pt", "optimizer.pt", "meta.json", "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_newest_is_passed_over_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, damage: str
) -> None:
    good = save_checkpoint(tmp_path, 10, payload(1.0), {"step": 10})
    bad = save_checkpoint(tmp_path, 20, payload(2.0), {"step": 20})
    data = bytearray((bad / file).read_bytes())
    if damage == "truncate":
        (bad / file).write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        # In the manifest, hit a digit of the step: it stays valid JSON and only the folder's name gives it away.
        at = data.index(b"20") if file == "MANIFEST.json" else len(data) // 2
        data[at] ^= 1
        (bad / file).write_bytes(data)
    else:
        (bad / file).unlink()

    with caplog.at_level(logging.WARNING, logger="sslnlp.checkpoint"):
        assert newest_valid(tmp_path) == good

    (record,) = caplog.records
    assert "step-00000020" in record.getMessage()
    assert file in record.getMessage()
    assert "\n" not in record.getMessage()
    with pytest.raises(UserError, match="cannot resume from"):
        load_checkpoint(bad)


def test_every_single_flipped_bit_of_a_part_is_noticed(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"a": torch.arange(4)}, {})
    data = (path / "a.pt").read_bytes()
    for at in range(0, len(data), 101):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        (path / "a.pt").write_bytes(flipped)
        assert newest_valid(tmp_path) is None
    (path / "a.pt").write_bytes(data)
    assert newest_valid(tmp_path) == path


def _save_and_die(directory: Path, step: int, flush: int) -> int:
    """Save in a forked child that gets SIGKILL at its `flush`-th fsync; the child's wait status."""
    child = os.fork()
    if child == 0:
        real, calls = os.fsync, [0]

        def fsync(handle: int) -> None:
            calls[0] += 1
            if calls[0] == flush:
                os.kill(os.getpid(), signal.SIGKILL)
            real(handle)

        os.fsync = fsync  # type: ignore[assignment]
        save_checkpoint(directory, step, {"a": torch.zeros(100), "b": torch.ones(100)}, {"step": step})
        os._exit(0)
    return os.waitpid(child, 0)[1]


def test_a_kill_at_any_flush_leaves_the_older_checkpoint_and_the_next_save_cleans_up(tmp_path: Path) -> None:
    # Flushes of one save: a.pt, b.pt, meta.json, MANIFEST.json, the folder, and (after the rename) the parent.
    old = save_checkpoint(tmp_path, 1, {"a": torch.zeros(3)}, {"step": 1})
    for flush in (1, 2, 3, 4, 5):
        assert os.WTERMSIG(_save_and_die(tmp_path, 2, flush)) == signal.SIGKILL
        assert newest_valid(tmp_path) == old
        assert load_checkpoint(old)[1] == {"step": 1}
        assert len(names(tmp_path)) == 2, "the killed save's folder is still there"
    assert os.WTERMSIG(_save_and_die(tmp_path, 3, 6)) == signal.SIGKILL
    assert newest_valid(tmp_path) == tmp_path / "step-00000003", "killed after the rename: it counts"
    assert _save_and_die(tmp_path, 4, 7) == 0, "a save has six flushes"
    assert names(tmp_path) == ["step-00000001", "step-00000003", "step-00000004"]


def test_saving_a_step_again_never_leaves_a_moment_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = save_checkpoint(tmp_path, 1, {"a": torch.zeros(3)}, {"try": 1})
    seen: list[list[int]] = []
    real = os.rename

    def rename(source: Any, target: Any) -> None:
        real(source, target)
        newest = newest_valid(tmp_path)
        seen.append([] if newest is None else [load_checkpoint(newest)[1]["try"]])

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        assert save_checkpoint(tmp_path, 1, {"a": torch.zeros(3)}, {"try": 2}) == plain

    assert seen == [[2], [2], [2]], "shown beside the older one, the older one hidden, the plain name taken"
    assert load_checkpoint(plain)[1] == {"try": 2}
    assert names(tmp_path) == [plain.name]


def test_a_replacement_killed_half_way_is_finished_by_the_next_save(tmp_path: Path) -> None:
    plain = save_checkpoint(tmp_path, 1, {"a": torch.zeros(3)}, {"try": 1})
    # The sixth flush is after the rename that shows the new copy and before the older one is removed.
    assert os.WTERMSIG(_save_and_die(tmp_path, 1, 6)) == signal.SIGKILL
    copy = newest_valid(tmp_path)
    assert copy is not None
    assert copy.name == "step-00000001-r1"
    assert load_checkpoint(copy)[1] == {"step": 1}

    save_checkpoint(tmp_path, 2, {"a": torch.zeros(3)}, {})

    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert load_checkpoint(plain)[1] == {"step": 1}, "the newer copy took the plain name"


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """The kernel refuses bytes beyond `limit` in any one file: a write fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_refuses_bytes_loses_nothing_good(tmp_path: Path) -> None:
    old = save_checkpoint(tmp_path, 1, payload(), {"step": 1})
    parts = payload(2.0, size=256)
    with file_size_limit(100_000), pytest.raises(UserError) as error:
        save_checkpoint(tmp_path, 2, parts, {"step": 2})
    message = str(error.value)
    assert "step 2" in message
    assert "File too large" in message, "the system's own reason, not torch's about its archive"
    assert "\n" not in message
    assert names(tmp_path) == ["step-00000001"], "the half-written folder gives its space back"
    assert newest_valid(tmp_path) == old
    assert save_checkpoint(tmp_path, 2, parts, {"step": 2}) == newest_valid(tmp_path), "and it goes on with room again"


def test_no_space_left_in_the_manifest_is_the_same_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = save_checkpoint(tmp_path, 1, payload(), {})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left on device"):
            save_checkpoint(tmp_path, 2, payload(), {})
    assert names(tmp_path) == [old.name]


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot save the checkpoint of step 1"):
        save_checkpoint(tmp_path / "file" / "state", 1, {}, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_read_only_folder_is_one_clear_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="Permission denied"):
            save_checkpoint(tmp_path, 1, {}, {})
    finally:
        tmp_path.chmod(0o700)


def test_a_part_that_could_not_be_loaded_again_is_refused_at_the_save(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights_only"):
        save_checkpoint(tmp_path, 1, {"bad": {"path": Path("x")}}, {})
    with pytest.raises(ValueError, match="not a plain file name"):
        save_checkpoint(tmp_path, 1, {"../escape": 1}, {})
    assert names(tmp_path) == []


def test_keep_last_counts_whole_ones_and_spares_the_best(tmp_path: Path) -> None:
    paths = [save_checkpoint(tmp_path, step, {"a": torch.zeros(2)}, {}) for step in (1, 2, 3, 4, 5)]
    (paths[4] / "a.pt").write_bytes(b"torn")

    keep_last(tmp_path, 2, protect=paths[0])

    assert names(tmp_path) == [paths[i].name for i in (0, 2, 3, 4)], "5 is torn: 4 and 3 are the last two"
    keep_last(tmp_path, 1)
    assert names(tmp_path) == [paths[3].name, paths[4].name]
    with pytest.raises(ValueError, match="at least one"):
        keep_last(tmp_path, 0)


def test_a_run_whose_best_weights_are_lost_ends_on_its_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    losses, last = iter([1.0, 2.0, 3.0]), ""
    trainer = make_trainer("masked_lm", tmp_path, steps=3, batch_size=2, eval_every=1, save_every=1, keep=1)
    trainer.evaluate = lambda objective: {"loss": next(losses)}

    def spoil(step: int, steps: int, metrics: Mapping[str, float]) -> None:
        nonlocal last
        last = digest(trainer.objective.state_dict())
        if step == steps:
            (tmp_path / "state" / "step-00000001" / "objective.pt").write_bytes(b"torn")

    trainer.on_progress = spoil
    assert digest(trainer.fit().state_dict()) == last
    assert trainer.progress.best_step is None
    assert "the best weights, of step 1, are lost" in caplog.text


def test_checkpoints_above_the_one_that_is_gone_on_from_do_not_count(tmp_path: Path) -> None:
    paths = [save_checkpoint(tmp_path, step, {"a": torch.zeros(2)}, {}) for step in (1, 2, 3, 4)]
    (tmp_path / ".unfinished-step-00000001-removed").mkdir()

    keep_last(tmp_path, 1, newest=paths[2])

    assert names(tmp_path) == [paths[2].name]


def test_loading_runs_no_code(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"a": 1}, {})

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save(Attack(), path / "a.pt")
    manifest = json.loads((path / "MANIFEST.json").read_text())
    data = (path / "a.pt").read_bytes()
    manifest["files"]["a.pt"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (path / "MANIFEST.json").write_text(json.dumps(manifest))

    with pytest.raises(UserError, match="cannot resume"):
        load_checkpoint(path)
    assert not (tmp_path / "owned").exists()
