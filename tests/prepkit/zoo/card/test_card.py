"""Tests of the card: it repeats manifest and table, its YAML is read by the Hub, and its bytes are always the same."""

import builtins
import re

import huggingface_hub
import pytest
from folder_contents import files_of
from zoo_samples import write_zoo

import prepkit
from prepkit.api import open_zoo, verify
from prepkit.errors import ZooError
from prepkit.zoo.card.card import MARK, PICTURE, README, write_card
from prepkit.zoo.change.splitting import split
from prepkit.zoo.format.manifest import read_manifest

PROVENANCE = {"spec": "[train]\nlr = 0.1\n", "initialisation": "kaiming uniform", "versions": {"torch": "2.13"}}


@pytest.fixture
def zoo(tmp_path):
    return write_zoo(tmp_path / "zoo", count=20, teacher="resnet8@digits", provenance=PROVENANCE)


def text_of(root):
    return (root / README).read_text(encoding="utf-8")


def rows_under(text, heading):
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line[:1] == "|"]


def test_the_header_is_what_the_hub_reads(zoo):
    card = write_card(zoo)
    assert (card.readme, card.picture) == (zoo / README, zoo / PICTURE)
    data = huggingface_hub.DatasetCard.load(zoo / README).data.to_dict()
    assert data["license"] == "mit"
    assert data["pretty_name"] == "zoo"
    assert {"prepkit", "weight-space-learning"} <= set(data["tags"])
    assert data["size_categories"] == ["n<1K"]
    assert data["configs"] == [{"config_name": "default", "data_files": read_manifest(zoo).table.path}]


def test_the_body_tells_what_the_zoo_is(zoo):
    write_card(zoo)
    text = text_of(zoo)
    assert "20 trained networks of 2 architectures" in text
    assert rows_under(text, "Architectures")[2:] == [
        ["0", "lenet_like@digits", "10", "2,302", "8 x 512", "1x8x8"],
        ["1", "vanilla_cnn@digits", "10", "4,422", "12 x 512", "1x8x8"],
        ["teacher", "resnet8@digits", "0", "5,058", "12 x 512", "1x8x8"],
    ]
    assert rows_under(text, "Splits")[2:] == [["test", "6"], ["train", "7"], ["(none)", "7"]]
    columns = {row[0]: row[1:3] for row in rows_under(text, "Columns")[2:]}
    assert columns["accuracy"] == ["double", "0"]
    assert columns["note"] == ["string", "13"]
    assert list(columns) == open_zoo(zoo).table.column_names
    for part in ("lr = 0.1", "- initialisation: `kaiming uniform`", "- mean: `[0.3]`", "- dataset: `digits`"):
        assert part in text
    assert text.split("## Licence\n")[1].strip() == "mit"
    assert f"({PICTURE})" in text


def test_the_three_lines_run(zoo, monkeypatch):
    write_card(zoo)
    code = re.search(r"```python\n(.*?)```", text_of(zoo), re.DOTALL)[1]
    assert code.count("\n") == 3
    names = {}
    lines = code.replace("path/to/this/folder", str(zoo)).replace("prepkit.open_zoo", "open_zoo")
    exec(lines, {"open_zoo": open_zoo}, names)
    assert names["preps"].shape == (7, 12, 512)
    assert len(names["metadata"]) == 7


def test_the_same_zoo_gives_the_same_bytes(tmp_path, zoo):
    write_card(zoo)
    once = files_of(zoo)
    write_card(zoo)
    assert files_of(zoo) == once
    again = write_zoo(tmp_path / "b", name="zoo", count=20, teacher="resnet8@digits", provenance=PROVENANCE)
    write_card(again)
    assert files_of(again) == once
    assert once[PICTURE].startswith(b"\x89PNG")
    assert verify(zoo).notes == ()


def test_the_card_follows_a_split(zoo):
    write_card(zoo)
    split(zoo, {"train": 0.5, "test": 0.5}, force=True)
    assert read_manifest(zoo).table.path in text_of(zoo)
    assert rows_under(text_of(zoo), "Splits")[2:4] == [["test", "10"], ["train", "10"]]
    assert "`datasets` makes one split, `train`; the column `split` tells the splits." in text_of(zoo)


def test_a_readme_of_the_users_own_is_left_alone(zoo):
    (zoo / README).write_text("my words")
    assert write_card(zoo).readme is None
    assert text_of(zoo) == "my words"
    (zoo / README).write_text(f"{MARK} old")
    assert write_card(zoo).readme == zoo / README


def test_without_matplotlib_there_is_no_picture_and_no_link_to_one(zoo, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **settings):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    assert write_card(zoo).picture is None
    assert PICTURE not in text_of(zoo)


@pytest.mark.parametrize(
    "settings",
    [
        {"count": 0},
        {"count": 1, "license": None, "task": None},
        {"columns": lambda n: {"accuracy": float("nan")}},
        {"columns": lambda n: {"accuracy": None}},
        {"columns": lambda n: {"accuracy": "high"}},
        {"tensors": 2},
        {"dtype": "float64", "format": "hdf5"},
    ],
)
def test_any_zoo_has_a_card(tmp_path, settings):
    root = write_zoo(tmp_path / "zoo", **settings)
    write_card(root)
    assert verify(root).ok
    data = huggingface_hub.DatasetCard.load(root / README).data
    assert data.license == (settings.get("license", "mit") or "unknown")


@pytest.mark.parametrize("name", ['no: "quotes" #', "null", "1e3", "a\n---\nlicense: x", "<b>| é `$x_1$`", "- a", "{}"])
def test_no_name_breaks_the_header_or_the_page(tmp_path, name):
    provenance = {"spec": "```\n````\n# no heading\n", "a`b": "x`y"}
    root = write_zoo(tmp_path / "zoo", count=2, name=name, provenance=provenance, license="Other")
    write_card(root)
    data = huggingface_hub.DatasetCard.load(root / README).data
    assert data.pretty_name == name
    assert data.license == "other"
    assert f"# {' '.join(name.split()).replace('<', '&lt;')}\n" in text_of(root)
    assert "`````\n```\n````\n# no heading\n`````" in text_of(root)


def test_what_is_no_zoo_has_no_card(tmp_path):
    with pytest.raises(ZooError, match="no zoo"):
        write_card(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "meaning"), [("zoo train", "accuracy on the test data"), ("zoo create", "")])
def test_columns_of_training_are_explained_where_training_wrote_them(tmp_path, command, meaning):
    network = prepkit.architecture("resnet8@digits").build_folded()
    with prepkit.ZooWriter(tmp_path / "zoo", width=64, provenance={"command": command}) as writer:
        writer.add(network, split="train", accuracy=0.5)
    write_card(tmp_path / "zoo")
    assert f"| accuracy | double | 0 | {meaning} |" in text_of(tmp_path / "zoo")
