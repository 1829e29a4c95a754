"""The local page: what it shows, what it refuses, and that nothing a stranger sends or a document holds can harm."""

from __future__ import annotations

import functools
import html
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from typer.testing import CliRunner

from sslnlp.errors import UserError
from sslnlp.search import loading
from sslnlp.search import serve as serving
from sslnlp.search.cli import search_app
from sslnlp.search.index import Index, add_documents, build_index
from sslnlp.search.page import MAX_QUERY, duration, score
from sslnlp.search.serve import LiveIndex, Server

HOSTILE = [
    {"_id": "<img src=x onerror=alert(1)>", "title": "<script>alert('title')</script> engine", "text": "An engine."},
    {"_id": "2", "title": "", "text": "engine </p><script>alert('text')</script>\x00\x1b[2J \u202e engine \ud800"},
    {"_id": "3", "title": "数学", "text": "学习数学 engine"},
]


@contextmanager
def served(path: Path, host: str = "127.0.0.1", reranker: str | None = None) -> Iterator[Server]:
    live = LiveIndex(path, lambda: Index(path, reranker=reranker))
    with Server(live, path.name, host, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HOSTILE))
    build_index(folder / "d.jsonl", folder / "i")
    with served(folder / "i") as server:
        yield server


class Reply:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()
        self.text = self.body.decode()

    @property
    def words(self) -> str:
        """The page without its tags, as a person reads it."""
        body = self.text.partition("<body>")[2]
        return re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]*>", "", body)))


def get(server: Server, target: str, method: str = "GET", **headers: str) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.request(method, target, headers=headers)
    return Reply(connection.getresponse())


def raw(server: Server, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=20) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        parts = []
        while part := client.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def test_a_page_shows_results_and_why_they_are_there(
    tmp_path: Path, corpus: Path, make_encoder: Callable[..., Path]
) -> None:
    build_index(corpus, tmp_path / "i", model=str(make_encoder(tmp_path / "m")))
    index = Index(tmp_path / "i")
    with served(tmp_path / "i") as server:
        page = get(server, "/?q=slipstream+plate&k=3")
        assert page.status == 200
        assert "5 documents" in page.words
        assert "3 results in" in page.words
        assert page.text.count("<li>") == 3
        assert "A flat <mark>plate</mark> in a <mark>slipstream</mark>." in page.text
        assert '<option value="fused" selected>' in page.text
        for mode in ("bm25", "dense", "fused"):
            found = json.loads(get(server, f"/api/search?q=slipstream+plate&k=4&mode={mode}").text)
            hits = index.search("slipstream plate", mode, 4)
            assert [(hit["rank"], hit["id"]) for hit in found["hits"]] == [(hit.rank, hit.id) for hit in hits]
            for part in ("bm25", "dense", "fused"):
                all_of_it = {hit.id: hit for hit in index.search("slipstream plate", part, 1000)}
                for hit in found["hits"]:
                    place, expected = hit["places"][part], all_of_it.get(hit["id"])
                    assert (place is None) == (expected is None)
                    assert expected is None or place == {"rank": expected.rank, "score": expected.score}
            assert set(found["seconds"]) == {"BM25", "query to vector", "vectors", "the rest", "all"}
        assert found["hits"][0]["title"]["text"] == "Plates"
        only_meaning = get(server, "/?q=noise&mode=dense&k=5").text
        assert only_meaning.count("Found by meaning alone") == 4
        assert only_meaning.count("<i>not listed</i>") == 4
        assert "BM25 contributed nothing: the query holds only stop words" in get(server, "/?q=of+the").words
        assert "BM25 contributed nothing: no document holds a word" in get(server, "/?q=zeppelin").words


class Shortest:
    """A reranker that prefers short texts, and counts what it reads."""

    fingerprint, name, read = "", "shortest", 0

    def score(self, query: str, texts: list[str], **options: object) -> np.ndarray:
        self.read += len(texts)
        return -np.array([len(text) for text in texts], dtype=np.float32)


def test_reranking_is_shown_and_costs_nothing_in_other_modes(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortest = Shortest()
    monkeypatch.setattr(loading, "load_reranker", lambda name: shortest)
    build_index(corpus, tmp_path / "i")
    with served(tmp_path / "i", reranker="any") as server:
        plain = get(server, "/?q=plate+slipstream&mode=bm25")
        assert shortest.read == 0
        assert "<dt>reranked</dt>" not in plain.text
        page = get(server, "/?q=plate+slipstream")
        assert shortest.read == 4
        assert page.text.count('<div class="by"><dt>reranked</dt>') == 4
        found = json.loads(get(server, "/api/search?q=plate+slipstream&mode=reranked").text)
        assert [hit["places"]["reranked"]["rank"] for hit in found["hits"]] == [1, 2, 3, 4]
        lengths = [-hit["places"]["reranked"]["score"] for hit in found["hits"]]
        assert lengths == sorted(lengths)
        assert found["seconds"]["reranking"] >= 0


def test_empty_nothing_found_and_wrong_are_told_apart(hostile: Server) -> None:
    empty = get(hostile, "/")
    assert empty.status == 200
    assert "Try a query" in empty.words
    assert "Try a query" in get(hostile, "/?q=+&mode=&k=").words
    nothing = get(hostile, "/?q=zeppelin")
    assert nothing.status == 200
    assert "Nothing found" in nothing.words
    assert "No document matches “zeppelin”." in nothing.words
    for target, message in [
        ("/?q=a&mode=dense", "has no vectors"),
        ("/?q=engine&k=0", "from 1 to 100"),
        ("/?q=engine&k=101", "from 1 to 100"),
        ("/?q=engine&k=ten", "whole number"),
        ("/?q=engine&k=²", "whole number"),
        ("/?q=engine&k=-1", "whole number from 1 to 100"),
        ("/?q=" + "x" * (MAX_QUERY + 1), "has 1,001 characters; at most 1,000"),
        ("/?" + "&".join(f"f{i}=1" for i in range(30)), "more than 20 fields"),
    ]:
        page, data = (get(hostile, quote(start + target[1:], safe="/?=&+")) for start in ("/", "/api/search"))
        assert (page.status, data.status) == (400, 400), target
        assert message in page.words
        assert message in json.loads(data.text)["error"]
    assert get(hostile, "/api/search").status == 400
    assert get(hostile, "/etc/passwd").status == 404
    assert get(hostile, "/%2e%2e/index.json").status == 404


def test_markup_in_documents_and_queries_is_text(hostile: Server) -> None:
    page = get(hostile, "/?q=" + quote("engine \"><script>alert('q')</script>"))
    assert page.status == 200
    body = page.text.partition("</style>")[2]
    assert "<script" not in body
    assert "<img" not in body
    assert "<script>alert('title')</script> engine" in page.words
    assert "<img src=x onerror=alert(1)>" in page.words
    assert "</p><script>alert('text')</script>" in page.words
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", page.text)  # nor can it move a cursor or turn the line around
    assert "engine \"><script>alert('q')</script>" in html.unescape(
        re.findall('name="q" value="([^"]*)"', page.text)[0]
    )
    data = get(hostile, "/api/search?q=engine")
    assert data.headers["Content-Type"] == "application/json; charset=utf-8"
    assert {hit["id"] for hit in json.loads(data.text)["hits"]} == {row["_id"] for row in HOSTILE}
    # Overlapping pairs of characters are one mark.
    assert "<mark>学习数学</mark>" in get(hostile, "/?q=" + quote("学习数学")).text


@pytest.mark.parametrize("target", ["/", "/?q=engine", "/?q=engine&k=x", "/api/search?q=engine", "/nowhere"])
def test_every_answer_carries_its_defences(hostile: Server, target: str) -> None:
    for method in ("GET", "HEAD"):
        reply = get(hostile, target, method)
        policy = reply.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["Set-Cookie"] is None
        assert not re.search(r"""(?:src|href|action)=["'](?!/"|data:)""", reply.text)  # nothing from elsewhere
    sent = raw(hostile, f"HEAD {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())  # http.client reads no body
    assert sent.endswith(b"\r\n\r\n")
    assert b"Content-Length: " in sent
    if reply.headers["Content-Type"].startswith("text/html"):
        style = re.search("<style>(.*)</style>", get(hostile, target).text, re.DOTALL)
        assert style
        digest = serving.base64.b64encode(serving.hashlib.sha256(style[1].encode()).digest()).decode()
        assert f"style-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_only_get_and_head_are_answered(hostile: Server, method: str) -> None:
    reply = get(hostile, "/?q=engine", method)
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD")
    assert "<li>" not in reply.text
    assert "only GET" in json.loads(get(hostile, "/api/search?q=engine", method).text)["error"]


@pytest.mark.parametrize(
    "line",
    [
        b"GET /?q=%ff%fe%zz%e2%28 HTTP/1.1",
        b"GET /?q=\xff\xfe\x80 HTTP/1.1",
        b"GET /?q=%00%1b%0d%0aSet-Cookie:x=1 HTTP/1.1",
        b"GET /?q=%ed%a0%80&mode=%ff&k=%ff HTTP/1.1",
        b"GET //[/?q=engine HTTP/1.1",
        b"GET http://[x/?q=1 HTTP/1.1",
        b"GET / HTTP/9.9",
        b"GET",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    ],
)
def test_broken_requests_are_harmless(hostile: Server, line: bytes) -> None:
    reply = raw(hostile, line + b"\r\nHost: localhost\r\n\r\n")
    assert reply
    assert b"Traceback" not in reply
    assert not re.search(rb"[\r\n\x00\x1b]Set-Cookie", reply)
    assert b"500" not in reply.partition(b"\r\n")[0]
    assert get(hostile, "/?q=engine").text.count("<li>") == 3


def test_a_megabyte_is_refused_and_the_sender_is_told(hostile: Server) -> None:
    request = b"GET /?q=" + b"x" * (1 << 20) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert raw(hostile, request).startswith(b"HTTP/1.0 414 ")
    many = b"".join(b"X-%d: 1\r\n" % at for at in range(1000))
    assert raw(hostile, b"GET / HTTP/1.1\r\nHost: localhost\r\n" + many + b"\r\n").startswith(b"HTTP/1.0 431 ")
    post = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048576\r\n\r\n" + b"x" * (1 << 20)
    assert raw(hostile, post).startswith(b"HTTP/1.0 405 ")
    assert get(hostile, "/?q=engine").status == 200


def test_a_name_that_is_not_this_machine_is_refused(hostile: Server) -> None:
    port = hostile.server_address[1]
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "LocalHost.", "localhost"):
        assert get(hostile, "/?q=engine", Host=host).status == 200, host
    for host in (
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "localhost@evil",
        "",
        "[::1",
        "evil:1:2",
        "192.168.0.7",
    ):
        reply = get(hostile, "/?q=engine", Host=host)
        assert (reply.status, "engine" in reply.text) == (403, False), host
    assert raw(hostile, b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 403")


def test_a_client_that_sends_nothing_blocks_nobody(hostile: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.Handler, "timeout", 0.3)
    address = ("127.0.0.1", hostile.server_address[1])
    silent = [socket.create_connection(address, timeout=20) for _ in range(20)]
    silent[0].sendall(b"GET /?q=eng")
    assert get(hostile, "/?q=engine").text.count("<li>") == 3
    for client in silent:
        assert client.recv(1) == b""  # let go after its time
        client.close()


def test_queries_at_once_wait_for_each_other(hostile: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most, inner = [], [], serving.ask

    def slow(*arguments: object) -> object:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return inner(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(serving, "ask", slow)
    replies: list[int] = []
    threads = [threading.Thread(target=lambda: replies.append(get(hostile, "/?q=engine").status)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (replies, max(most)) == ([200] * 6, 1)


def test_the_index_may_change_and_break_under_it(tmp_path: Path, corpus: Path) -> None:
    build_index(corpus, tmp_path / "i")
    (tmp_path / "new.jsonl").write_text('{"id": "new", "text": "a zeppelin"}\n{"id": "x", "text": "a plate"}\n')
    with served(tmp_path / "i") as server:
        assert "Nothing found" in get(server, "/?q=zeppelin").words
        build_index(tmp_path / "new.jsonl", tmp_path / "i")
        assert [hit["id"] for hit in json.loads(get(server, "/api/search?q=zeppelin").text)["hits"]] == ["new"]
        assert "2 documents" in get(server, "/").words or "2 documents" in get(server, "/?q=a").words
        add_documents(tmp_path / "i", corpus)
        assert get(server, "/?q=plate").text.count("<li>") == 4
        shutil.move(tmp_path / "i", tmp_path / "away")
        gone = get(server, "/?q=zeppelin")
        assert gone.status == 503
        assert "no index at" in gone.words
        shutil.move(tmp_path / "away", tmp_path / "i")
        assert get(server, "/?q=zeppelin").text.count("<li>") == 1


def test_an_error_inside_is_told_without_its_details(
    hostile: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(serving, "ask", fail)
    for target in ("/?q=engine", "/api/search?q=engine"):
        reply = get(hostile, target)
        assert reply.status == 500
        assert "the search failed" in reply.text
        assert "secret" not in reply.text
    assert "RuntimeError: secret" in capsys.readouterr().err


def test_it_listens_on_this_machine_only_unless_told_otherwise(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(corpus, tmp_path / "i")
    seen: list[str] = []

    def stop(self: Server) -> None:
        seen.append(str(self.server_address[0]))
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", stop)
    quiet = CliRunner().invoke(search_app, ["serve", str(tmp_path / "i"), "--port", "0"])
    assert (quiet.exit_code, seen.pop()) == (0, "127.0.0.1")
    assert "Warning" not in quiet.output
    assert re.search(r"Searching .* at http://127\.0\.0\.1:\d+/", quiet.output)
    told = CliRunner().invoke(search_app, ["serve", str(tmp_path / "i"), "--port", "0", "--host", "0.0.0.0"])
    assert (told.exit_code, seen.pop()) == (0, "0.0.0.0")
    assert told.output.count("Warning") == 1
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for arguments in (["--port", str(taken.getsockname()[1])], ["--host", "no.such.host.invalid"]):
            error = CliRunner().invoke(search_app, ["serve", str(tmp_path / "i"), *arguments]).exception
            assert isinstance(error, UserError)
            assert "cannot serve at" in str(error)


def test_an_open_address_answers_to_any_name(tmp_path: Path, corpus: Path) -> None:
    build_index(corpus, tmp_path / "i")
    with served(tmp_path / "i", "0.0.0.0") as server:
        assert get(server, "/?q=plate", Host="desk.lan:8765").status == 200
        assert server.url.startswith("http://127.0.0.1:")


def test_ctrl_c_ends_it_quietly(tmp_path: Path, corpus: Path) -> None:
    build_index(corpus, tmp_path / "i")
    command = [sys.executable, "-m", "sslnlp", "search", "serve", str(tmp_path / "i"), "--port", "0"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell that started the tests in the background has SIGINT ignored, and children inherit that.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, preexec_fn=heard, **pipes) as process:
        assert process.stdout is not None
        assert "Ctrl-C ends it" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 0


def test_figures_for_people() -> None:
    assert [duration(s) for s in (0.00004, 0.0012, 0.034, 2.51)] == ["0.0 ms", "1.2 ms", "34 ms", "2.5 s"]
    assert [score(v) for v in (12.3456, 0.73216, 0.032786, -1.5)] == ["12.35", "0.732", "0.0328", "-1.500"]
