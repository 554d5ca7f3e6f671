"""A server that speaks S3, on this machine, for as long as a test module runs."""

import importlib.util
import os
import threading
import urllib.request

import pytest

MISSING = [name for name in ("s3fs", "moto", "flask") if importlib.util.find_spec(name) is None]
BUCKET = "tests"


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """Yield the URL of an empty bucket; the cache lies in a folder of its own."""
    if MISSING:
        pytest.skip(f"{', '.join(MISSING)} missing: pip install 'gradindex[test]'")
    import logging

    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "GRADINDEX_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    put, one_at_a_time = S3Response._key_response_put, threading.Lock()

    def atomic(self, *args, **options):
        """S3 creates an object if it is absent in one step; moto looks first, and two of a thousand racers both win."""
        with one_at_a_time:
            return put(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Response, "_key_response_put", atomic)
        for name, value in settings.items():
            patch.setenv(name, value)
        urllib.request.urlopen(urllib.request.Request(f"{os.environ['AWS_ENDPOINT_URL']}/{BUCKET}", method="PUT"))
        yield f"s3://{BUCKET}"
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
