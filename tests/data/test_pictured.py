"""What is made of pictures: rows and captions, verdicts, copies, labels, and a split by the picture."""

from __future__ import annotations

import logging
import pickle

import datasets
import numpy as np
import pytest

from sslnlp.data import Stream, picture_check
from sslnlp.errors import UserError
from tests.data.picture_data import CAPTIONS, COUNT, PICTURES, folder, parquet, rows, shard


def test_captions_by_name_by_list_and_missing_ones(read, tmp_path):
    captions = [["a", None, "b"], ["  "], [], None, ["c"]]
    path = parquet(tmp_path / "a.parquet", PICTURES[:5], caption=captions, caption_de=list("vwxyz"))
    got = read(path)
    assert [row["captions"] for row in rows(got.train)] == [["a", "b"], ["c"]]
    assert (got.facts["read"], got.facts["no_caption"], got.facts["captions"]) == (5, 3, 3)
    german = read(path, columns={"caption": "caption_de"})
    assert [row["captions"] for row in rows(german.train)] == [[letter] for letter in "vwxyz"]


def test_broken_pictures_are_counted_by_reason_and_named(read, tmp_path, caplog):
    images = {"0.png": PICTURES[0], "1.png": PICTURES[1][:60], "2.png": b"", "3.png": b"<html>", "5.png": b"<html>"}
    names = ["0.png", "1.png", "2.png", "3.png", "gone.png", "5.png"]
    path = folder(tmp_path / "data", images, "a.csv", [{"file_name": name, "caption": "x"} for name in names])
    with caplog.at_level(logging.WARNING):
        got = read(path)
    assert [row["image"] for row in rows(got.train)] == PICTURES[:1]
    assert got.facts["broken"] == 5
    assert got.facts["broken_reasons"] == {"not an image": 2, "truncated": 1, "empty": 1, "missing": 1}
    assert "5 of 6 pictures are broken" in caplog.text
    assert "2.png: empty" in caplog.text
    assert "gone.png: missing" in caplog.text


def test_pictures_are_decoded_once(read, tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        picture_check,
        "decode",
        lambda content, size, of=picture_check.decode: decoded.append(1) or of(content, size=size),
    )
    table = parquet(
        tmp_path / "a.parquet", [*PICTURES, None, b"?"], caption=[*CAPTIONS, "x", "y"], other=["o"] * (COUNT + 2)
    )
    path = folder(tmp_path / "data", {"0.png": PICTURES[0], "1.png": PICTURES[1]}, "a.csv",
                  [{"file_name": f"{i}.png", "caption": text} for i in (0, 1) for text in "ab"])  # fmt: skip
    tar = shard(tmp_path / "a.tar", {"x.png": PICTURES[3], "x.txt": b"three"})
    for spec, different in ((table, COUNT + 1), (path, 2), (tar, 1)):
        first = read(spec)
        assert len(decoded) == different  # a picture that the list names twice is decoded once, one not there never
        second = read(spec)
        assert len(decoded) == different
        assert second.facts == first.facts
        assert rows(second.train) == rows(first.train)
        decoded.clear()
    read(table, columns={"caption": "other"})  # other captions of the same pictures
    assert not decoded
    (tmp_path / "data" / "0.png").write_bytes(PICTURES[5])
    assert PICTURES[5] in [row["image"] for row in rows(read(path).train)]
    assert len(decoded) == 2


def test_equal_pictures_have_one_number_wherever_they_lie(read, tmp_path):
    table = parquet(tmp_path / "a.parquet", [PICTURES[0], PICTURES[1], PICTURES[0]], caption=["a", "b", "c"])
    tar = shard(tmp_path / "b.tar", {"x.png": PICTURES[1], "x.txt": b"d"})
    numbers = [row["picture"] for row in rows(read([table, tar]).train)]
    assert numbers[0] == numbers[2] != numbers[1] == numbers[3]
    assert all(-(2**63) <= number < 2**63 for number in numbers)


def test_copies_are_removed_and_held_out_pictures_leave_training(read, tmp_path):
    images = [*PICTURES[:10], PICTURES[0], PICTURES[0]]
    train = parquet(tmp_path / "a.parquet", images, caption=[*CAPTIONS[:10], CAPTIONS[0], "another"])
    assert read(train).facts["duplicates"] == 1
    assert len(read(train, deduplicate=False).train) == 12
    valid = parquet(tmp_path / "b.parquet", PICTURES[8:12], caption=["other words"] * 4)
    got = read(train, valid=valid)
    assert (got.facts["overlap"], got.facts["rows"], got.facts["valid_rows"]) == (2, 9, 4)
    assert not {row["picture"] for row in rows(got.train)} & {row["picture"] for row in rows(got.valid)}
    with pytest.raises(UserError, match="all of them are in data"):
        read(valid, valid=valid)


def test_all_copies_of_a_picture_are_held_out_together(read, tmp_path):
    path = parquet(tmp_path / "a.parquet", PICTURES * 2, caption=[*CAPTIONS, *(f"again {i}" for i in range(COUNT))])
    got = read(path, valid_fraction=0.3)
    held = {row["picture"] for row in rows(got.valid)}
    assert len(got.valid) == 2 * len(held)
    assert 0.1 < len(held) / COUNT < 0.5
    assert not held & {row["picture"] for row in rows(got.train)}
    assert len(got.train) + len(got.valid) == 2 * COUNT
    assert len(read(path, limit=7).train) == 7


def test_labels_that_are_hidden_or_no_classes(read, tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["z", "a"])})
    columns = {"image": [{"bytes": content} for content in PICTURES[:3]], "label": [1, 0, -1]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "a.parquet")
    got = read(str(tmp_path / "a.parquet"), captions_needed=False)
    assert got.label_names == ["z", "a"]
    assert [row["label"] for row in rows(got.train)] == [1, 0, -100]
    scores = parquet(
        tmp_path / "b.parquet", PICTURES[:3], caption=CAPTIONS[:3], label=[0.5, 0.1, 0.2], kind=list("aba")
    )
    assert read(scores).label_names == []
    assert read(scores, columns={"label": "kind"}).label_names == ["a", "b"]
    with pytest.raises(UserError, match="classes are names or whole numbers"):
        read(scores, label="label")


def test_rows_come_at_positions_in_worker_processes_too(read, tmp_path):
    table = parquet(tmp_path / "a.parquet", PICTURES[:5], caption=CAPTIONS[:5])
    tar = shard(tmp_path / "b.tar", {"x.png": PICTURES[5], "x.txt": b"five"})
    path = folder(tmp_path / "data", {"6.png": PICTURES[6]}, "a.jsonl", [{"image": "6.png", "caption": "six"}])
    got = read([table, tar, path]).train
    stream = Stream(got, 0)
    found = stream.rows(range(14))
    assert [row["position"] for row in found] == list(range(14))
    assert sorted(row["image"] for row in found[:7]) == sorted(PICTURES[:7])
    assert pickle.loads(pickle.dumps(stream)).rows(range(14)) == found
    assert got.take(np.array([6, 1])).texts([0, 1]) == [["six"], [CAPTIONS[1]]]
    assert got[-1]["captions"] == ["six"]
    with pytest.raises(IndexError):
        got[7]
    (tmp_path / "data" / "6.png").unlink()
    with pytest.raises(UserError, match=r"6\.png was there and is gone"):
        got.rows(range(7))
