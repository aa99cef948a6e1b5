"""The page of a zoo: what it holds is computed again with loops of numpy; a browser shows it where there is one."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import prepkit
from prepkit.browsing import page as page_module
from prepkit.browsing._gathering import THUMBNAIL_CELLS, _in_bytes, block_means, gather_weights
from prepkit.browsing._weights_map import SKETCH, sketch, weights_map
from prepkit.browsing.page import check_built, page_of
from prepkit.browsing.serving import PageServer
from prepkit.cli import main
from prepkit.errors import OutputError, ZooError
from prepkit.zoo.opened import Zoo

BUILT = page_module.BUILT
NAMES = ("lenet_like@digits", "vanilla_cnn@digits")
NUM_INSTANCES = 9
HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A zoo of two architectures; a text of its table is hostile."""
    root: Path = tmp_path_factory.mktemp("browsing") / "zoo"
    torch.manual_seed(0)
    with prepkit.ZooWriter(root, width=512, name="a & b") as writer:
        for number in range(NUM_INSTANCES):
            architecture = prepkit.architecture(NAMES[number % 2])
            tensors = architecture.build().state_dict()
            columns = {"accuracy": number / 10, "note": HOSTILE, "big": 2**60 + number, "curve": [0.5, float(number)]}
            split = "train" if number < 6 else "test"
            writer.add(tensors, architecture=architecture, id=f"n{number}", split=split, **columns)
    return root


@pytest.fixture
def zoo(root) -> Zoo:
    return prepkit.open_zoo(root)


@pytest.fixture
def built(tmp_path, monkeypatch) -> None:
    """A script and a style that do nothing, where `make page` has not run."""
    for name in ("page.js", "page.css"):
        (tmp_path / name).write_text("/* nothing */")
    monkeypatch.setattr(page_module, "BUILT", tmp_path)
    page_module._built.cache_clear()
    yield
    page_module._built.cache_clear()


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'id="data">([^<]*)<', html)
    assert found
    data: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(found[1])))
    return data


@pytest.mark.parametrize("total", [1, 7, 200, 255, 256, 257, 1024, 4500])
def test_a_thumbnail_holds_means_of_blocks(total):
    values = np.random.default_rng(total).normal(size=(2, total)).astype(np.float32)
    expected = np.zeros((2, THUMBNAIL_CELLS))
    for cell in range(THUMBNAIL_CELLS):
        start = cell * total // THUMBNAIL_CELLS
        stop = -(-(cell + 1) * total // THUMBNAIL_CELLS)
        expected[:, cell] = values[:, start:stop].astype(np.float64).mean(axis=1)
    np.testing.assert_allclose(block_means(values), expected, rtol=1e-4, atol=1e-6)


def test_a_map_of_few_cells_is_that_of_principal_components():
    values = np.random.default_rng(0).normal(size=(30, 200)) * np.linspace(3, 0.1, 200)
    found = weights_map(sketch(values, exact=True), exact=True)
    assert found is not None
    left, singular, _ = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found.places_N2), np.abs(left[:, :2] * singular[:2]), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.explained, (singular**2 / (singular**2).sum())[:2], rtol=1e-4)


def test_a_map_of_many_cells_shows_what_separates_instances():
    """With more instances than SKETCH, and more cells: two groups lie apart along the first component."""
    generator = np.random.default_rng(1)
    group = np.arange(SKETCH + 50) % 2
    apart = generator.normal(size=2 * SKETCH)
    values = generator.normal(size=(len(group), 2 * SKETCH)) + 2 * np.outer(group, apart)
    sketched = sketch(values, exact=False)
    # The projection keeps lengths and inner products about as they are.
    for row in range(3):
        assert abs(np.square(sketched[row]).sum() / np.square(values[row]).sum() - 1) < 0.25
    found = weights_map(sketched, exact=False)
    assert found is not None
    first = found.places_N2[:, 0]
    assert (first[group == 0].max() < first[group == 1].min()) or (first[group == 1].max() < first[group == 0].min())
    share = found.explained[0]
    exact = np.linalg.svd(values - values.mean(axis=0), compute_uv=False) ** 2
    assert abs(share - exact[0] / exact.sum()) < 0.1


def test_no_map_of_too_little():
    assert weights_map(np.ones((2, SKETCH), np.float32), exact=True) is None
    assert weights_map(np.ones((5, SKETCH), np.float32), exact=True) is None
    assert weights_map(np.full((5, SKETCH), np.nan, np.float32), exact=True) is None


def test_statistics_and_rows_are_those_of_each_instance(zoo):
    found = gather_weights(zoo)
    assert found.map is not None
    assert not found.map.exact
    assert np.isfinite(found.map.places_N2).all()
    assert [own.name for own in found.architectures] == list(NAMES)
    assert sorted(row for own in found.architectures for row in own.rows_n) == list(range(NUM_INSTANCES))
    for own in found.architectures:
        for position, row in enumerate(own.rows_n.tolist()):
            assert own.statistics_nTS is not None
            assert zoo.table["architecture"][row].as_py() == own.name
            for tensor, statistics in zip(zoo[row][0].tensors().values(), own.statistics_nTS[position], strict=True):
                values = tensor.double().numpy()
                expected = [values.mean(), values.std(), values.min(), np.median(values), values.max()]
                np.testing.assert_allclose(statistics, expected, rtol=1e-5, atol=1e-7)


def test_what_is_not_finite_is_shown_as_that():
    """Zoos of other programs may hold it; prepkit writes none."""
    means = np.array([[0.5, np.nan, -2.0], [np.inf, 0.0, 1.0]], np.float32)
    found, limit = _in_bytes(means)
    assert limit == pytest.approx(2.0, rel=0.02)
    assert found.tolist() == [[round(127 * 0.5 / limit), -128, -127], [-128, 0, round(127 / limit)]]
    sketches = np.random.default_rng(0).normal(size=(5, SKETCH)).astype(np.float32)
    sketches[2, 7] = np.nan
    places = weights_map(sketches, exact=True)
    assert places is not None
    assert np.isnan(places.places_N2).all(axis=1).tolist() == [False, False, True, False, False]


@pytest.mark.usefixtures("built")
def test_a_page_holds_the_table_and_the_audit(zoo):
    page = page_of(zoo)
    data = data_of(page.html)
    columns = {column["name"]: column for column in data["columns"]}
    assert not {"shard", "row"} & set(columns)
    assert columns["accuracy"] == {"name": "accuracy", "kind": "number", "values": [n / 10 for n in range(9)]}
    assert columns["note"]["values"] == [HOSTILE] * 9
    assert columns["big"]["values"] == [str(2**60 + n) for n in range(9)]  # JavaScript would round the number
    assert columns["curve"]["values"][3] == "[0.5, 3.0]"
    assert page.audit is not None
    assert data["audit"]["counts"] == page.audit.counts
    assert page.audit.counts["lineage"] > 0
    assert "<title>a &amp; b</title>" in page.html
    assert HOSTILE not in page.html
    assert page.html == page_of(zoo).html


@pytest.mark.usefixtures("built")
def test_of_many_instances_some_are_shown_evenly_spaced_and_no_audit_is_made(zoo):
    page = page_of(zoo, limit=3)
    data = data_of(page.html)
    assert data["columns"][0]["values"] == ["n0", "n4", "n8"]
    assert (page.instances, page.of, page.audit, data["audit"]) == (3, 9, None, None)


@pytest.mark.usefixtures("built")
def test_a_page_of_nothing_is_refused(zoo):
    with pytest.raises(ZooError, match="has no instances to show"):
        page_of(zoo.where("accuracy > 2"))


def test_a_clone_without_the_script_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "BUILT", tmp_path)
    with pytest.raises(ZooError, match="Run `make page`"):
        check_built()


@pytest.mark.usefixtures("built")
def test_the_command_writes_a_page_and_keeps_one_that_is_there(root, tmp_path):
    target = tmp_path / "page.html"
    arguments = ["zoo", "view", str(root), "-o", str(target), "--where", "split == 'train'", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["instances"], document["page"], document["address"]) == (6, str(target), None)
    assert data_of(target.read_text())["shown"] == 6
    before = target.read_bytes()
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code != 0
    assert "exists" in result.stdout
    assert target.read_bytes() == before
    assert CliRunner().invoke(main, ["zoo", "view", str(root), "--port", "8000"]).exit_code == 2


def test_a_server_answers_this_machine_alone():
    server = PageServer()
    thread = threading.Thread(target=server.serve, args=("<p>page</p>",))
    thread.start()
    try:
        port = server.server_address[1]
        assert server.server_address[0] == "127.0.0.1"

        def answer(host: str, path: str = "/", method: str = "GET") -> tuple[int, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request(method, path, headers={"Host": host})
            response = connection.getresponse()
            content = response.read()
            connection.close()
            return response.status, content

        assert answer(f"127.0.0.1:{port}") == (200, b"<p>page</p>")
        assert answer(f"localhost:{port}", method="HEAD") == (200, b"")
        assert answer("localhost", "/etc/passwd")[0] == 404
        assert answer("evil.example")[0] == 403
        with pytest.raises(OutputError, match="cannot be served"):
            PageServer(port)
    finally:
        server.shutdown()
        thread.join()


@pytest.mark.skipif(not (BUILT / "page.js").is_file(), reason="`make page` has not run")
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is missing")
def test_a_browser_shows_the_page(zoo, tmp_path):
    page = page_of(zoo)
    (tmp_path / "page.html").write_text(page.html, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    address = f"{(tmp_path / 'page.html').as_uri()}#n4"
    command = ["chromium", *flags, "--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'user'}", "--dump-dom"]
    shown = subprocess.run([*command, address], capture_output=True, text=True, timeout=120, check=True).stdout
    assert 'data-ready="yes"' in shown
    assert 'role="alert"' not in shown
    for id_ in ("n0", "n8"):
        assert f"<span>{id_}</span>" in shown
    assert page.audit is not None
    assert f">Audit ({sum(page.audit.counts.values())})<" in shown
    instance = shown.partition("<dialog")[2]
    assert '<h2 id="instance-title">n4</h2>' in instance
    assert all(f"<td>{slot.name}</td>" in instance for slot in zoo.layout("n4"))
    assert "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in instance
