"""Pictures indexed, and found by words and by pictures; a tiny random dual encoder stands for a trained one."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertModel, VisionTextDualEncoderModel, ViTConfig, ViTModel
from typer.testing import CliRunner, Result

from sslnlp.errors import UserError
from sslnlp.picture_encoder import PictureEncoder
from sslnlp.search import changes
from sslnlp.search.cli import search_app
from sslnlp.search.index import Index, add_documents, build_index, delete_documents
from sslnlp.search.loading import load_encoder
from sslnlp.search.serve import Server
from tests.search.test_serve import get, raw, served

QUERIES = ["slipstream plate", "noise", "the heat of a wing"]


@pytest.fixture(scope="module")
def make_dual(make_encoder: Callable[..., Path]) -> Callable[..., Path]:
    """make_dual(folder, seed=0) -> the folder, with a random dual encoder of 16-pixel pictures in it."""

    def make(folder: Path, seed: int = 0) -> Path:
        tokenizer = AutoTokenizer.from_pretrained(make_encoder(folder / "text"), model_max_length=20)
        sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        text = BertConfig(vocab_size=len(tokenizer), intermediate_size=32, max_position_embeddings=32, **sizes)
        vision = ViTConfig(image_size=16, patch_size=8, intermediate_size=32, **sizes)
        model = VisionTextDualEncoderModel(vision_model=ViTModel(vision), text_model=BertModel(text))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        shutil.rmtree(folder / "text")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def dual(tmp_path_factory: pytest.TempPathFactory, make_dual: Callable[..., Path]) -> Path:
    return make_dual(tmp_path_factory.mktemp("dual"))


def _jpeg(seed: int, width: int = 300, height: int = 150) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 10, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST).save(file, "JPEG")
    return file.getvalue()


GOOD = {f"{n}.jpg": _jpeg(n) for n in range(8)}
CAPTIONS = {"0.jpg": ["A flat plate."], "1.jpg": ["Engines", "make noise"], "2.jpg": [""]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight pictures and four broken ones, with a table of captions: one in two rows, most without."""
    there = {**GOOD, "cut.jpg": GOOD["0.jpg"][:700], "none.jpg": b"<html>", "empty.jpg": b""}
    place = tmp_path / "pictures"
    place.mkdir()
    for name, content in there.items():
        (place / name).write_bytes(content)
    rows = [(name, caption) for name in (*there, "absent.jpg") for caption in CAPTIONS.get(name, [""])]
    lines = [json.dumps({"file_name": name, "caption": caption}) + "\n" for name, caption in rows]
    (place / "metadata.jsonl").write_text("".join(lines))
    return place


def _parquet(path: Path, pictures: dict[str, bytes], **columns: list[str]) -> Path:
    table = datasets.Dataset.from_dict({"image": [{"bytes": c, "path": None} for c in pictures.values()], **columns})
    table.cast_column("image", datasets.Image(decode=False)).to_parquet(path)
    return path


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(search_app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})


def _by_hand(dual: Path, names: list[str], query: str) -> tuple[list[str], np.ndarray]:
    """The names in the order of their cosine with the query, and the cosines in that order."""
    encoder = PictureEncoder.load(str(dual))
    scores = encoder.pictures([GOOD[name] for name in names]) @ encoder.texts([query])[0]
    order = np.argsort(-scores, kind="stable")
    return [names[at] for at in order], scores[order]


def test_a_folder_with_a_table_is_found_by_words(tmp_path: Path, dual: Path, folder: Path) -> None:
    made = _run("index", folder, "--model", dual, "--out", tmp_path / "i", "--dtype", "float32")
    assert made.exit_code == 0, made.exception
    out = " ".join(made.output.split())
    assert "Indexed 8 pictures, 4 broken left out (" in out
    for reason in ("1 truncated", "1 not an image", "1 empty", "1 missing"):
        assert reason in out
    assert "BM25 + 512-dimensional float32 vectors." in out
    assert "none.jpg: not an image" in out
    index = Index(tmp_path / "i")
    assert index.modes == ("bm25", "dense", "fused")
    assert [document.id for document in index.documents] == list(GOOD)
    assert {d.id: d.text for d in index.documents if d.text} == {
        "0.jpg": "A flat plate.",
        "1.jpg": "Engines\nmake noise",
    }
    for query in QUERIES:
        names, scores = _by_hand(dual, list(GOOD), query)
        hits = index.search(query, "dense", 20)
        assert [hit.id for hit in hits] == names
        assert [hit.score for hit in hits] == pytest.approx(scores, abs=1e-5)
    assert [hit.id for hit in index.search("noise", "bm25")] == ["1.jpg"]
    assert len(index.search("noise", "fused", 20)) == 8
    assert "Engines make noise" in _run("query", tmp_path / "i", "noise", "--mode", "bm25").output
    (tmp_path / "q.tsv").write_text("q1\tnoise\n")
    (tmp_path / "qrels").write_text("q1 0 1.jpg 1\n")
    table = _run("evaluate", tmp_path / "i", "--queries", tmp_path / "q.tsv", "--qrels", tmp_path / "qrels").output
    assert all(mode in table for mode in index.modes)


def test_pictures_without_captions_have_vectors_alone(tmp_path: Path, dual: Path) -> None:
    """From a table, by the number of the row; captions that come later bring the words, and take them along."""
    data = _parquet(tmp_path / "d.parquet", {"x": b"no picture", **GOOD})
    made = _run("index", data, "--model", dual, "--out", tmp_path / "i")
    assert "512-dimensional float16 vectors (no captions, so no BM25)." in made.output
    index = Index(tmp_path / "i")
    assert index.modes == ("dense",)
    assert [document.id for document in index.documents] == [str(n) for n in range(1, 9)]
    names, _ = _by_hand(dual, list(GOOD), "noise")
    assert [hit.id for hit in index.search("noise", k=20)] == [str(list(GOOD).index(name) + 1) for name in names]
    for mode in ("fused", "bm25", "reranked"):
        error = _run("query", tmp_path / "i", "noise", "--mode", mode).exception
        assert "have no captions" in str(error)
        assert "only dense" in str(error)
    more = _parquet(tmp_path / "m.parquet", {"a": GOOD["0.jpg"]}, name=["new"], words=["helium"])
    added = _run("add", tmp_path / "i", more, "--id-column", "name", "--text-column", "words")
    assert "Added 1 picture." in added.output
    assert [hit.id for hit in Index(tmp_path / "i").search("helium", "bm25")] == ["new"]
    assert delete_documents(tmp_path / "i", ["new"]) == 1
    assert Index(tmp_path / "i").modes == ("dense",)


def test_what_is_added_and_deleted_ranks_as_if_built_at_once(tmp_path: Path, dual: Path) -> None:
    parts = [dict(list(GOOD.items())[start : start + 4]) for start in (0, 4)]
    for n, part in enumerate(parts):
        _parquet(tmp_path / f"{n}.parquet", part, id=list(part))
    build_index(tmp_path / "0.parquet", tmp_path / "i", model=str(dual), dtype="float32", ann=True)
    assert add_documents(tmp_path / "i", tmp_path / "1.parquet").documents == 4
    with pytest.raises(UserError, match=r"'4\.jpg' among them: --replace"):
        add_documents(tmp_path / "i", tmp_path / "1.parquet")
    delete_documents(tmp_path / "i", ["1.jpg", "6.jpg"])
    left = [name for name in GOOD if name not in ("1.jpg", "6.jpg")]
    index, near = Index(tmp_path / "i"), Index(tmp_path / "i", ann=True)
    for query in QUERIES:
        assert [hit.id for hit in index.search(query, k=20)] == _by_hand(dual, left, query)[0]
        assert [hit.id for hit in near.search(query, k=20)] == [hit.id for hit in index.search(query, k=20)]
    for row, name in enumerate(index.documents.ids):  # the small pictures moved with their documents
        if name:
            assert _likeness(index.thumbnails[row], GOOD[name]) < 12


def _likeness(small: bytes, content: bytes) -> float:
    """Mean difference of a thumbnail's pixels from the picture's."""
    shown = Image.open(io.BytesIO(small))
    whole = Image.open(io.BytesIO(content)).resize(shown.size, Image.Resampling.BICUBIC)
    return float(np.abs(np.asarray(shown, np.float32) - np.asarray(whole, np.float32)).mean())


def test_a_vision_tower_alone_reads_pictures_and_no_words(tmp_path: Path, make_encoder: Callable[..., Path]) -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = ViTConfig(image_size=16, patch_size=8, intermediate_size=32, **sizes)
    ViTModel(vision, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    encoder = PictureEncoder.load(str(tmp_path / "vit"))
    assert encoder.tokenizer is None
    assert np.linalg.norm(encoder.pictures([GOOD["0.jpg"]]), axis=1) == pytest.approx([1])
    with pytest.raises(UserError, match="no text tower"):
        encoder.texts(["words"])
    with pytest.raises(UserError, match="vit reads pictures and no words: to search pictures, name with --model the"):
        load_encoder(str(tmp_path / "vit"))
    with pytest.raises(UserError, match="a 'bert' model reads no pictures"):
        PictureEncoder.load(str(make_encoder(tmp_path / "texts")))
    with pytest.raises(UserError, match="cannot load the picture encoder"):
        PictureEncoder.load(str(tmp_path))


def test_texts_are_cut_to_what_the_tower_was_trained_to_read(dual: Path) -> None:
    encoder = PictureEncoder.load(str(dual))
    assert encoder.max_length == 20  # the tokenizer's, though the tower has 32 positions
    long = encoder.texts(["noise " * 18 + "heat", "noise " * 18])
    assert np.array_equal(long[0], long[1])


def test_shards_and_folders_alone_are_read_too(tmp_path: Path, dual: Path) -> None:
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        for name, content in (("a/1.jpg", GOOD["1.jpg"]), ("a/1.txt", b"Engines"), ("a/2.jpg", b"?")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (tmp_path / "d" / "deep").mkdir(parents=True)
    (tmp_path / "d" / "deep" / "1.jpg").write_bytes(GOOD["1.jpg"])
    for data, wanted in (("d.tar", ("a/1", "", "Engines")), ("d", ("deep/1.jpg", "", ""))):
        build_index(tmp_path / data, tmp_path / "i", model=str(dual))
        assert list(Index(tmp_path / "i").documents) == [wanted]


def test_a_picture_finds_itself_first(tmp_path: Path, dual: Path, folder: Path) -> None:
    build_index(folder, tmp_path / "i", model=str(dual))
    found = _run("query", tmp_path / "i", "--picture", folder / "5.jpg", "-k", 2).output.split()
    assert found[1:3] == ["1.0000", "5.jpg"]
    for arguments, message in (
        (("--picture", folder / "none.jpg"), "no picture to search by (not an image)"),
        (("--picture", folder / "absent.jpg"), "No such file"),
        (("--picture", folder / "5.jpg", "noise"), "either words to look for or a --picture"),
        ((), "either words to look for or a --picture"),
        (("--picture", folder / "5.jpg", "--mode", "fused"), "leave out --mode"),
    ):
        error = _run("query", tmp_path / "i", *arguments).exception
        assert isinstance(error, UserError), arguments
        assert message in str(error)


def test_what_a_killed_run_encoded_is_not_encoded_again(
    tmp_path: Path, dual: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    pictures = PictureEncoder.pictures

    def counted(self: PictureEncoder, contents: list[bytes], **options: int) -> np.ndarray:
        if len(encoded) == 1:
            encoded.append(0)
            raise KeyboardInterrupt
        encoded.append(len(contents))
        return pictures(self, contents, **options)

    monkeypatch.setattr("sslnlp.search.pictures.PictureSource.block", 3)
    monkeypatch.setattr(PictureEncoder, "pictures", counted)
    with pytest.raises(KeyboardInterrupt):
        build_index(folder, tmp_path / "i", model=str(dual))
    said: list[str] = []
    build_index(folder, tmp_path / "i", model=str(dual), say=said.append)
    assert encoded == [3, 0, 3, 2]
    assert "8 documents read and counted, 3 encoded" in said[0]
    assert [hit.id for hit in Index(tmp_path / "i").search("noise", "dense", 9)] == _by_hand(dual, list(GOOD), "noise")[
        0
    ]


HOSTILE = {
    "../../../etc/passwd": GOOD["0.jpg"],
    '"><script>alert(1)</script>': GOOD["1.jpg"],
    "a&id=b #?": GOOD["2.jpg"],
}


def _asked(server: Server, target: str) -> tuple[bytes, bytes]:
    """Head and body of the reply."""
    head, _, body = raw(server, f"GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()).partition(b"\r\n\r\n")
    return head, body


def test_thumbnails_are_served_from_the_index_alone(tmp_path: Path, dual: Path) -> None:
    data = _parquet(tmp_path / "d.parquet", HOSTILE, id=list(HOSTILE), caption=["<img src=x onerror=1>", "engine", ""])
    build_index(data, tmp_path / "i", model=str(dual))
    data.unlink()
    with served(tmp_path / "i") as server:
        page = get(server, "/?q=engine&mode=dense")
        assert "3 pictures" in page.words
        assert "<script>" not in page.text
        assert "<img src=x" not in page.text
        assert "img-src data: 'self'" in page.headers["Content-Security-Policy"]
        links = re.findall(r'<img class="thumbnail" src="([^"]*)" alt="">', page.text)
        found = json.loads(get(server, "/api/search?q=engine&mode=dense").text)["hits"]
        assert [hit["thumbnail"] for hit in found] == links
        assert len(links) == 3
        for hit in found:
            head, body = _asked(server, hit["thumbnail"])
            assert head.split()[1] == b"200"
            assert b"Content-Type: image/jpeg\r\n" in head
            assert b"X-Content-Type-Options: nosniff" in head
            small = Image.open(io.BytesIO(body))
            assert (small.format, small.size) == ("JPEG", (96, 48))
            assert _likeness(body, HOSTILE[hit["id"]]) < 12
        for target in ("/thumbnail", "/thumbnail?id=", "/thumbnail?id=/etc/passwd", "/thumbnail/../index.json",
                       "/thumbnail?id=..%2Findex.json", "/thumbnail?id=%ff%00", "/thumbnail?" + 30 * "a&"):  # fmt: skip
            assert get(server, target).status == 404, target
        delete_documents(tmp_path / "i", ["a&id=b #?"])
        gone = [hit["id"] for hit in found if _asked(server, hit["thumbnail"])[0].split()[1] == b"404"]
        assert gone == ["a&id=b #?"]


def test_what_is_wrong_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    dual: Path,
    folder: Path,
    make_dual: Callable[..., Path],
    make_encoder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts, other = make_encoder(tmp_path / "texts"), make_dual(tmp_path / "other", seed=1)
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "a.txt").write_text("A flat plate.")
    (tmp_path / "pairs.jsonl").write_text('{"query": "q", "positive": "p"}\n')
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "1.jpg").write_bytes(GOOD["1.jpg"])
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "1.jpg").write_bytes(b"?")
    twice = _parquet(tmp_path / "twice.parquet", {"a": GOOD["0.jpg"], "b": GOOD["1.jpg"]}, id=["x", "x"])
    build_index(folder, tmp_path / "i", model=str(dual))
    build_index(documents, tmp_path / "t", model=str(texts))
    lacking = tmp_path / "lacking"
    shutil.copytree(dual, lacking)
    weights = load_file(lacking / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, lacking / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(changes, "load_reranker", lambda name: SimpleNamespace(name=name, fingerprint="0"))
    new = ("--out", tmp_path / "new")
    cases: list[tuple[tuple[object, ...], str]] = [
        (("index", plain, "--model", texts, *new), "holds pictures and no texts: to search them"),
        (("index", plain, *new), "holds pictures and no texts: to search them"),
        (("index", documents, "--model", dual, *new), "the encoder reads pictures: "),
        (("index", plain, "--model", lacking, *new), "lacks 1 of its weights, visual_projection.weight"),
        (("index", broken, "--model", dual, *new), "1.jpg: not an image"),
        (("index", twice, "--model", dual, *new), "two documents have the id 'x'"),
        (("index", folder, "--model", dual, "--text-column", "words", *new), "no column 'words' (--text-column)"),
        (("index", folder, "--model", dual, "--title-column", "words", *new), "leave out --title-column"),
        (("index", plain, "--model", dual, "--reranker", "any", *new), "has a caption: leave --reranker out"),
        (("add", tmp_path / "i", documents), "the encoder reads pictures: "),
        (("add", tmp_path / "i", plain, "--model", texts), "holds pictures, and"),
        (("add", tmp_path / "t", plain, "--model", dual), "holds texts, and"),
        (("add", tmp_path / "i", plain, "--model", other), "another model"),
        (("add", tmp_path / "t", plain), "holds pictures and no texts"),
        (("query", tmp_path / "i", "noise", "--model", other), "another model"),
        (("mine", tmp_path / "pairs.jsonl", "--model", dual, "--out", tmp_path / "m.jsonl"), "finds pictures"),
        (("query", tmp_path / "t", "--picture", folder / "1.jpg"), "holds texts"),
    ]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for arguments, message in cases:
        error = _run(*arguments).exception
        assert isinstance(error, UserError), (arguments, error)
        assert message in str(error), str(error)
        assert "\n" not in str(error)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before, arguments
