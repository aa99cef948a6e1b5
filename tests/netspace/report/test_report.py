"""The report: what is gathered and counted, what the page and the Markdown say, and the page in a real browser."""

import base64
import json
import math
import re
import shutil
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from markupsafe import escape
from untrained import untrained_run

from netspace import experiments
from netspace.cli import main
from netspace.experiments import Experiment, UnknownExperiment, running
from netspace.experiments.result import Result, Table, claim
from netspace.report.make import ReportError, report, training_picture, training_seconds
from netspace.report.model import RecipeClaim
from netspace.report.pages import ENVIRONMENT, html_page, inline
from netspace.report.variants import spread, variants, without_variants
from netspace.report.words import bound, duration, measured, number, verdict
from prepkit.errors import OutputError, PrepkitError
from prepkit.figures import new_figure

pytestmark = pytest.mark.usefixtures("one_thread")

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
NASTY = "<script>document.title = 'taken'</script> & \"quoted\" | bar"
ROWS = (("b", 10, None), ("a", 9.5, True), ("c", 100, False), ("d", None, True))
LINES = [
    {"step": 10, "loss": 2.0, "kd": 1.5, "gradient_norm": 3.0, "learning_rate": 1e-3, "instances_per_second": 40.0},
    {"step": 10, "validation": {"score": -0.5, "mean_difference": 0.5, "odd": math.nan}, "best": True},
    {"step": 15, "loss": 1.0, "kd": 0.5, "gradient_norm": 2.0, "learning_rate": 1e-3, "instances_per_second": 80.0},
]


def accuracy(subject):
    """An experiment whose number follows the run's seed, with a name that would break a page."""
    figure = new_figure(3, 2)
    figure.subplots().plot([0, 1], [0, 1])
    found = 0.9 + 0.03 * subject.run.recipe.training.seed
    return Result(
        "accuracy",
        f"Accuracy {NASTY}",
        f"Words in `code` and {NASTY}\n\nA second paragraph.",
        {"accuracy": found, "nasty": NASTY},
        [
            claim("Accuracy", found, ">=", 0.92),
            claim(NASTY, math.nan, "<=", 1),
            claim("A question", 0.5, ">=", 0.25, kind="beyond", unit="%"),
            claim("A check", 0, "==", 0, kind="check"),
        ],
        [Table("Instances", ("name", "value", "flag"), ROWS)],
        [subject.picture("Curves", "accuracy.png", figure)],
    )


def broken(subject):
    raise PrepkitError(f"cannot be: {NASTY}")


FUNCTIONS = {"accuracy": accuracy, "identity": broken}


@pytest.fixture
def made_up(monkeypatch):
    """Two experiments alone, one of which cannot be made."""
    known = {name: Experiment(name, ("single",)) for name in FUNCTIONS}
    for module in (experiments, running):  # whole, as the order of the table is that of the report
        monkeypatch.setattr(module, "EXPERIMENTS", known)
    monkeypatch.setattr(running, "experiment_function", FUNCTIONS.__getitem__)


@pytest.fixture
def runs(tmp_path, small_zoo):
    """Two runs of one recipe with other seeds."""
    made = [
        untrained_run(tmp_path / f"run-{seed}", "digits_single", small_zoo("digits_single"), **{"training.seed": seed})
        for seed in (0, 1)
    ]
    made[0].metrics_file.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return made


@pytest.fixture
def variant(tmp_path, small_zoo):
    """A run of another recipe on the same zoo, with a score."""
    run = untrained_run(
        tmp_path / "run-weights", "digits_single_weights", small_zoo("digits_single"), **{"training.seed": 2}
    )
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return run


# What is gathered -----------------------------------------------------------------------------------------------


def test_claims_of_one_recipe_are_counted_together(tmp_path, runs, made_up):
    told = []
    found = report(runs, tmp_path / "report.html", device="cpu", progress=told.append)
    first, second, question, check = found.claims
    assert first.numbers == (0.9, 0.93)
    assert (question.holds, check.holds, first.holds) == (True, True, False)
    assert found.counts == {
        "paper": {"held": 0, "of": 2},
        "beyond": {"held": 1, "of": 1},
        "check": {"held": 1, "of": 1},
    }
    assert (first.held, first.text, first.bound) == (1, "Accuracy", ">= 0.92")
    assert first.mean == pytest.approx(0.915)
    assert first.deviation == pytest.approx(statistics.stdev([0.9, 0.93]))
    assert second.held == 0
    assert [(one.stage, one.number, one.total, one.remaining) for one in told] == [
        ("accuracy of run-0", 1, 4, "3 experiments, the page"),
        ("identity of run-0", 2, 4, "2 experiments, the page"),
        ("accuracy of run-1", 3, 4, "1 experiment, the page"),
        ("identity of run-1", 4, 4, "the page"),
    ]
    assert found.failures == [f"run-{seed}, identity: cannot be: {NASTY}" for seed in (0, 1)]
    document = json.loads((tmp_path / "report.json").read_text())
    assert document == found.to_dict()
    assert document["counts"] == found.counts
    assert [(one["kind"], one["unit"]) for one in document["claims"]] == [
        ("paper", ""),
        ("paper", ""),
        ("beyond", "%"),
        ("check", ""),
    ]
    assert document["claims"][1]["mean"] is None  # what was not found
    assert document["runs"][0]["training_seconds"] == 2.5
    assert replace(found, runs=found.runs[:1]).claims[0].deviation is None


def test_a_report_is_made_of_what_is_saved(tmp_path, runs, made_up, monkeypatch):
    report(runs[:1], tmp_path / "report.html", device="cpu", only=["accuracy"])
    first = (tmp_path / "report.html").read_bytes()
    monkeypatch.setattr(running.ExperimentRunner, "_compute", None)  # what would make it
    monkeypatch.setattr("time.strftime", lambda form: "2026-01-01 00:00")
    found = report(runs[:1], tmp_path / "again.html", device="cpu", only=["accuracy"])
    assert [*found.runs[0].results] == ["accuracy"]
    again = (tmp_path / "again.html").read_bytes()
    made = re.compile(rb"Made [0-9: -]+ on")
    assert made.sub(b"", again) == made.sub(b"", first)


def test_what_cannot_be_written_is_told_before_anything_is_made(tmp_path, runs, made_up, monkeypatch):
    monkeypatch.setattr(running.ExperimentRunner, "_compute", None)  # what would make it
    (tmp_path / "report.md").touch()
    with pytest.raises(OutputError, match=r"report\.md' exists already"):
        report(runs, tmp_path / "report.html")
    with pytest.raises(ReportError, match=r"ends in \.html"):
        report(runs, tmp_path / "report.pdf")
    with pytest.raises(ReportError, match="are the same run; give each once"):
        report([runs[0], runs[0]], tmp_path / "twice.html")
    with pytest.raises(ReportError, match="at least one run"):
        report([], tmp_path / "none.html")


def test_an_unknown_experiment_is_told(tmp_path, runs, made_up, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(UnknownExperiment, match="unknown experiment 'acuracy'"):
        report(runs, tmp_path / "report.html", only=["acuracy"])
    assert not (tmp_path / "report.html").exists()


def test_the_time_that_steps_took_follows_their_speed(runs):
    instances = runs[0].recipe.batch.instances
    assert training_seconds(LINES, instances) == pytest.approx(10 * instances / 40 + 5 * instances / 80)
    assert training_seconds([], instances) == 0


def test_training_is_drawn():
    assert training_picture([]) is None
    assert training_picture(LINES[:1]).startswith(b"\x89PNG")
    assert training_picture(LINES) == training_picture(LINES)


# What differs ---------------------------------------------------------------------------------------------------


SPREAD = "± is the spread over the runs of a recipe, which differ"
SEEDS_ALONE = f"{SPREAD} only in training.seed."
LONGER = {"training.steps": 7, "training.seed": 3}


def test_what_differs_between_runs_of_a_recipe_is_told(tmp_path, runs, made_up, small_zoo, variant):
    def told(*of):
        return spread(report(of, tmp_path / "report.html", device="cpu", only=["accuracy"], overwrite=True))

    assert told(runs[0]) == ""
    assert told(runs[0], variant) == ""
    assert told(*runs, variant) == SEEDS_ALONE
    longer = untrained_run(tmp_path / "longer", "digits_single", small_zoo("digits_single"), **LONGER)
    differing = "training.steps, training.seed"
    assert told(runs[0], longer) == f"{SPREAD} only in {differing}."
    runs[1].record["zoo"]["sha256"] = "another"
    assert spread(replace_runs(report(runs[:1], tmp_path / "one.html", device="cpu", only=["accuracy"]), runs)) == (
        f"{SPREAD} only in zoo, training.seed."
    )


def replace_runs(found, runs):
    """A report as if it were of other runs."""
    return replace(found, runs=tuple(replace(found.runs[0], run=run) for run in runs))


def test_a_variant_stands_beside_its_base(tmp_path, runs, made_up, variant):
    run_1_lines = [{**line, "instances_per_second": 20.0} for line in LINES[:1]]
    runs[1].metrics_file.write_text("".join(json.dumps(line) + "\n" for line in run_1_lines))
    found = report([*runs, variant], tmp_path / "report.html", device="cpu", only=["accuracy"])
    (one,) = variants(found)
    assert (one.base, one.name) == ("digits_single", "digits_single_weights")
    assert ("loss.weights", False, True) in one.changes
    assert not {key for key, _, _ in one.changes} & {"name", "description", "training.seed"}
    assert [before.text for before, _ in one.claims] == ["Accuracy", NASTY, "A question"]  # a check says nothing here
    assert [(before.numbers, after.numbers) for before, after in one.claims[::2]] == [
        ((0.9, 0.93), (0.96,)),
        ((0.5, 0.5), (0.5,)),
    ]
    assert one.figures == [
        ("best validation: score", "0 (in each of 2 runs)", "0"),
        ("duration of the training steps", "3 s ± 1 s (2 runs)", "2 s"),
    ]
    told = "Without variants of a recipe (digits_single_weights): 0 of 2 claims of the paper held in every run; "
    assert without_variants(found).startswith(told)
    page, text = ((tmp_path / f"report.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "md"))
    assert told in page
    assert told in text
    assert "<code>loss.weights</code>: no → yes" in page
    assert "- `loss.weights`: no -> yes" in text
    assert "| Accuracy | >= 0.92 | 0.915 ± 0.0212 (2 runs), held in 1 of 2 runs | 0.96, held |" in text
    assert "Variants of a recipe: 1 of 2 held" in page


def test_a_recipe_of_another_zoo_is_no_variant(tmp_path, runs, made_up, variant):
    found = report([runs[0], variant], tmp_path / "report.html", device="cpu", only=["accuracy"])
    assert len(variants(found)) == 1
    variant.record["zoo"]["sha256"] = "another"
    assert variants(replace(found, runs=(found.runs[0], replace(found.runs[1], run=variant)))) == []


# Words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.0, "1"),
        (1234, "1,234"),
        (0.98765, "0.9877"),
        (-2.5, "-2.5"),
        (12345.6, "12,346"),
        (math.nan, "none"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def merit(*numbers, runs, unit=""):
    return RecipeClaim(
        "recipe", "experiment", "text", ">= 0.5", "paper", unit, numbers, sum(one >= 0.5 for one in numbers), runs
    )


@pytest.mark.parametrize(
    ("made", "told", "judged"),
    [
        (merit(0.75, runs=1), "0.75", "held"),
        (merit(0.75, 0.25, runs=2), "0.5 ± 0.354 (2 runs)", "held in 1 of 2 runs"),
        (merit(0.75, 0.25, runs=2, unit="points"), "50 ± 35.4 points (2 runs)", "held in 1 of 2 runs"),
        (merit(0.75, 0.75, runs=2, unit="%"), "75 % (in each of 2 runs)", "held"),
        (merit(0.25, 0.25, runs=3, unit="%"), "25 % (from 2 of 3 runs)", "NOT held"),
        (merit(0.75, 0.25, runs=3), "0.5 ± 0.354 (from 2 of 3 runs)", "held in 1 of 2 runs"),
        (merit(0.75, math.nan, runs=2), "0.75 (from 1 of 2 runs)", "held in 1 of 2 runs"),
        (merit(math.nan, math.nan, runs=2), "none (from 0 of 2 runs)", "NOT held"),
        (merit(math.nan, runs=1), "none", "NOT held"),
    ],
)
def test_what_was_found_says_in_how_many_runs(made, told, judged):
    assert measured(made) == told
    assert verdict(made) == judged


@pytest.mark.parametrize(
    ("relation", "limit", "unit", "text"),
    [
        (">=", 0.95, "%", ">= 95 %"),
        (">=", 1, "%", "= 100 %"),  # no share is larger
        (">=", 1, "", ">= 1"),
        ("<=", 0.03, "points", "<= 3 points"),
        ("==", 0, "", "= 0"),
    ],
)
def test_bounds_are_said_in_their_unit(relation, limit, unit, text):
    assert bound(claim("A claim", 0.5, relation, limit, unit=unit)) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_what_comes_from_outside_is_escaped():
    assert inline("a `b<c>` <d>") == "a <code>b&lt;c&gt;</code> &lt;d&gt;"
    made = ENVIRONMENT.get_template("macros.html.jinja").module.result_table(Table(NASTY, (NASTY,), ((NASTY,),)), NASTY)
    assert "<script" not in made
    assert made.count("&lt;script&gt;") == 4


def test_the_page_holds_all_and_names_nothing_outside(tmp_path, runs, made_up):
    for run in runs:
        run.record["zoo"]["name"] = NASTY
        run.record["versions"] = {NASTY: NASTY}
    report(runs, tmp_path / "report.html", device="cpu", title=f"Title {NASTY}")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1  # its own
    assert f'content="{POLICY}"' in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in sources)
    assert not re.search(r"https?:|@import|url\(", page)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert {source[1:] for source in sources if source.startswith("#")} <= set(ids)
    images = [base64.b64decode(source.partition(",")[2]) for source in sources if source.startswith("data:")]
    assert (runs[0].path / "experiments" / "accuracy.png").read_bytes() in images
    assert len(images) == 2  # the curve and the picture of the first run; the other seed has none
    assert "held in 1 of 2 runs" in page
    assert re.findall(r"<strong>(\d of \d)</strong>", page) == ["0 of 2", "1 of 1", "1 of 1"]  # of each kind
    assert re.findall(r">(\d of \d)<", page)[3:] == ["2 of 4", "3 of 4"]  # of each run
    assert escape(SEEDS_ALONE) in page
    words = re.sub(r"<[^>]*>", "", page)
    assert "0.915 ± 0.0212 (2 runs)" in words
    assert re.search(r"50 % \(in each of 2 runs\)\s*≥ 25 %", words)
    heads = ["Claims of the paper: 0 of 2", "Questions beyond the paper: 1 of 1", "Checks: 1 of 1"]
    places = [words.index(f"{head} held in every run") for head in heads]
    assert places == sorted(places)
    assert words.index("2 runs of 1 recipe") > places[-1]  # the headline first
    assert "<details><summary>Checks: 1 of 1" in page


def test_a_recipe_is_in_the_contents_once_and_its_other_runs_are_folded(tmp_path, runs, made_up, variant):
    report([*runs, variant], tmp_path / "report.html", device="cpu")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    contents = page[page.index("<nav") : page.index("</nav>")]
    assert re.findall(r'href="#([^"]*)"', contents) == [
        "claims",
        "runs",
        "recipe-digits_single",
        "run-run-0-accuracy",
        "recipe-digits_single_weights",
        "run-run-weights-accuracy",
        "variants",
    ]
    section = page[page.index('id="recipe-digits_single"') : page.index('id="recipe-digits_single_weights"')]
    other = section.index("<details><summary>Run run-1, seed 1: 3 of 4 held</summary>")
    assert section.index('id="run-run-0"') < other < section.index('id="run-run-1"')
    assert "<img" not in section[other:]


def test_the_markdown_holds_the_same_and_its_pictures_exist(tmp_path, runs, made_up):
    (tmp_path / "pages").mkdir()
    report(runs, tmp_path / "pages" / "report.html", device="cpu")
    text = (tmp_path / "pages" / "report.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[.*?\]\(<(.*?)>\)", text)
    assert len(pictures) == 2
    assert all((tmp_path / "pages" / picture).is_file() for picture in pictures)
    assert "| a | 9.5 | yes |" in text
    told = "0 of 2 claims of the paper held in every run; 1 of 1 question beyond the paper; 1 of 1 check."
    assert f"{SEEDS_ALONE}\n\n## Claims\n\n{told}\n" in text
    assert re.findall(r"^### (.*) held in every run$", text, re.M) == [
        "Claims of the paper: 0 of 2",
        "Questions beyond the paper: 1 of 1",
        "Checks: 1 of 1",
    ]
    assert "Could not be made" in text
    assert "Variants" not in text
    lines = [line for line in text.splitlines() if line.startswith("| digits_single |")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [7] * 4  # a `|` of a claim does not end its cell


def test_a_missing_picture_is_told(tmp_path, runs, made_up, monkeypatch):
    found = report(runs[:1], tmp_path / "report.html", device="cpu")
    (runs[0].path / "experiments" / "accuracy.png").unlink()
    assert "The picture accuracy.png is missing." in html_page(found)


# In a browser ---------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>
window.addEventListener("load", function () {
  function column(name, place) {
    var found = Array.prototype.filter.call(document.querySelectorAll("table"), function (one) {
      return one.caption && one.caption.textContent === name;
    })[0];
    return { head: found.tHead.rows[0].cells[place], text: function () {
      return Array.prototype.map.call(found.tBodies[0].rows, function (row) { return row.cells[place].textContent; });
    } };
  }
  var seen = {}, names = column("Instances", 0), values = column("Instances", 1);
  seen.before = names.text();
  names.head.querySelector("button").click(); seen.byName = names.text(); seen.sort = names.head.ariaSort;
  names.head.querySelector("button").click(); seen.byNameBack = names.text();
  values.head.querySelector("button").click(); seen.byValue = values.text(); seen.forgotten = names.head.ariaSort;
  values.head.querySelector("button").click(); seen.byValueBack = values.text();
  seen.images = Array.prototype.map.call(document.images, function (one) {
    return one.complete && one.naturalWidth > 0;
  });
  seen.requests = performance.getEntriesByType("resource").filter(function (one) {
    return !one.name.startsWith("data:");
  }).length;
  seen.broken = Array.prototype.filter.call(document.querySelectorAll(".one-line"), function (one) {
    return one.getClientRects().length > 1;
  }).length;
  seen.wide = Array.prototype.filter.call(document.querySelectorAll(".dense .wide"), function (one) {
    return one.scrollWidth > one.clientWidth;
  }).length;
  var folded = document.getElementById("run-run-1").closest("details");
  seen.folded = !folded.open;
  document.querySelector('a[href="#run-run-1"]').click();
  seen.opened = folded.open;
  seen.width = document.querySelector("main").clientWidth;
  seen.title = document.title;
  seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  seen.errors = window.seenErrors;
  var out = document.createElement("pre"); out.id = "probe"; out.textContent = JSON.stringify(seen);
  document.body.appendChild(out);
});
</script>"""
LISTEN = (
    "<script>window.seenErrors = []; window.onerror = function (m) { window.seenErrors.push(String(m)); };</script>"
)


def in_browser(page: Path, folder: Path, *options: str) -> str:
    """The document as a real browser has it after its scripts ran."""
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet, *options]
    done = subprocess.run(
        [*command, f"--user-data-dir={folder}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("size", ["1440,900", "500,900"])
def test_the_page_in_a_browser(tmp_path, runs, made_up, variant, size):
    report([*runs, variant], tmp_path / "report.html", device="cpu", title=f"Title {NASTY}")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("<style>", f"{LISTEN}<style>", 1).replace("</body>", f"{PROBE}</body>"))
    document = in_browser(probed, tmp_path / "profile", f"--window-size={size}")
    found = re.search(r'<pre id="probe">(.*?)</pre>', document, re.S)
    seen = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert seen["errors"] == []
    assert seen["title"] == f"Title {NASTY}"
    assert seen["before"] == ["b", "a", "c", "d"]
    assert seen["byName"] == ["a", "b", "c", "d"]
    assert (seen["sort"], seen["forgotten"]) == ("ascending", None)
    assert seen["byNameBack"] == ["d", "c", "b", "a"]
    assert seen["byValue"] == ["9.5", "10", "100", ""]  # as numbers, what is empty last
    assert seen["byValueBack"] == ["100", "10", "9.5", ""]
    assert seen["images"] == [True] * 4
    assert (seen["folded"], seen["opened"]) == (True, True)  # a link opens what it leads into
    assert seen["broken"] == 0
    assert seen["wide"] == 0 or seen["width"] < 1000  # claims and variants fit a page of 1,000 px
    assert seen["requests"] == 0
    assert seen["overflow"] <= 0  # nothing is wider than the window, not on a small one either


# The command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_page_and_tells_what_failed(tmp_path, runs, made_up):
    page = tmp_path / "report.html"
    command = ["report", str(runs[0].path), "-o", str(page), "--device", "cpu"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1
    assert "could not be made: run-0, identity" in done.stderr
    assert "[1/2]" in done.stderr
    assert "then: the page" in done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith(("Claims", "Questions", "Checks"))] == [
        "Claims of the paper: 0 of 2 held",
        "Questions beyond the paper: 1 of 1 held",
        "Checks: 1 of 1 held",
    ]
    assert "  NOT held   digits_single: Accuracy: 0.9 (must be >= 0.92)" in lines
    tally = "0 of 2 claims of the paper held; 1 of 1 question beyond the paper; 1 of 1 check."
    assert lines[-1] == f"{page}: {tally}"
    assert page.exists()
    again = CliRunner().invoke(main, [*command, "--only", "accuracy"])
    assert again.exit_code == 2
    assert "--force" in again.stderr
    done = CliRunner().invoke(main, [*command, "--only", "accuracy", "--force", "--json"])
    assert done.exit_code == 0
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document["output"] == str(page)
    assert [one["numbers"] for one in document["claims"]] == [[0.9], [None], [0.5], [0]]


def test_a_zoo_that_was_moved_is_found(tmp_path, runs, made_up, small_zoo):
    moved = shutil.copytree(small_zoo("digits_single"), tmp_path / "moved")
    runs[0].record["zoo"]["path"] = str(tmp_path / "gone")
    (runs[0].path / "run.json").write_text(json.dumps(runs[0].record))
    command = ["report", str(runs[0].path), "-o", str(tmp_path / "a.html"), "--device", "cpu", "--only", "accuracy"]
    lost = CliRunner().invoke(main, command)
    assert lost.exit_code == 1
    assert "gone" in lost.stderr
    found = CliRunner().invoke(main, [*command, "--force", "--zoo", str(moved)])
    assert found.exit_code == 0, found.stderr


def test_no_run_is_an_error(tmp_path):
    done = CliRunner().invoke(main, ["report", str(tmp_path / "none"), "--json"])
    assert done.exit_code == 2
    assert "is no run" in json.loads(done.stdout)["error"]["message"]
