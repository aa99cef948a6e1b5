"""Zoos in S3, on a local server of moto's: `pip install "moto[s3]" flask flask-cors s3fs`, else these are skipped."""

import pytest
import torch
from store_contract import StoreContract

import prepkit
from prepkit.api import open_zoo
from prepkit.errors import HubError, ZooError
from prepkit.hub.store import open_store

server = pytest.importorskip("moto.server", exc_type=ImportError)
boto3, s3fs = pytest.importorskip("boto3"), pytest.importorskip("s3fs")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def endpoint():
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host.replace('0.0.0.0', '127.0.0.1')}:{port}"
    running.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch, tmp_path):
    """A bucket, and the environment in which it is found."""
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "PREPKIT_CACHE": str(tmp_path / "cache"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="zoos")
    return client


@pytest.fixture
def address(bucket, source):
    for path in source.rglob("*.*"):
        bucket.put_object(Bucket="zoos", Key=f"my/zoo/{path.relative_to(source).as_posix()}", Body=path.read_bytes())
    return "s3://zoos/my/zoo"


class TestS3(StoreContract):
    @pytest.fixture
    def folder(self, source):
        return source

    @pytest.fixture
    def store(self, address):
        return open_store(address)


def test_verifying_and_what_is_missing(address, bucket, source):
    assert prepkit.verify(address).ok
    zoo = open_zoo(address)
    assert torch.equal(zoo.preps(), open_zoo(source).preps())
    with pytest.raises(ZooError, match="s3://zoos/my/none is no zoo"):
        open_zoo("s3://zoos/my/none")
    with pytest.raises(ZooError, match="s3://nowhere/zoo is no zoo"):
        open_zoo("s3://nowhere/zoo")
    shard = zoo.manifest.shards[0].path
    bucket.put_object(Bucket="zoos", Key=f"my/zoo/{shard}", Body=b"x")
    assert [fault.file for fault in prepkit.verify(address).faults] == [shard]


def test_without_keys(address, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(HubError, match=r"Unable to locate credentials.*FSSPEC_S3_ANON=true"):
        open_zoo(address)
