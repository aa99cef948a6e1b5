"""The pages of a report: numbers in words, what the page and the Markdown say, and the page in a real browser."""

import base64
import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from made_up_experiments import NASTY
from markupsafe import escape
from PIL import Image

import netspace.experiments
from netspace.experiments import EXPERIMENTS
from netspace.experiments.result import Table, claim
from netspace.experiments.verdict import VERDICTS
from netspace.report._pages import ENVIRONMENT, html_page, inline
from netspace.report._summary import FIGURES, SENTENCES, WIDTH, sentence_text, small_picture, summary
from netspace.report.make import report
from netspace.report.model import RecipeClaim
from netspace.report.words import bound, measured, score, verdict

pytestmark = pytest.mark.usefixtures("one_thread")

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
SEEDS_ALONE = "± is the spread over the runs of a recipe, which differ only in training.seed."

# Words ----------------------------------------------------------------------------------------------------------


def recipe_claim(*numbers, runs, unit="", interval=None):
    made = [claim("text", number, ">=", 0.5, unit=unit, interval=interval) for number in numbers]
    return RecipeClaim("recipe", "experiment", tuple(made), runs)


@pytest.mark.parametrize(
    ("made", "number_text", "verdict_text"),
    [
        (recipe_claim(0.75, runs=1), "0.75", "held"),
        (recipe_claim(0.75, 0.25, runs=2), "0.5 ± 0.354 (2 runs)", "held in 1 of 2 runs"),
        (recipe_claim(0.75, 0.25, runs=2, unit="points"), "50 ± 35.4 points (2 runs)", "held in 1 of 2 runs"),
        (recipe_claim(0.75, 0.75, runs=2, unit="%"), "75 % (in each of 2 runs)", "held"),
        (recipe_claim(0.25, 0.25, runs=3, unit="%"), "25 % (from 2 of 3 runs)", "not held"),
        (recipe_claim(0.75, 0.25, runs=3), "0.5 ± 0.354 (from 2 of 3 runs)", "held in 1 of 2 runs"),
        (recipe_claim(0.75, math.nan, runs=2), "0.75 (from 1 of 2 runs)", "held in 1 of 2 runs"),
        (recipe_claim(0.25, math.nan, runs=2), "0.25 (from 1 of 2 runs)", "not held in 1 of 2 runs"),
        (recipe_claim(math.nan, math.nan, runs=2), "none (from 0 of 2 runs)", "not told"),
        (recipe_claim(math.nan, runs=1), "none", "not told"),
        (recipe_claim(0.6, runs=1, interval=(0.45, 0.7104)), "0.6 (0.45 to 0.71)", "undecided"),
        (recipe_claim(0.6, runs=1, unit="points", interval=(0.45, 0.7104)), "60 points (45 to 71 points)", "undecided"),
        (recipe_claim(0.6, runs=1, interval=(math.nan, math.nan)), "0.6", "undecided"),
        (recipe_claim(0.6, 0.6, runs=2, interval=(0.55, 0.7)), "0.6 (in each of 2 runs)", "held"),
    ],
)
def test_a_number_says_from_how_many_runs_it_comes(made, number_text, verdict_text):
    assert measured(made) == number_text
    assert verdict(made) == verdict_text


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
    # Fig. 3 in small, the curve, and the picture of the first run; the other seed has none.
    assert len(images) == 3
    assert len(images[0]) < len(images[2])
    assert "held in 1 of 2 runs" in page
    assert re.findall(r"<strong>(\d of \d)</strong>", page) == ["0 of 2", "1 of 1", "1 of 1"]  # of each kind
    assert re.findall(r">(\d of \d)<", page)[3:] == ["2 of 4", "3 of 4"]  # of each run
    assert escape(SEEDS_ALONE) in page
    words = re.sub(r"<[^>]*>", "", page)
    assert "0.915 ± 0.0212 (2 runs)" in words
    assert re.search(r"50 % \(in each of 2 runs\)\s*≥ 25 %", words)
    assert "there is nothing to measure it on" in words
    assert "Claims of the paper: 0 of 2 held in every run, 1 undecided, 1 not told" in words
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
        "summary",
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
    told = (
        "0 of 2 claims of the paper held in every run, 1 undecided, 1 not told; "
        "1 of 1 question beyond the paper; 1 of 1 check."
    )
    assert f"{SEEDS_ALONE}\n\n## Claims\n\n{told}\n" in text
    assert "not told: there is nothing to measure it on |" in text
    assert re.findall(r"^### (.*) held in every run(?:, 1 undecided, 1 not told)?$", text, re.M) == [
        "Claims of the paper: 0 of 2",
        "Questions beyond the paper: 1 of 1",
        "Checks: 1 of 1",
    ]
    assert "Could not be made" in text
    assert "Variants" not in text
    lines = [line for line in text.splitlines() if line.startswith("| digits_single |")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [7] * 4  # a `|` of a claim does not end its cell


# The summary ----------------------------------------------------------------------------------------------------


def test_the_page_opens_with_a_summary_whose_claims_lead_to_their_evidence(tmp_path, runs, made_up):
    note = "This is a trial run."
    found = report(runs, tmp_path / "report.html", device="cpu", note=note)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    sentences = [sentence_text(sentence) for sentence in summary(found)]
    assert sentences == [
        "2 NetSpaces were trained on 1 zoo of small networks, by 1 recipe, and judged on networks that took no part in "
        "training.",
        "Of 2 claims of the paper, 1 is undecided and 1 is not told.",
        "Fig. 3: in digits_single, the accuracy of unseen instances is 0.915 ± 0.0212 (2 runs) (held in 1 of 2 runs).",
    ]
    opening = page[page.index("<main>") : page.index('<ul class="tally"')]
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", opening)).replace("\u00a0", " ")
    assert all(str(escape(sentence)) in words for sentence in sentences)
    assert words.index(note) < words.index("2 NetSpaces")
    assert '<a href="#run-run-0-accuracy">digits_single</a>' in opening
    assert re.search(r'<a href="#run-run-0-accuracy"><img alt="Fig. 3 a, c in small', opening)
    for word in ("PRep", "gamma", "ClassId", *VERDICTS):
        assert f"<dt>{word}</dt>" in opening, word
    # The words of each claim lead to the experiment that measured it, and its recipe to the recipe's part.
    table = page[page.index("Claims of the paper:") : page.index("Questions beyond")]
    assert table.count('<td class="words"><a href="#run-run-0-accuracy">') == 2
    assert table.count('<td class="recipe"><a href="#recipe-digits_single">') == 2
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.index(note) < text.index(sentences[0]) < text.index(sentences[1]) < text.index(sentences[2])
    assert "- **gamma**: " in text
    assert json.loads((tmp_path / "report.json").read_text())["note"] == note


def test_numbers_of_the_summary_have_their_words_in_the_experiments():
    """Fig. 3, 4 and 5 have a claim each that the summary tells."""
    source = Path(netspace.experiments.__file__).parent
    for figure, experiments in SENTENCES.items():
        files = [source / f"{name}.py" for name in experiments]
        assert any("short=" in file.read_text(encoding="utf-8") for file in files), figure
        assert all(EXPERIMENTS[one.experiment].settings for one in FIGURES)


def test_a_small_picture_is_small(tmp_path):
    Image.new("RGB", (1200, 3000), "white").save(tmp_path / "high.png")
    made = Image.open(io.BytesIO(small_picture(tmp_path / "high.png")))
    assert made.size == (WIDTH, round(0.8 * WIDTH))
    Image.new("RGB", (1200, 300), "white").save(tmp_path / "low.png")
    assert Image.open(io.BytesIO(small_picture(tmp_path / "low.png"))).size == (WIDTH, round(WIDTH / 4))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("predicted_accuracy", 0.9337, "predicted accuracy 93.4 %"),
        ("mean_difference", 0.0312, "mean difference 3.1 points"),
        ("class_id_accuracy", 1.0, "ClassId accuracy 100 %"),
        ("score", -0.185, "score -0.185 (the larger, the better)"),
    ],
)
def test_scores_are_said_in_their_unit(name, value, text):
    assert score(name, value) == text


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
  seen.askedWide = Array.prototype.filter.call(document.querySelectorAll(".asked td"), function (one) {
    return one.getBoundingClientRect().right > document.documentElement.clientWidth;
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
@pytest.mark.parametrize("size", ["1440,900", "500,900", "400,900"])
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
    assert seen["images"] == [True] * 5
    assert (seen["folded"], seen["opened"]) == (True, True)  # a link opens what it leads into
    assert seen["broken"] == 0
    assert seen["wide"] == 0 or seen["width"] < 1000  # claims and variants fit a page of 1,000 px
    assert seen["askedWide"] == 0  # claims fit a telephone too
    assert seen["requests"] == 0
    assert seen["overflow"] <= 0  # nothing is wider than the window, not on a small one either
