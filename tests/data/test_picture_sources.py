"""Where pictures come from: tables, lists, folders and shards, and what is refused."""

from __future__ import annotations

import json
import tarfile

import datasets
import pytest

from sslnlp.data.config import OptionData
from sslnlp.data.pictured import every_picture
from sslnlp.errors import UserError
from tests.data.picture_data import CAPTIONS, COUNT, PICTURES, folder, pairs, parquet, picture, rows, shard

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
