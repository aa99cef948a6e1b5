"""`prepkit zoo import siren`: three conventions, told apart by running, PSNR proved by running again.

A fixture is a SIREN whose picture is known in closed form, so PSNR is computed here without running a network: its
first hidden unit is sin(w0 * (a * x + b)) and all else is zero, so the output is c * sin(w0 * (a * x + b)) + d.
"""

import json
import math
import os
import signal
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import prepkit
from prepkit.cli import main
from prepkit.errors import CheckpointError, ZooError
from prepkit.tasks.task import DataMissing
from prepkit.zoo.format.manifest import read_manifest

HEIGHT, WIDTH = 9, 12  # not square, and all pictures differ from their transposes
W0 = 30.0


@dataclass(frozen=True)
class Maker:
    """How the makers of a zoo call layers and run networks."""

    names: tuple
    offset: float
    grid: str
    mean: tuple = (0.0,)
    std: tuple = (1.0,)
    hidden: int = 8


SEQ, NET = ("seq.0", "seq.1", "seq.2"), ("net.0.linear", "net.1.linear", "net.2")
DWS = Maker(SEQ, 0.5, "xy")
NFN = Maker(NET, 0.0, "ij", (0.5,), (0.5,))
IMPLICIT = Maker(SEQ, 0.0, "xy", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def siren(maker, number, channels=1):
    """A SIREN, and the pixels `[H, W, C]` that it draws, from the formula.

    The second layer hands the first sine on: its weights are so small that its own sine is nearly its argument.
    """
    a, b = 0.06 + 0.01 * number, 0.02 * number
    along, across = np.linspace(-1, 1, WIDTH)[None, :], np.linspace(-1, 1, HEIGHT)[:, None]
    first, second = (along, across) if maker.grid == "xy" else (across, along)
    small = 0.01
    waves = np.sin(W0 * small / W0 * np.sin(W0 * (a * first + 0.4 * a * second + b)))  # `[H, W]`
    height = 0.35
    gain = [height / small / maker.std[c % len(maker.std)] for c in range(channels)]
    level = [(0.5 - maker.mean[c % len(maker.mean)]) / maker.std[c % len(maker.std)] for c in range(channels)]
    tensors = {}
    shapes = [(maker.hidden, 2), (maker.hidden, maker.hidden), (channels, maker.hidden)]
    for name, shape in zip(maker.names, shapes, strict=True):
        tensors[f"{name}.weight"] = torch.zeros(shape)
        tensors[f"{name}.bias"] = torch.zeros(shape[0])
    weights = [tensors[f"{name}.weight"] for name in maker.names]
    weights[0][0] = torch.tensor([a, 0.4 * a])
    tensors[f"{maker.names[0]}.bias"][0] = b
    weights[1][0, 0] = small / W0
    weights[2][:, 0] = torch.tensor(gain)
    tensors[f"{maker.names[2]}.bias"][:] = torch.tensor(level) - maker.offset
    outputs = np.stack([gain[c] * waves + level[c] for c in range(channels)], axis=-1)
    return tensors, outputs * np.array(maker.std) + np.array(maker.mean)


def draw(file, pixels):
    """Write a picture of 8 bits, and return the PSNR of the pixels that it was made of."""
    file.parent.mkdir(parents=True, exist_ok=True)
    levels = np.round(pixels.clip(0, 1) * 255).astype(np.uint8)
    Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels).save(file)
    return -10 * math.log10(((pixels - levels / 255) ** 2).mean())


def save(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)


def dws(root, maker=DWS, count=4):
    """Write `mnist-inrs` and `mnist_png`, and return the PSNR of each model by its id."""
    known = {}
    for number in range(count):
        split, label = ("training", "testing")[number % 2], number % 3
        tensors, pixels = siren(maker, number)
        save(root / "inrs" / f"mnist_png_{split}_{label}_{number}" / "checkpoints" / "model_final.pth", tensors)
        known[f"{split}/{label}/{number}"] = draw(root / "png" / split / str(label) / f"{number}.png", pixels)
    return known


def fashion(root, maker=DWS):
    known = {}
    for number in range(4):
        split = ("train", "test")[number % 2]
        tensors, pixels = siren(maker, number)
        save(root / "inrs" / split / f"model_{number}.pth", tensors)
        known[f"{split}/{number}"] = draw(root / "png" / split / f"{number}.png", pixels)
    return known


def nfn(root, maker=NFN):
    known = {}
    for number in range(4):
        tensors, pixels = siren(maker, number, channels=3)
        save(root / "inrs" / f"randinit_test_{number % 2}s" / f"net{number}.pth", tensors)
        known[f"randinit_test/{number % 2}/{number}"] = draw(root / "png" / f"{number}.png", pixels)
    return known


def implicit(root, maker=IMPLICIT, stored=True):
    known = {}
    for number in range(4):
        tensors, pixels = siren(maker, number, channels=3)
        file = f"{number % 2:02}/{number:06}"
        save(root / "inrs" / "ckpts" / f"{file}_0000042.ckpt", {"image_idx": number, "params": tensors})
        known[f"{number % 2}/{number}/42"] = draw(root / "png" / f"{file}.png", pixels)
    if stored:
        numbers = {key.split("/")[1]: value for key, value in known.items()}
        (root / "inrs" / "0_4.json").write_text(json.dumps(numbers))
    return known


LAYOUTS = {"dws": dws, "fashion": fashion, "nfn": nfn, "implicit": implicit}
CONVENTIONS = {"dws": "dws", "fashion": "dws", "nfn": "nfn", "implicit": "implicit-zoo"}


def command(*arguments, status=0):
    result = CliRunner().invoke(main, ["zoo", *map(str, arguments)])
    assert result.exit_code == status, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def imported(root, **options):
    return prepkit.import_zoo("siren", root / "inrs", root / "zoo", **{"data": root / "png", **options})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_imported_and_proved_by_running(tmp_path, layout):
    known = LAYOUTS[layout](tmp_path)
    result = command("import", "siren", tmp_path / "inrs", tmp_path / "zoo", "--data", tmp_path / "png")
    assert f"decided for '{CONVENTIONS[layout]}'" in result.stderr
    assert "`function: unverified`" in (tmp_path / "zoo" / "README.md").read_text()
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    rows = {row["id"]: row for row in zoo.table.to_pylist()}
    assert rows.keys() == known.keys()
    for id, value in known.items():
        assert rows[id]["psnr"] == pytest.approx(value, abs=1e-2)
        assert (tmp_path / "png" / rows[id]["picture"]).is_file()
    function = zoo.manifest.function
    assert (function.status, function.how.convention) == ("unverified", CONVENTIONS[layout])
    assert (function.how.w0, function.how.activation, function.how.grid) == (
        30.0,
        "sine",
        "ij" if layout == "nfn" else "xy",
    )
    text = command("verify", tmp_path / "zoo", "--rerun", 4, "--data", tmp_path / "png").stdout
    assert "4 of 4 instances have the psnr that is stored" in text
    assert "function verified: psnr of 4 instances, largest difference" in command("info", tmp_path / "zoo").stdout
    assert read_manifest(tmp_path / "zoo").function.verified.largest_difference < 0.01


def test_a_network_of_the_zoo_draws_the_picture_and_exports_the_names_of_its_file(tmp_path):
    dws(tmp_path)
    imported(tmp_path)
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    index = zoo.index("testing/1/1")
    rows, columns = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    points = torch.tensor(np.stack([columns, rows], -1).reshape(-1, 2), dtype=torch.float32)
    with torch.no_grad():
        drawn = zoo.network(index)(points).view(HEIGHT, WIDTH).numpy()  # with the offset of 0.5
    np.testing.assert_allclose(drawn, siren(DWS, 1)[1][:, :, 0], atol=1e-4)
    tensors = zoo.export(index, tmp_path / "out.pt")
    assert set(tensors) == {f"{name}.{kind}" for name in SEQ for kind in ("weight", "bias")}
    assert {row["split"] for row in zoo.table.to_pylist()} == {"train", "test"}


@pytest.mark.parametrize(
    ("layout", "maker", "convention"),
    [
        ("dws", Maker(SEQ, 0.0, "ij", (0.5,), (0.5,)), "nfn"),
        ("nfn", Maker(NET, 0.5, "xy"), "dws"),
        ("nfn", Maker(NET, 0.0, "xy", IMPLICIT.mean, IMPLICIT.std), "implicit-zoo"),
        ("implicit", Maker(SEQ, 0.5, "xy"), "dws"),
    ],
)
def test_running_decides_not_the_names(tmp_path, layout, maker, convention):
    LAYOUTS[layout](tmp_path, maker)
    written = imported(tmp_path)
    assert written.manifest.function.how.convention == convention
    assert any(f"Running 4 models decided for '{convention}'" in note for note in written.notes)
    assert prepkit.verify(tmp_path / "zoo", rerun=4, data=tmp_path / "png").ok


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_pictures_names_are_taken_and_nothing_is_proved(tmp_path, layout):
    LAYOUTS[layout](tmp_path)
    written = imported(tmp_path, data=None)
    assert written.manifest.function.how.convention == CONVENTIONS[layout]
    assert written.manifest.function.status == "unverified"
    assert any("which nothing proves" in note for note in written.notes)
    table = prepkit.open_zoo(tmp_path / "zoo").table
    assert ("psnr" in table.column_names) == (layout == "implicit")
    if layout == "implicit":
        assert prepkit.verify(tmp_path / "zoo", rerun=4, data=tmp_path / "png").function.status == "verified"
    else:
        with pytest.raises(ZooError, match=r"has no column 'psnr'.*siren SRC DST --data PICTURES`"):
            prepkit.verify(tmp_path / "zoo", rerun=4, data=tmp_path / "png")


def test_a_wrong_guess_of_the_names_is_found_by_verify(tmp_path):
    implicit(tmp_path, Maker(SEQ, 0.5, "xy"))
    imported(tmp_path, data=None)
    found = prepkit.verify(tmp_path / "zoo", rerun=4, data=tmp_path / "png")
    assert not found.ok
    assert found.function.status == "unverified"


def test_what_contradicts_the_pictures_is_refused(tmp_path):
    dws(tmp_path)
    with pytest.raises(ZooError, match=r"'nfn' does not draw the pictures: dws \d+\.\d dB.* name 'dws'"):
        imported(tmp_path, convention="nfn")
    with pytest.raises(ZooError, match=r"there is no 'nfm'; .* Did you mean 'nfn'"):
        imported(tmp_path, convention="nfm")
    for file in (tmp_path / "png").rglob("*.png"):
        Image.fromarray(np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH), dtype=np.uint8)).save(file)
    with pytest.raises(ZooError, match="no convention draws the pictures: "):
        imported(tmp_path)
    assert not (tmp_path / "zoo").exists()


def test_a_psnr_of_a_table_is_compared_not_measured(tmp_path):
    known = dws(tmp_path)
    table = tmp_path / "psnr.csv"
    rows = (f"{key.split('/')[2]},{value + 3}\n" for key, value in known.items())
    table.write_text("index,psnr\n" + "".join(rows))
    imported(tmp_path, table=table)
    found = prepkit.verify(tmp_path / "zoo", rerun=2, data=tmp_path / "png")
    assert [run.stored - run.found for run in found.reruns] == [pytest.approx(3, abs=1e-2)] * 2
    assert found.function.status == "unverified"


def test_of_several_seeds_the_last_has_the_stored_psnr(tmp_path):
    implicit(tmp_path)
    tensors, _ = siren(IMPLICIT, 0, channels=3)
    save(tmp_path / "inrs" / "ckpts" / "00" / "000000_0000007.ckpt", {"image_idx": 0, "params": tensors})
    imported(tmp_path, data=None)
    rows = {row["id"]: row for row in prepkit.open_zoo(tmp_path / "zoo").table.to_pylist()}
    assert rows["0/0/7"]["psnr"] is None
    assert rows["0/0/42"]["psnr"] is not None


def test_other_patterns_need_the_path_of_pictures(tmp_path):
    tensors, pixels = siren(DWS, 0)
    save(tmp_path / "inrs" / "net_3.pt", tensors)
    draw(tmp_path / "png" / "digit-3.png", pixels)
    with pytest.raises(ZooError, match="holds none of the known layouts"):
        imported(tmp_path)
    with pytest.raises(ZooError, match="data=PATH needs `picture`"):
        imported(tmp_path, pattern="net_{digit}.pt")
    with pytest.raises(ZooError, match="`picture` has the field number"):
        imported(tmp_path, pattern="net_{digit}.pt", picture="{number}.png")
    imported(tmp_path, pattern="net_{digit}.pt", picture="digit-{digit}.png")
    assert prepkit.verify(tmp_path / "zoo", rerun=1, data=tmp_path / "png").ok


# Bad input ----------------------------------------------------------------------------------------------------


class Payload:
    def __reduce__(self):
        return os.mkdir, (os.environ["PAYLOAD"],)


def test_a_file_that_fails_is_named_and_the_same_command_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("PAYLOAD", str(tmp_path / "ran"))
    known = dws(tmp_path)
    file = tmp_path / "inrs" / "mnist_png_training_2_2" / "checkpoints" / "model_final.pth"
    good, arguments = file.read_bytes(), ("import", "siren", tmp_path / "inrs", tmp_path / "zoo")
    arguments = (*arguments, "--data", tmp_path / "png")
    assert file.is_file()
    broken = {
        "half": lambda: file.write_bytes(good[: len(good) // 2]),
        "code": lambda: torch.save({"seq.0.weight": Payload()}, file),
        "no siren": lambda: torch.save({"conv.weight": torch.zeros(1, 1, 3, 3), "conv.bias": torch.zeros(1)}, file),
        "NaN": lambda: torch.save({**siren(DWS, 2)[0], "seq.2.bias": torch.tensor([math.nan])}, file),
        "colour": lambda: torch.save(siren(DWS, 2, channels=3)[0], file),
    }
    for name, damage in broken.items():
        damage()
        result = command(*arguments, status=2)
        assert str(file) in result.stderr, name
        kept = "3 of 4 models are kept; the same command goes on" in result.stderr
        assert kept == (name != "colour"), (name, result.stderr)  # whose picture is gray: the convention is not found
        assert not (tmp_path / "ran").exists()
        with pytest.raises(ZooError, match="unfinished zoo"):
            prepkit.open_zoo(tmp_path / "zoo")
    file.write_bytes(good)
    command(*arguments)
    assert set(prepkit.open_zoo(tmp_path / "zoo").table["id"].to_pylist()) == known.keys()


def test_nan_is_left_out_where_it_is_asked_for(tmp_path):
    dws(tmp_path)
    file = tmp_path / "inrs" / "mnist_png_training_0_0" / "checkpoints" / "model_final.pth"
    torch.save({**siren(DWS, 0)[0], "seq.2.bias": torch.tensor([math.nan])}, file)
    written = imported(tmp_path, drop_nan=True)
    assert written.manifest.table.rows == 3
    assert any("1 model that holds NaN or infinity left out" in note for note in written.notes)


def test_pictures_and_folders_that_are_missing_are_named(tmp_path):
    dws(tmp_path)
    (tmp_path / "inrs.zip").write_bytes(b"PK")
    with pytest.raises(ZooError, match=r"inrs\.zip' is a file; unpack an archive first"):
        prepkit.import_zoo("siren", tmp_path / "inrs.zip", tmp_path / "zoo")
    (tmp_path / "png" / "testing" / "1" / "1.png").unlink()
    with pytest.raises(ZooError, match=r"mnist_png_testing_1_1.*has no picture 'testing/1/1\.png'"):
        imported(tmp_path)
    with pytest.raises(ZooError, match="is no folder of pictures"):
        imported(tmp_path, data=tmp_path / "none")
    imported(tmp_path, data=None)
    with pytest.raises(ZooError, match="has no column 'psnr'"):
        prepkit.verify(tmp_path / "zoo", rerun=1)


def test_stored_psnr_of_another_kind_is_refused(tmp_path):
    implicit(tmp_path)
    (tmp_path / "inrs" / "0_4.json").write_text('{"0": "good"}')
    with pytest.raises(ZooError, match=r"0_4\.json: holds no PSNR"):
        imported(tmp_path)


def test_a_rerun_without_pictures_asks_for_them(tmp_path):
    dws(tmp_path)
    imported(tmp_path)
    with pytest.raises(DataMissing, match="data=PATH"):
        prepkit.verify(tmp_path / "zoo", rerun=1)


def test_a_pickle_with_code_alone_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PAYLOAD", str(tmp_path / "ran"))
    save(tmp_path / "inrs" / "train" / "model_0.pth", {"seq.0.weight": Payload()})
    with pytest.raises(CheckpointError, match=r"model_0\.pth"):
        imported(tmp_path, data=None)
    assert not (tmp_path / "ran").exists()


def test_a_killed_import_goes_on(tmp_path, forked_python):
    known = dws(tmp_path, count=400)
    arguments = ["zoo", "import", "siren", str(tmp_path / "inrs"), str(tmp_path / "zoo"), "--data", tmp_path / "png"]
    process = forked_python.start("-m", "prepkit", *arguments)
    journal = tmp_path / "zoo" / ".writing" / "journal.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (journal.is_file() and journal.read_bytes().count(b'"id"') > 20):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 20 < journal.read_bytes().count(b'"id"') < 400
    command(*arguments[1:])
    assert set(prepkit.open_zoo(tmp_path / "zoo").table["id"].to_pylist()) == known.keys()
    assert prepkit.verify(tmp_path / "zoo", rerun=20, data=tmp_path / "png").ok
