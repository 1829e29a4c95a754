"""The report: what a run's folder says, and nothing else, on a page that needs nothing else."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sslnlp.data.stream import Stream
from sslnlp.errors import UserError
from sslnlp.evaluation import evaluate_held_out
from sslnlp.evaluation.bootstrap import Figure
from sslnlp.objectives import OBJECTIVES
from sslnlp.recipe import load_recipe
from sslnlp.recipe.reporting import RunReport
from sslnlp.report import Chart, Report, Section, Table, make_report, read_run
from sslnlp.report.card import Card
from sslnlp.report.measures import measure
from sslnlp.report.page import format_cell
from sslnlp.report.sections import write_figures
from sslnlp.report.svg import line_chart, thinned, ticks
from sslnlp.types import Row
from tests.contract import make_collator, make_objective, make_stream


def write_run(folder: Path, objective: str = "causal_lm", **facts: object) -> Path:
    folder.mkdir(parents=True)
    recipe = {"objective": {"name": objective}, "model": {"architecture": "gpt2", "size": "nano"}}
    (folder / "recipe.json").write_text(json.dumps({"recipe": recipe, **facts}))
    lines = [{"step": s, "train/loss": 5 - s / 10, "train/lr": 1e-3, "train/tokens": 64 * s} for s in (10, 20, 30)]
    lines += [{"step": s, "valid/loss": 5.5 - s / 10, "valid/bits_per_byte": 3 - s / 20} for s in (10, 20, 30)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 40, "tra')
    return folder


class Page(HTMLParser):
    """Collects what a browser would fetch, and checks that every element is closed."""

    VOID = frozenset({"meta", "line", "circle", "polyline", "br", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.fetched += [tag] if tag in ("script", "link", "iframe", "img") else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(autouse=True)
def _no_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of figures/ take most of a report's time: they are drawn where a test looks at them."""
    if "figures" not in request.node.name:
        monkeypatch.setattr("sslnlp.report.runs.write_figures", lambda charts, folder: [])


def test_report_shows_held_out_figures_with_unit_meaning_and_chance(tmp_path: Path) -> None:
    run = write_run(tmp_path / "gpt", tokenizer={"figures": {"vocab_size": 1024, "bytes_per_token": 4.0}})
    make_report(run)
    report = json.loads((run / "report.json").read_text())
    reached = next(s for s in report["sections"] if s["title"] == "What it reached")
    table = reached["tables"][0]
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
    assert rows["loss"]["held out"] == pytest.approx(2.5)  # the newest line, not the first
    assert rows["loss"]["chance"] == pytest.approx(math.log(1024))
    assert rows["bits_per_byte"]["chance"] == pytest.approx(10 / 4)  # log2(1024) bits a token over 4 bytes a token
    assert "bits per byte" in rows["bits_per_byte"]["unit"]
    assert "code length" in dict(zip(rows, table["meanings"], strict=True))["bits_per_byte"]


def test_figures_of_the_weights_left_behind_come_before_the_last_logged(tmp_path: Path) -> None:
    assert read_run(write_run(tmp_path / "going")).held_out()["loss"] == pytest.approx(2.5)
    done = write_run(tmp_path / "done", result={"steps": 30, "measures": {"loss": 2.25}})
    assert read_run(done).held_out() == {"loss": 2.25}


@pytest.mark.parametrize("number", [1, 2])
def test_why_held_out_figures_say_little_stands_above_them(tmp_path: Path, number: int) -> None:
    """As the run said below them: a ranking of one candidate is perfect, and a page must not show it as it is."""
    result = {"steps": 30, "measures": {"loss": 0.0}, "notes": ["there is one candidate"]}
    runs = [write_run(tmp_path / f"run{n}", result=result) for n in range(number)]
    make_report(runs[0], against=[str(run) for run in runs[1:]])
    text = sections_of(runs[0])["What it reached"]["text"]
    assert text == "\n".join([f"{run.name}: there is one candidate" for run in runs] if number > 1 else result["notes"])


def sections_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {s["title"]: s for s in json.loads((folder / "report.json").read_text())["sections"]}


def test_a_run_that_has_not_ended_is_called_so_and_its_newest_figure_shown_whatever_it_is(tmp_path: Path) -> None:
    going = write_run(tmp_path / "going")
    with (going / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 40, "valid/loss": "nan"}\n')
    done = write_run(tmp_path / "done", result={"steps": 30, "measures": {"loss": 2.25}})
    make_report(going, against=[str(done)])
    sections = sections_of(going)
    assert sections["Not finished"]["text"].startswith("going: its log ends at step 40")
    assert "done" not in sections["Not finished"]["text"]
    losses = [row[1:3] for row in sections["What it reached"]["tables"][0]["rows"] if row[0] == "loss"]
    assert losses == [["going", "nan"], ["done", 2.25]]


@pytest.mark.parametrize(
    ("policy", "then"), [("stop", "stopped there"), ("rollback", "went back and skipped its rows")]
)
def test_a_gradient_that_was_not_finite_is_the_first_thing_on_the_page(policy: str, then: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "gpt")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 31, "event": "nonfinite_gradient", "policy": policy}).join("\n\n"))
    make_report(run)
    title, section = next(iter(sections_of(run).items()))
    assert title == "Alarm"
    assert section["text"].startswith(f"gpt: the gradient of step 31 was not finite, and the run {then}")


def test_a_report_card_says_which_of_several_runs_it_is_of_and_the_chance_of_each(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / name) for name in ("a", "b"))
    large, small = (
        Card({"mask_loss": Figure(3.0, 2.0, 4.0, number, chance)}) for number, chance in ((9, 9.01), (8, 6))
    )
    make_report(first, against=[str(second)], cards={"b": small})
    table = sections_of(first)["Report card"]["tables"][0]
    assert table["columns"] == ["measure", "b", "chance", "items"]
    make_report(first, against=[str(second)], cards={"a": large, "b": small})
    table = sections_of(first)["Report card"]["tables"][0]
    assert table["columns"] == ["measure", "a", "b", "chance", "items"]
    assert table["rows"][0][-2:] == ["6 to 9", "8 to 9"]
    make_report(first, against=[str(second)], cards={"a": small, "b": small})
    assert sections_of(first)["Report card"]["tables"][0]["rows"][0][-2:] == ["6", 8]


def test_page_is_well_formed_and_fetches_nothing(tmp_path: Path) -> None:
    page = Page(make_report(write_run(tmp_path / "gpt")).read_text())
    assert page.fetched == []
    assert page.open == []
    assert "What it reached" in page.text


def test_curves_hold_training_and_held_out_points(tmp_path: Path) -> None:
    run = write_run(tmp_path / "gpt")
    make_report(run)
    sections = {s["title"]: s for s in json.loads((run / "report.json").read_text())["sections"]}
    loss = sections["How it got there"]["charts"][0]
    assert loss["series"] == {
        "training": [[10, 4.0], [20, 3.0], [30, 2.0]],
        "held out": [[10, 4.5], [20, 3.5], [30, 2.5]],
    }


def test_several_runs_stand_side_by_side_but_objectives_never_share_a_chart(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", parameters=10)
    second, third = write_run(tmp_path / "b", parameters=20), write_run(tmp_path / "c", objective="masked_lm")
    out = tmp_path / "side"
    make_report(first, against=[str(second), str(third)], out=str(out))
    sections = {s["title"]: s for s in json.loads((out / "report.json").read_text())["sections"]}
    for chart in sections["How it got there"]["charts"]:
        runs = {name.split(":")[0] for name in chart["series"]}
        assert not ({"a", "b"} & runs and "c" in runs)
    facts = sections["What it was made from"]["tables"][0]
    assert ["parameters", 10, 20, None] in facts["rows"]
    assert sorted(path.name for path in first.iterdir()) == ["metrics.jsonl", "recipe.json"]


def test_text_of_a_run_cannot_become_markup(tmp_path: Path) -> None:
    run = write_run(tmp_path / "gpt", note="<script>alert(1)</script>")
    chart = Chart("<b>t</b>", "<x>", "<y>", {"<i>s</i>": [(0.0, 1.0), (1.0, 2.0)]})
    section = Section(
        "<h1>x</h1>", text="<em>", tables=[Table(["<td>"], [["<tr>"]], title="<u>", note="<s>")], charts=[chart]
    )
    html = make_report(run, title="<title>", sections=[section]).read_text()
    assert not re.search(r"<(script|b|x|y|i|em|u|s)>", html)
    assert "&lt;script&gt;" in html


def test_a_full_disk_names_the_file_and_leaves_the_report_before(tmp_path: Path) -> None:
    run = write_run(tmp_path / "gpt")
    before = make_report(run).read_text()
    for name in ("report.json", "report.html"):
        (run / f"{name}.tmp").symlink_to("/dev/full")
        with pytest.raises(UserError, match=rf"cannot write .*gpt/{name}: No space left on device; free some space"):
            make_report(run, title="another")
        assert not list(run.glob("*.tmp"))
    assert (run / "report.html").read_text() == before


def test_numbers_that_json_does_not_know_are_written_as_text(tmp_path: Path) -> None:
    Report("r", sections=[Section("s", tables=[Table(["v"], [[math.nan], [math.inf]])])]).write(tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    report = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert report["sections"][0]["tables"][0]["rows"] == [["nan"], ["inf"]]


def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe\.json"):
        make_report(tmp_path)
    (tmp_path / "recipe.json").write_text("{not json")
    with pytest.raises(UserError, match="cannot read"):
        read_run(tmp_path)
    for other in ("[]", '{"recipe": 5}'):
        (tmp_path / "recipe.json").write_text(other)
        with pytest.raises(UserError, match="is not what a run writes"):
            read_run(tmp_path)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (True, "yes"), (1234567, "1,234,567"), (0.123456, "0.1235"), (123456.7, "123,457"), ("a", "a")],
)
def test_cells_are_written_for_people(value: object, shown: str) -> None:
    assert format_cell(value) == shown  # type: ignore[arg-type]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.31, 9.77), (0.0, 5e-4), (-3.0, 3.0), (1e6, 7e6)])
def test_ticks_are_round_few_and_cover_the_range(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 3 <= len(found) <= 8
    step = found[1] - found[0]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 5)


def test_ticks_of_a_constant_are_the_constant() -> None:
    assert ticks(2.5, 2.5) == [2.5]


def test_a_chart_of_nothing_says_so() -> None:
    assert "nothing was logged" in line_chart("loss", "step", "nats", {"training": [(1.0, math.nan)]})


def test_a_line_ends_inside_the_drawing_at_the_corners_of_its_range() -> None:
    drawn = line_chart("loss", "step", "nats", {"training": [(0.0, 0.0), (10.0, 5.0)]})
    points = re.search(r"points='([^']+)'", drawn)
    assert points
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in points.group(1).split())
    assert 0 < x0 < x1 < 640
    assert 0 < y1 < y0 < 300  # larger values stand higher


def test_thinning_keeps_the_mean() -> None:
    points = [(float(i), float(i % 7)) for i in range(1400)]
    kept = thinned(points, most=200)
    assert len(kept) == 200
    assert sum(y for _, y in kept) / 200 == pytest.approx(sum(y for _, y in points) / 1400)


class Few:
    """The first rows of a stream, in its fixed order."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return 6

    def rows(self, positions: Sequence[int]) -> list[Row]:
        return self.stream.rows(positions)


@pytest.mark.parametrize("name", [*OBJECTIVES, "clip-beside"])
def test_every_held_out_figure_has_its_unit_and_meaning(name: str) -> None:
    objective, cls = make_objective(name), name.partition("-")[0]
    rows = Few(Stream.fixed(make_stream(name).source))
    for figure in evaluate_held_out(objective, make_collator(name), rows, batch_size=4, num_bytes=99):
        if not figure.startswith("views/"):  # of whatever objective stands beside
            assert measure(cls, figure) is not None, figure


def test_the_temperature_of_a_cosine_is_not_that_of_a_calibration() -> None:
    assert "cosine" in getattr(measure("info_nce", "temperature"), "meaning", "")
    assert "export" in getattr(measure("classification", "temperature"), "meaning", "")


def test_chance_of_a_random_ranking() -> None:
    # One relevant document among 4: its expected reciprocal rank within 2 is (1 + 1/2) / 4.
    told = measure("ranking", "beir_mrr@2")
    assert told is not None
    assert told.chance({"num_documents": 4}) == pytest.approx(1.5 / 4)
    assert told.chance({}) is None
    recall = measure("ranking", "recall@2")
    assert recall is not None
    assert recall.chance({"num_documents": 4}) == pytest.approx(0.5)


def test_figures_name_runs_as_they_are_called(tmp_path: Path) -> None:
    """A name is no formula, and one with an underscore before it stands in the legend too."""
    named = {"$^$": [(0.0, 1.0), (1.0, 2.0)], "_tiny": [(0.0, 2.0), (1.0, 3.0)]}
    paths = write_figures([Chart("accuracy of $^$", "labels", "×100", named)], tmp_path)
    drawn = next(path for path in paths if path.suffix == ".svg").read_text()
    assert "<!-- $^$ -->" in drawn
    assert "<!-- _tiny -->" in drawn


def test_a_pass_that_a_budget_times_is_none_of_those_that_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card(figures={"known_item_mrr": Figure(0.5, 0.4, 0.6, 4)})
    monkeypatch.setattr(RunReport, "_texts", lambda report: lambda objective, written: card)
    recipe = load_recipe("pretrain_bert", ["report.every=2", f"out={tmp_path}"])
    parts: Any = SimpleNamespace(recipe=recipe)
    evaluate: Any = RunReport(parts).beside(lambda objective: {})
    assert evaluate(None) == {}
    (tmp_path / "metrics.jsonl").write_text("")  # the run begins
    assert [len(evaluate(None)) for _ in range(4)] == [0, 1, 0, 1]
