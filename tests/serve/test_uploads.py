"""Files as queries: read as the job's samples are made, refused in a sentence, and harmless whatever they hold."""

import io
import struct
import time
import zlib

import numpy as np
import pytest

import gradindex
from tests.jobs import ROWS, digits, digits_job

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
Image = pytest.importorskip("PIL.Image")

X, Y = digits()
EIGHT = X[12].reshape(8, 8)


def picture(pixels, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def grey(sample=EIGHT):
    return (sample * 255).round().astype(np.uint8)


def sent(client, data):
    return client.post("/v1/inputs", content=data, headers={"content-type": "application/octet-stream"})


def inputs_of(client, data):
    answer = sent(client, data)
    assert answer.status_code == 200, answer.text
    return answer.json()


def serving(job, tmp_path, **settings):
    from starlette.testclient import TestClient

    from gradindex.serve import Settings, create_app

    index = gradindex.build(job, tmp_path / "index")
    return TestClient(create_app(index, Settings(hosts=("testserver",), **settings)), raise_server_exceptions=False)


def bytes_of(text):
    import base64

    return np.frombuffer(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), np.uint8)


def test_a_picture_is_its_pixels_in_the_size_of_the_others(client):
    found = inputs_of(client, picture(grey()))
    assert found["input"] is None and found["note"] == ""
    np.testing.assert_array_equal(bytes_of(found["pixels"]).reshape(8, 8), grey())
    large = np.kron(grey(), np.ones((8, 8), np.uint8))
    found = inputs_of(client, picture(large))
    assert found["note"] == "Scaled from 64 × 64 pixels."
    assert abs(bytes_of(found["pixels"]).reshape(8, 8).astype(int) - grey()).mean() < 25
    colours = np.stack([grey()] * 3, -1)
    np.testing.assert_allclose(bytes_of(inputs_of(client, picture(colours))["pixels"]), grey().ravel(), atol=1)
    jpeg = bytes_of(inputs_of(client, picture(grey(), "JPEG", quality=100))["pixels"]).astype(int)
    assert abs(jpeg - grey().ravel()).max() < 8
    sixteen = picture(grey().astype(np.uint16) * 257)
    np.testing.assert_array_equal(bytes_of(inputs_of(client, sixteen)["pixels"]), grey().ravel())


def test_a_picture_is_held_as_its_camera_was(client):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = bytes_of(inputs_of(client, picture(grey()[::-1, ::-1], "JPEG", quality=100, exif=exif))["pixels"])
    assert abs(turned.astype(int) - grey().ravel()).max() < 8


def test_an_array_is_a_sample(client, index):
    for data in (npy(X[12]), npy(X[12:13]), npy(X[12].astype(np.float64)), npy(np.asfortranarray(X[12:13]))):
        found = inputs_of(client, data)
        np.testing.assert_array_equal(np.float32(found["input"]), X[12])
    answer = client.post("/v1/explain", json={"inputs": [found["input"]], "k": 4}).json()["answers"][0]
    want = index.explain(X[12:13], k=4).ordered_indices[0]
    assert [one["id"] for one in answer["proponents"]] == want.tolist()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width, height):
    """A PNG of few bytes that claims, and holds, very many pixels."""
    rows = zlib.compress(b"\0" * (1 << 20), 9) * 8
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def claiming(shape, dtype="<f4", data=b""):
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (64 - (10 + len(text) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "The file is empty."),
        (b"GIF89a" + b"\0" * 50, "expected a PNG or JPEG picture or an array (.npy)"),
        (picture(grey())[:60], "The picture cannot be read: its file is damaged or cut off."),
        (picture(grey(), "JPEG")[:100], "The picture cannot be read"),
        (b"\xff\xd8\xff" + b"\0" * 100, "The picture cannot be read"),
        (bomb(60_000, 60_000), "too many pixels: at most"),
        (bomb(6_000, 6_000), "too many pixels: at most"),
        (bomb(2**31 - 1, 2**31 - 1), "too many pixels: at most"),
        (npy(X[12, :63]), "expected numbers of shape (64), got (63,)"),
        (npy(X[:2]), "expected numbers of shape (64), got (2, 64)"),
        (npy(np.full(64, np.nan, np.float32)), "NaN or infinity"),
        (npy(np.full(64, 1e300)), "too large for float32"),
        (npy(np.zeros(64, complex)), "The array holds complex128: expected numbers"),
        (npy(np.array(["a"] * 64)), "The array holds <U1: expected numbers"),
        (npy(np.array([{}] * 64, object), allow_pickle=True), "The array holds object: expected numbers"),
        (npy(X[12])[:-4], "The array's file is damaged"),
        (claiming((2**40, 2**20)), "The array's file is damaged"),
        (claiming((2**62, 2**62)), "The array's file is damaged"),
        (claiming((-64,), data=X[12].tobytes()), "expected numbers"),
        (claiming("__import__('os').getcwd()"), "The array cannot be read"),
        (b"\x93NUMPY\x07\x00" + b"\0" * 64, "The array cannot be read"),
        (b"\x93NUMPY", "The array cannot be read"),
    ],
)  # fmt: skip
def test_what_is_no_query_is_refused_at_once(client, data, said):
    began = time.perf_counter()
    answer = sent(client, data)
    assert answer.status_code == 422, answer.text
    assert said in answer.json()["detail"]
    assert time.perf_counter() - began < 20


def test_files_over_the_limit_are_not_read(client):
    assert sent(client, b"\x89PNG\r\n\x1a\n" + b"\0" * 300_000).status_code == 413


def test_a_damaged_picture_is_an_error_of_nobody(client):
    """Every byte of small files changed once: each is read, or refused."""
    random = np.random.default_rng(0)
    for data in (picture(grey()), picture(grey(), "JPEG"), npy(X[12])):
        for at in random.choice(len(data), 60, replace=False):
            changed = bytearray(data)
            changed[at] ^= 1 << int(random.integers(8))
            assert sent(client, bytes(changed)).status_code in (200, 422)


def standardised(**options):
    """Digits of mean 0 and variance 1, shown as they were."""
    import torch

    x = (X - X.mean()) / X.std()
    model = torch.nn.Sequential(torch.nn.Linear(64, 10))
    return gradindex.Job(model, torch.nn.CrossEntropyLoss(), (x, Y), render=lambda i: X[i].reshape(8, 8), **options)


def test_a_job_that_does_not_show_its_inputs_takes_no_pictures(tmp_path):
    with serving(standardised(), tmp_path) as client:
        form = client.get("/v1/index").json()["input"]
        assert "whose values are not those that the model takes: give the job prepare=" in form["why_no_picture"]
        answer = sent(client, picture(grey()))
        assert (answer.status_code, answer.json()["detail"]) == (422, form["why_no_picture"])
        assert sent(client, npy(X[12])).status_code == 200


def test_values_below_zero_do_not_say_what_black_is(tmp_path):
    import torch

    x = ((X - 0.3) / 0.2).reshape(-1, 8, 8)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with serving(gradindex.Job(model, torch.nn.CrossEntropyLoss(), (x, Y)), tmp_path) as client:
        answer = sent(client, picture(grey()))
        assert answer.status_code == 422 and "which do not say what black and white are" in answer.json()["detail"]


def test_the_jobs_own_preprocessing_is_what_a_picture_goes_through(tmp_path):
    def prepare(pixels):
        assert pixels.dtype == np.uint8
        if pixels.shape != (8, 8):
            raise ValueError("eight by eight, please")
        return ((pixels / 255 - X.mean()) / X.std()).ravel()

    with serving(standardised(prepare=prepare), tmp_path) as client:
        found = inputs_of(client, picture(grey()))
        assert found["pixels"] is None
        np.testing.assert_allclose(found["input"], (grey().ravel() / 255 - X.mean()) / X.std(), rtol=1e-5)
        refused = sent(client, picture(np.zeros((9, 9), np.uint8)))
        assert refused.status_code == 422
        assert refused.json()["detail"] == "The job's prepare failed: ValueError: eight by eight, please"


def test_what_prepare_makes_must_be_an_input(tmp_path):
    with serving(standardised(prepare=lambda pixels: pixels), tmp_path) as client:
        answer = sent(client, picture(grey()))
        assert answer.status_code == 422 and "prepare: expected numbers of shape (64), got (8, 8)" in answer.text
        assert "Let it scale the picture, and convert its colours: (8, 8)." in answer.text


def test_prepare_must_be_callable():
    with pytest.raises(TypeError, match=r"prepare must be callable, prepare\(pixels\), got int"):
        digits_job(prepare=3)


def test_colours_come_in_the_order_of_the_inputs(tmp_path):
    """Channels first in the inputs, last in the pixels."""
    import torch

    x = np.random.default_rng(0).random((ROWS, 3, 4, 5), np.float32)
    x = (x * 255).round() / np.float32(255)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 10))
    with serving(gradindex.Job(model, torch.nn.CrossEntropyLoss(), (x, Y)), tmp_path) as client:
        assert client.get("/v1/index").json()["input"]["picture"] == [4, 5, 3]
        pixels = (x[3].transpose(1, 2, 0) * 255).round().astype(np.uint8)
        found = inputs_of(client, picture(pixels))
        np.testing.assert_array_equal(bytes_of(found["pixels"]).reshape(4, 5, 3), pixels)


def test_queries_in_words_of_a_job_with_a_tokenizer(tmp_path):
    pytest.importorskip("transformers")
    from tests.language.kit import TEXTS
    from tests.serve.jobs import words_job

    job = words_job()
    with serving(job, tmp_path) as client:
        assert client.get("/v1/index").json()["input"]["tokenizer"]
        asked = {"texts": [TEXTS[2], "a cat sings"], "k": 3, "rerank": 0, "render": True}
        found = client.post("/v1/explain", json=asked)
        assert found.status_code == 200, found.text
        want = gradindex.load(tmp_path / "index", job).explain(text=asked["texts"], k=3, rerank=0)
        for answer, ids in zip(found.json()["answers"], want.ordered_indices, strict=True):
            assert [one["id"] for one in answer["proponents"]] == ids.tolist()
        assert found.json()["answers"][1]["query"]["rendered"] == {"kind": "text", "data": "a cat sings", "shape": None}


def test_a_job_without_a_tokenizer_takes_no_words(client):
    answer = client.post("/v1/explain", json={"texts": ["a text"]})
    assert answer.status_code == 422 and "this job has no tokenizer" in answer.json()["detail"]
