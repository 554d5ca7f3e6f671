"""A build on a cluster whose index lies in a bucket."""

import os

import fsspec
import pytest

import gradindex
from tests.jobs import digits_job
from tests.store.remote import MISSING, s3

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} missing: pip install 'gradindex[test]'")
__all__ = ["s3"]


def test_a_bucket_holds_the_files_of_a_directory(nodes, s3, tmp_path):
    options = {"shard_rows": 120, "batch_size": 40, "index": "IVF4,SQ8"}
    settings = {name: os.environ[name] for name in os.environ if name.startswith(("AWS_", "GRADINDEX_CACHE"))}
    engine = gradindex.Ray(address=nodes.address, workers=1, runtime_env={"env_vars": settings})
    gradindex.build(digits_job(), f"{s3}/i", engine=engine, **options)
    here = gradindex.build(digits_job(), tmp_path / "i", **options)
    want = {str(p.relative_to(tmp_path / "i")): p.read_bytes() for p in (tmp_path / "i").rglob("*") if p.is_file()}
    fs, key = fsspec.url_to_fs(f"{s3}/i", use_listings_cache=False)
    assert {name.removeprefix(f"{key}/"): fs.cat_file(name) for name in fs.find(key)} == want
    with gradindex.load(f"{s3}/i", digits_job(), engine=engine) as there:
        asked = {"ids": [3, 100], "k": 5}
        assert there.explain(**asked).ordered_indices.tolist() == here.explain(**asked).ordered_indices.tolist()
