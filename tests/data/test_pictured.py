from __future__ import annotations

import csv
import io
import json
import logging
import pickle
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from sslnlp.data import DataConfig, Stream, picture_check
from sslnlp.data.config import OptionData
from sslnlp.data.picture_check import RUN
from sslnlp.data.pictured import Pictured, PictureRows, every_picture, pictured
from sslnlp.errors import UserError

COUNT = 2 * RUN + 6


def picture(number: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


PICTURES = [picture(i) for i in range(COUNT)]
CAPTIONS = [f"picture number {i}" for i in range(COUNT)]


def rows(of: PictureRows | None) -> list[dict]:
    return [] if of is None else [dict(row) for row in of.rows(range(len(of)))]


def pairs(of: PictureRows | None) -> list[tuple[bytes, list[str]]]:
    return [(row["image"], row["captions"]) for row in rows(of)]


def parquet(path: Path, images: list, **columns: list) -> str:
    features = datasets.Features({"image": datasets.Image()})
    given = [None if image is None else {"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)]
    table = datasets.Dataset.from_dict({"image": given}, features=features)
    for name, values in columns.items():
        table = table.add_column(name, values)
    table.to_parquet(path)
    return str(path)


def folder(path: Path, images: dict[str, bytes], table: str = "", listed: list[dict] | None = None) -> str:
    path.mkdir()
    for name, content in images.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    if table.endswith(".csv"):
        with (path / table).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(listed[0]))
            writer.writeheader()
            writer.writerows(listed)
    elif table:
        (path / table).write_text("".join(json.dumps(row) + "\n" for row in listed))
    return str(path)


def shard(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


@pytest.fixture
def read(tmp_path):
    def read(train: str | list[str], captions_needed: bool = True, **options) -> Pictured:
        options.setdefault("valid_fraction", 0)
        config = DataConfig(train=train, **options)
        return pictured(config, cache_dir=tmp_path / "cache", captions_needed=captions_needed)

    return read


# --- where pictures come from ----------------------------------------------------------------------------------------


def test_a_table_with_pictures(read, tmp_path):
    ids = [f"id-{i}" for i in range(COUNT)]
    got = read(parquet(tmp_path / "a.parquet", PICTURES, caption=CAPTIONS, id=ids, other=CAPTIONS))
    assert [(row["image"], *row["captions"], row["id"]) for row in rows(got.train)] == list(
        zip(PICTURES, CAPTIONS, ids, strict=True)
    )
    assert set(got.train[0]) == {"image", "captions", "picture", "id"}
    assert got.facts["columns"] == {"image": "image", "caption": "caption", "id": "id"}
    assert (got.valid, got.label_names) == (None, [])
    json.dumps(got.facts)


def test_several_tables_by_a_glob_or_a_list(read, tmp_path):
    parquet(tmp_path / "a.parquet", PICTURES[:9], caption=CAPTIONS[:9])
    parquet(tmp_path / "b.parquet", PICTURES[9:20], caption=CAPTIONS[9:20])
    expected = [(image, [text]) for image, text in zip(PICTURES[:20], CAPTIONS, strict=False)]
    assert pairs(read(str(tmp_path / "*.parquet")).train) == expected
    names = [str(tmp_path / name) for name in ("b.parquet", "a.parquet")]
    assert pairs(read(names).train) == expected[9:] + expected[:9]


def test_columns_of_bytes_and_of_bytes_with_a_path(read, tmp_path):
    (tmp_path / "7.png").write_bytes(PICTURES[7])
    raw = datasets.Dataset.from_dict({"img": PICTURES[:3], "sentence": CAPTIONS[:3]})
    raw.to_parquet(tmp_path / "raw.parquet")
    nested = [{"bytes": PICTURES[3], "path": None}, {"bytes": None, "path": "7.png"}]
    datasets.Dataset.from_dict({"picture": nested, "text": CAPTIONS[:2]}).to_parquet(tmp_path / "nested.parquet")
    assert pairs(read(str(tmp_path / "raw.parquet")).train) == [(PICTURES[i], [CAPTIONS[i]]) for i in range(3)]
    got = read(str(tmp_path / "nested.parquet")).train
    assert pairs(got) == [(PICTURES[3], [CAPTIONS[0]]), (PICTURES[7], [CAPTIONS[1]])]


def test_a_data_set_saved_by_datasets(read, tmp_path):
    source = parquet(tmp_path / "a.parquet", PICTURES[:5], caption=CAPTIONS[:5])
    datasets.load_dataset("parquet", data_files=source, split="train", cache_dir=str(tmp_path)).save_to_disk(
        tmp_path / "saved"
    )
    expected = [(image, [text]) for image, text in zip(PICTURES[:5], CAPTIONS, strict=False)]
    assert pairs(read(str(tmp_path / "saved")).train) == expected
    assert pairs(read(str(next((tmp_path / "saved").glob("*.arrow")))).train) == expected


@pytest.mark.parametrize("table", ["metadata.csv", "captions.csv", "metadata.jsonl"])
def test_a_folder_with_a_table(read, tmp_path, table):
    images = {f"a/{i}.png": PICTURES[i] for i in range(4)} | {"unlisted.png": PICTURES[9]}
    listed = [{"file_name": f"a/{i}.png", "text": CAPTIONS[i], "label": "xyxy"[i]} for i in (2, 0, 1, 3)]
    path = folder(tmp_path / "data", images, table, listed)
    expected = [(PICTURES[i], [CAPTIONS[i]]) for i in (2, 0, 1, 3)]
    for spec in (path, f"{path}/{table}"):
        got = read(spec)
        assert pairs(got.train) == expected
        assert got.label_names == ["x", "y"]
        assert [row["label"] for row in rows(got.train)] == [0, 0, 1, 1]
        assert got.facts["classes"] == {"x": 2, "y": 2}


def test_a_folder_of_labels(read, tmp_path):
    images = {f"{'cat' if i % 2 else 'dog'}/{i}.png": PICTURES[i] for i in range(6)} | {".hidden/9.png": PICTURES[9]}
    path = folder(tmp_path / "data", images)
    with pytest.raises(UserError, match=r"no caption column, its columns are label: say data.columns.caption=NAME"):
        read(path)
    got = read(path, captions_needed=False)
    assert got.label_names == ["cat", "dog"]
    assert [(row["image"], row["label"]) for row in rows(got.train)] == [
        (PICTURES[i], i % 2 == 0) for i in (1, 3, 5, 0, 2, 4)
    ]
    assert {tuple(row["captions"]) for row in rows(got.train)} == {()}
    said = read(path, columns={"caption": "label"})
    assert [row["captions"] for row in rows(said.train)] == 3 * [["cat"]] + 3 * [["dog"]]
    assert said.label_names == ["cat", "dog"]
    flat = read(folder(tmp_path / "flat", {"1.png": PICTURES[1]}), captions_needed=False)
    assert (flat.label_names, set(flat.train[0])) == ([], {"image", "captions", "picture"})


def test_tar_shards(read, tmp_path):
    members: dict[str, bytes] = {"a/0.png": PICTURES[0], "a/0.txt": b"zero\n", "a/0.json": b'{"caption": "no"}'}
    members |= {"a/1.cls": b"7", "a/1.txt": b"one", "a/1.seg.png": PICTURES[9], "a/1.PNG": PICTURES[1]}
    members |= {"a/2.txt": b"a picture that could not be downloaded"}
    one = shard(tmp_path / "0.tar", members)
    lists = {"3.jpg": picture(3, "JPEG"), "3.json": b'{"captions": ["three", " ", "tres"], "key": 3}'}
    two = shard(tmp_path / "1.tar", lists)
    got = read([two, one])
    assert pairs(got.train) == [(lists["3.jpg"], ["three", "tres"]), (PICTURES[0], ["zero"]), (PICTURES[1], ["one"])]
    assert [row["id"] for row in rows(got.train)] == ["3", "a/0", "a/1"]
    assert [row["label"] for row in rows(got.train)] == [-100, -100, 0]
    assert got.label_names == ["7"]
    assert pairs(read(str(tmp_path)).train) == pairs(got.train)[1:] + pairs(got.train)[:1]
    assert pairs(read(str(tmp_path / "*.tar"), limit=1).train) == [(PICTURES[0], ["zero"])]
    assert pairs(read(one, columns={"image": "seg.png"}).train) == [(PICTURES[9], ["one"])]
    named = read(one, columns={"caption": "caption"})
    assert pairs(named.train) == [(PICTURES[0], ["no"])]
    assert named.facts["no_caption"] == 1


def test_a_shard_that_is_damaged_in_the_middle_is_not_taken_for_a_shorter_one(read, tmp_path):
    path = tmp_path / "a.tar"
    shard(path, {f"{n}.{kind}": content for n in range(4) for kind, content in (("png", PICTURES[n]), ("txt", b"x"))})
    assert len(read(str(path)).train) == 4
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        begins = tar.getmember("2.png").offset
    for cut in (whole[:begins] + b"\x55" * 512 + whole[begins + 512 :], whole[: begins + 100]):
        path.write_bytes(cut)
        with pytest.raises(UserError, match=f"cannot read .*a.tar as a tar file: damaged at byte {begins:,}; write or"):
            read(str(path))
    path.write_bytes(whole[:begins])  # a shard without the zeros at its end
    assert len(read(str(path)).train) == 2


def test_a_mark_of_byte_order_is_no_part_of_a_caption(read, tmp_path):
    members = {"0.png": PICTURES[0], "0.txt": b"\xef\xbb\xbfzero\r\n", "1.png": PICTURES[1], "1.txt": b"one"}
    assert pairs(read(shard(tmp_path / "a.tar", members)).train) == [(PICTURES[0], ["zero"]), (PICTURES[1], ["one"])]
    keys = {"0.png": PICTURES[0], "0.json": b'\xef\xbb\xbf{"caption": "zero"}'}
    assert pairs(read(shard(tmp_path / "b.tar", keys)).train) == [(PICTURES[0], ["zero"])]


def test_captions_that_lie_apart_from_their_pictures_are_not_lost_without_a_word(read, tmp_path):
    apart = shard(tmp_path / "a.tar", {"0.png": PICTURES[0], "1.png": PICTURES[1], "0.txt": b"a", "1.txt": b"b"})
    with pytest.raises(
        UserError, match=r"a\.tar holds the picture 0 and, apart from it, its text: members of one name"
    ):
        read(apart)
    lone = {"0.png": PICTURES[0], "0.txt": b"a", "1.png": PICTURES[1], "2.txt": b"c", "1.wav": b"sound"}
    assert read(shard(tmp_path / "b.tar", lone)).facts["no_caption"] == 1


def test_places_of_different_kinds_together(read, tmp_path):
    table = parquet(tmp_path / "a.parquet", PICTURES[:3], caption=CAPTIONS[:3])
    tar = shard(tmp_path / "b.tar", {"x.png": PICTURES[3], "x.txt": b"three"})
    plain = folder(tmp_path / "c", {"y.png": PICTURES[4]})
    got = read([table, tar, plain])
    assert [row["captions"] for row in rows(got.train)] == [[text] for text in (*CAPTIONS[:3], "three")]
    assert got.facts["no_caption"] == 1
    assert [row["id"] for row in rows(got.train)] == ["", "", "", "x"]
    assert [got.train.contents.name(i).rsplit("/")[-1] for i in (1, 3, 4)] == ["row 1 (1.png)", "b.tar:x", "y.png"]
    assert [row["image"] for row in got.train.rows([3, 0, 3])] == [PICTURES[3], PICTURES[0], PICTURES[3]]


# --- what is made of them --------------------------------------------------------------------------------------------


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


# --- what is refused -------------------------------------------------------------------------------------------------


def test_wrong_tables_are_one_clear_line(read, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"words": "a"}\n')
    numbers = parquet(tmp_path / "numbers.parquet", PICTURES[:1], caption=[[3]], number=[4])
    bad = parquet(tmp_path / "bad.parquet", [b"no", PICTURES[0]], caption=["x", " "])
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "a.csv").write_text("file_name,caption\n")
    (tmp_path / "two" / "b.csv").write_text("file_name,caption\n")
    splits = folder(tmp_path / "splits", {"train/a/1.png": PICTURES[1], "test/a/2.png": PICTURES[2]})
    packed, damaged = tmp_path / "x.tar.gz", tmp_path / "damaged.tar"
    packed.write_bytes(b"x")
    damaged.write_bytes(b"x" * 2000)
    odd = folder(tmp_path / "odd", {}, "a.jsonl", [{"image": 3, "caption": "x"}])
    empty = shard(tmp_path / "empty.tar", {"a.txt": b"x"})
    dotted = shard(tmp_path / "dotted.tar", {"a.v1.png": PICTURES[0], "a.txt": b"x"})
    latin = shard(tmp_path / "latin.tar", {"a.png": PICTURES[0], "a.txt": b"\xff"})
    kept = datasets.Dataset.from_dict({"image": [PICTURES[0]], "caption": ["x"]})
    saved = str(tmp_path / "saved")
    datasets.DatasetDict(train=kept, test=kept).save_to_disk(saved)
    for spec, options, message in (
        (str(tmp_path / "gone.parquet"), {}, "gone.parquet does not exist"),
        (str(tmp_path / "gone.tar"), {}, "gone.tar does not exist"),
        (str(tmp_path / "*.png"), {}, "nothing matches"),
        (str(texts), {}, "has no image column; its columns are words: say data.columns.image=NAME"),
        (numbers, {}, "column 'caption' of .* holds int, not text"),
        (numbers, {"columns": {"image": "number"}}, "column 'number' of .* holds int64, not pictures"),
        (numbers, {"columns": {"image": "imge"}}, "Did you mean 'image'"),
        (numbers, {"columns": {"caption": "captoin"}}, "Did you mean 'caption'"),
        (bad, {}, r"no usable row: of 2, 1 are broken \(row 0 \(0.png\): not an image\), 1 have no caption"),
        (odd, {}, "column 'image' of .* holds int, not pictures"),
        (str(tmp_path / "two"), {}, "holds a.csv, b.csv: name the one to read"),
        (splits, {}, "holds test, train: set data.train and data.valid"),
        (str(packed), {}, "unpack it"),
        (str(damaged), {}, "cannot read .* as a tar file"),
        (empty, {}, "holds no pictures"),
        (dotted, {}, r"holds no pictures .*; a\.v1\.png has the extension v1\.png: all behind the first dot"),
        (latin, {}, "a.txt in .* is not UTF-8"),
        (str(tmp_path / "splits" / "train" / "a" / "1.png"), {}, "1.png is a single picture: give the folder it is in"),
        (str(tmp_path / "splits" / "*" / "a" / "*.png"), {}, "2.png is a single picture: give the folder it is in"),
        (saved, {}, "saved holds test, train: set data.train and data.valid to them"),
        ([], {}, "data.train is not set"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read(spec, **options)
        assert "\n" not in str(caught.value)


def test_a_command_that_reads_pictures_without_a_recipe_is_told_of_its_options(tmp_path):
    numbers = parquet(tmp_path / "numbers.parquet", PICTURES[:1], caption=[3], number=[4])
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"words": "a"}\n')
    splits = folder(tmp_path / "splits", {"train/a/1.png": PICTURES[1], "test/a/2.png": PICTURES[2]})
    options = {"columns.image": "--shown", "columns.caption": "--said"}
    for spec, columns, message in (
        (str(texts), {}, "its columns are words: say --shown NAME$"),
        (numbers, {"image": "imge"}, r"no column 'imge' \(--shown\)"),
        (numbers, {"image": "number"}, "holds int64, not pictures; say --shown NAME$"),
        (numbers, {}, "holds int, not text; say --said NAME$"),
        (splits, {}, "holds test, train: name one of them$"),
    ):
        with pytest.raises(UserError, match=message):
            every_picture(OptionData(train=spec, columns=columns, options=options), "train")


def test_pictures_written_as_text_do_not_fill_the_screen(read, tmp_path):
    table = tmp_path / "a.jsonl"
    table.write_text(json.dumps({"image": "iVBORw0KGgo" * 500, "caption": "x"}))
    with pytest.raises(UserError, match=r"of 1, 1 are broken \(.*iVBO.*\.\.\.: missing\)") as caught:
        read(str(table))
    assert len(str(caught.value)) < 500


def test_a_folder_without_pictures_names_the_kinds_of_pictures(read, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(
        UserError, match=r"none holds no pictures \(\.jpg \.jpeg .*\); pictures are read from \.parquet"
    ):
        read(str(tmp_path / "none"))
