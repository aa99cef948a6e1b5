"""The report: what is gathered and counted, what differs between its runs, and the command."""

import json
import re
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from made_up_experiments import LINES, NASTY
from untrained import untrained_run

from netspace.cli import main
from netspace.cli.report import print_report
from netspace.experiments import UnknownExperiment, running
from netspace.report._summary import sentence_text, summary
from netspace.report._variants import spread, variants, without_variants
from netspace.report.make import ReportError, names_of, report, training_picture, training_seconds
from netspace.report.paper import SIZES
from netspace.report.words import tally
from netspace.run.run import RunError, State, open_run
from prepkit.cli.output import Output
from prepkit.errors import OutputError

pytestmark = pytest.mark.usefixtures("one_thread")


# What is gathered -----------------------------------------------------------------------------------------------


def test_claims_of_one_recipe_are_counted_together(tmp_path, runs, made_up):
    told = []
    found = report(runs, tmp_path / "report.html", device="cpu", progress=told.append)
    first, second, *_ = found.claims
    assert first.numbers == (0.9, 0.93)
    assert [one.verdict for one in found.claims] == ["undecided", "not told", "held", "held"]
    none = {"held": 0, "not held": 0, "undecided": 0, "not told": 0}
    assert found.counts == {
        "paper": {**none, "undecided": 1, "not told": 1, "of": 2},
        "beyond": {**none, "held": 1, "of": 1},
        "easier": {**none, "of": 0},
        "check": {**none, "held": 1, "of": 1},
    }
    assert (first.verdicts, first.text, first.bound) == (("not held", "held"), "Accuracy", ">= 0.92")
    assert first.mean == pytest.approx(0.915)
    assert first.deviation == pytest.approx(statistics.stdev([0.9, 0.93]))
    assert (second.verdicts, second.reasons) == (("not told",) * 2, ["there is nothing to measure it on"])
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
    assert document["claims"][1]["reasons"] == ["there is nothing to measure it on"]
    assert document["claims"][0]["verdicts"] == ["not held", "held"]
    assert [one["held"] for one in document["claims"]] == [1, 0, 2, 2]
    assert document["runs"][0]["training_seconds"] == 2.5
    assert replace(found, runs=found.runs[:1]).claims[0].deviation is None


def test_claims_on_a_zoo_of_shared_starts_are_counted_apart(tmp_path, runs, made_up, monkeypatch):
    """An easier zoo says nothing of the paper's; its checks are checks all the same."""
    monkeypatch.setattr(type(runs[0]), "shares_starts", True)
    found = report(runs, tmp_path / "report.html", device="cpu")
    assert {kind: count["of"] for kind, count in found.counts.items()} == {
        "paper": 0,
        "beyond": 0,
        "easier": 3,
        "check": 1,
    }
    assert [one.kind for one in found.claims] == ["easier"] * 3 + ["check"]
    told = "1 of 3 claims on easier zoos, of shared starts held in every run, 1 undecided, 1 not told; 1 of 1 check."
    assert tally(found) == told
    sentences = [sentence_text(sentence) for sentence in summary(found)]
    assert (
        "Fig. 3: in digits_single, on an easier zoo of shared starts, the accuracy of unseen instances is"
        in sentences[2]
    )
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Claims on easier zoos, of shared starts: 1 of 3 held in every run" in page
    assert "Claims of the paper" not in page
    assert "No claim of the paper was measured; on easier zoos, of shared starts, 1 of 3 held." in page


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


def test_a_run_without_a_best_state_is_refused(tmp_path, runs, made_up):
    (runs[1].path / "checkpoints" / "best.json").unlink()
    with pytest.raises(RunError, match="no best checkpoint yet"):
        report(runs, tmp_path / "report.html", device="cpu")
    assert not (tmp_path / "report.html").exists()


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
    told = (
        "Without variants of a recipe (digits_single_weights): 0 of 2 claims of the paper held in every run, "
        "1 undecided, 1 not told; "
    )
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
        "Claims of the paper: 0 of 2 held, 1 not told",
        "Questions beyond the paper: 1 of 1 held",
        "Checks: 1 of 1 held",
    ]
    assert "  not held   digits_single: Accuracy: 0.9 (must be >= 0.92)" in lines
    nasty = f"  not told   digits_single: {NASTY}: none (must be <= 1); there is nothing to measure it on"
    assert nasty in lines
    tally = "0 of 2 claims of the paper held, 1 not told; 1 of 1 question beyond the paper; 1 of 1 check."
    assert lines[-1] == f"{page}: {tally}"
    assert page.exists()
    assert not any("trial" in line for line in lines)
    again = CliRunner().invoke(main, [*command, "--only", "accuracy"])
    assert again.exit_code == 2
    assert "--force" in again.stderr
    done = CliRunner().invoke(main, [*command, "--only", "accuracy", "--force", "--json"])
    assert done.exit_code == 0
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document["output"] == str(page)
    assert [one["numbers"] for one in document["claims"]] == [[0.9], [None], [0.5], [0]]


def test_a_trial_run_is_told_on_the_terminal_first(tmp_path, runs, made_up, capsys):
    assert (SIZES["mini"].note, SIZES["full"].note) == ("", "")
    for note in ("", SIZES["quick"].note):
        found = report(runs, tmp_path / "report.html", device="cpu", only=["accuracy"], note=note, overwrite=True)
        print_report(found, tmp_path / "report.html", Output(as_json=False))
        first = capsys.readouterr().out.splitlines()[0]
        assert first.startswith("This is a trial run" if note else "Claims of the paper")


def test_a_zoo_that_was_moved_is_found(tmp_path, runs, made_up, small_zoo):
    moved = shutil.copytree(small_zoo("digits_single"), tmp_path / "moved")
    runs[0].record["zoo"]["path"] = str(tmp_path / "gone")
    (runs[0].path / "run.json").write_text(json.dumps(runs[0].record))
    command = ["report", str(runs[0].path), "-o", str(tmp_path / "a.html"), "--device", "cpu", "--only", "accuracy"]
    lost = CliRunner().invoke(main, command)
    assert lost.exit_code == 1
    assert (
        f"trained on a zoo at '{tmp_path / 'gone'}', which is not there; say where it is now with --zoo" in lost.stderr
    )
    found = CliRunner().invoke(main, [*command, "--force", "--zoo", str(moved)])
    assert found.exit_code == 0, found.stderr


def test_what_would_do_nothing_is_refused(tmp_path, runs, small_zoo):
    with pytest.raises(ReportError, match=r"^chairs: no experiment for the settings of these runs, single\.$"):
        report(runs[:1], tmp_path / "a.html", only=["chairs"])
    other = small_zoo("digits_multi")
    with pytest.raises(ReportError, match=rf"the zoo '{other}' is none that one of these runs was trained on"):
        report(runs, tmp_path / "a.html", zoos=[small_zoo("digits_single"), other])
    assert not list(tmp_path.glob("a.*"))


def test_an_unfinished_training_is_told(tmp_path, runs, made_up):
    """It has the steps that it took, not those of its recipe."""
    runs[0].save("latest", State(7, {"network.x": torch.zeros(1)}, {}))
    told = "The training of run-0 has taken 7 of 3,000 steps, so its numbers are those of an unfinished space."
    command = ["report", *(str(run.path) for run in runs), "-o", str(tmp_path / "a.html"), "--device", "cpu"]
    done = CliRunner().invoke(main, [*command, "--only", "accuracy"])
    assert done.exit_code == 0
    assert f"note: {told}" in done.stderr
    page, text = ((tmp_path / f"a.{end}").read_text(encoding="utf-8") for end in ("html", "md"))
    assert told in page
    assert f"{told}\n\n" in text
    assert "<dd>7 of 3,000 in 2 s, best after 7</dd>" in page
    document = json.loads((tmp_path / "a.json").read_text())
    assert [(one["steps_taken"], one["finished"]) for one in document["runs"]] == [(7, False), (3000, True)]
    runs[0].record["recipe"]["training"]["steps"] = 7
    runs[0].note("recipe", runs[0].record["recipe"])
    assert report([open_run(runs[0].path)], tmp_path / "b.html", device="cpu", only=["accuracy"]).unfinished == []


def test_runs_in_folders_of_one_name_are_told_apart(tmp_path, runs, made_up):
    """Else links of the page would lead from one run to the results of another."""
    for number, run in enumerate(runs):
        shutil.move(run.path, tmp_path / "ab"[number] / "run")
    found = report([open_run(tmp_path / name / "run") for name in "ab"], tmp_path / "r.html", device="cpu")
    assert [one.name for one in found.runs] == ["a/run", "b/run"]
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count('id="run-a-run"') == page.count('id="run-b-run"') == 1
    folders = [Path("x/one"), Path("x/two"), Path("y/two"), Path("y/x/two"), Path("z/x/two")]
    assert names_of(folders) == ["one", f"{Path.cwd().name}/x/two", "y/two", "y/x/two", "z/x/two"]


def test_no_run_is_an_error(tmp_path):
    done = CliRunner().invoke(main, ["report", str(tmp_path / "none"), "--json"])
    assert done.exit_code == 2
    assert "is no run" in json.loads(done.stdout)["error"]["message"]
