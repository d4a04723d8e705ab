"""The record of a run whose workdir is a bucket, with a bucket in memory."""

from typing import ClassVar

import pytest

pytest.importorskip("fsspec", reason="of the experiments extra")

import fsspec
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from experiments.record import CHECKPOINTS, MetricWriter, open_storage, read_metrics


class Bucket(MemoryFileSystem):
    protocol = "s3"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("s3://"))


@pytest.fixture
def bucket(monkeypatch):
    fsspec.register_implementation("s3", Bucket, clobber=True)
    Bucket.store.clear()
    yield "s3://bucket/run"
    fsspec.register_implementation("s3", "s3fs.S3FileSystem", clobber=True)


def test_a_record_is_published_and_resumed_from(bucket):
    with open_storage(bucket) as storage:
        assert str(storage.checkpoints) == f"{bucket}/{CHECKPOINTS}"
        with MetricWriter(storage.record) as writer:
            for step in range(1, 6):
                writer.write(step, {"loss": 1 / step}, "train")
            writer.flush()
            storage.publish()
            published = (epath.Path(bucket) / "metrics.jsonl").read_text()
            assert published.count("loss") == 5
            storage.checkpoints.mkdir(parents=True)
            (storage.checkpoints / "5").write_text("not copied")
            writer.write(6, {"loss": 0.1}, "train")
        assert (epath.Path(bucket) / "metrics.jsonl").read_text() == published
    assert not storage.record.exists()
    # As another machine would, after a kill.
    with open_storage(bucket) as storage:
        assert len(read_metrics(storage.record)) == 6
        assert not (storage.record / CHECKPOINTS).exists()
        assert list((storage.record / "tensorboard").glob("events*"))
        with MetricWriter(storage.record) as writer:
            writer.truncate_after(5)
    assert (epath.Path(bucket) / "metrics.jsonl").read_text() == published
    assert (epath.Path(bucket) / CHECKPOINTS / "5").read_text() == "not copied"


def test_other_processes_publish_nothing(bucket):
    with open_storage(bucket, active=False) as storage:
        (storage.record / "metrics.jsonl").write_text("")
    assert not Bucket.store


def test_a_bucket_that_cannot_be_written_to_is_refused(bucket, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError("403: no billing account")

    monkeypatch.setattr(Bucket, "_open", refuse)
    with (
        pytest.raises(
            ValueError, match=r"workdir must be a bucket .*; got 's3://.*403"
        ),
        open_storage(bucket),
    ):
        pass


def test_a_directory_is_its_own_record(tmp_path):
    with open_storage(tmp_path / "run") as storage:
        (storage.record / "config.json").write_text("{}")
        storage.publish()
        assert storage.checkpoints == epath.Path(tmp_path / "run" / CHECKPOINTS)
    assert (tmp_path / "run" / "config.json").read_text() == "{}"
