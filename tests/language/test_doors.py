"""What goes in: columns, conversations, truncation, streams, packed documents; and what is refused."""

import pickle

import pytest

transformers = pytest.importorskip("transformers")

import numpy as np  # noqa: E402
import torch  # noqa: E402

import gradindex  # noqa: E402
from gradindex import hugging_face  # noqa: E402
from tests.language import kit  # noqa: E402

CHATS = [
    [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "sings"}],
    [
        {"role": "user", "content": "the red fox"},
        {"role": "assistant", "content": "reads a book"},
        {"role": "user", "content": "a whale"},
        {"role": "assistant", "content": "sings"},
    ],
]


@pytest.fixture(scope="module")
def words():
    return kit.tokenizer(chat_template=kit.CHATML)


@pytest.fixture(scope="module")
def model(words):
    return kit.causal("llama", len(words)).eval()


def sample(job, i):
    batch = job.source.take(np.array([i]))
    return batch.x["input_ids"][0].tolist(), batch.y[0].tolist()


def test_only_the_completion_counts(model, words):
    data = [{"prompt": "the red fox", "completion": "reads a book"}, {"prompt": "a cat", "completion": "sings"}]
    data = [{**row, "prompt": row["prompt"] + " "} for row in data]
    job = hugging_face.causal_lm(model, words, data)
    truth = []
    for i, row in enumerate(data):
        ids = words(row["prompt"] + row["completion"])["input_ids"]
        begin = len(words(row["prompt"])["input_ids"])
        labels = [-100] * begin + ids[begin:]
        assert sample(job, i) == (ids, labels)
        truth.append(kit.gradient(model, input_ids=ids, labels=labels))
    kit.assert_rows(job, truth)
    everything = hugging_face.causal_lm(model, words, data, loss_on="all", add_eos=True)
    ids, labels = sample(everything, 0)
    assert ids == labels
    assert ids[-1] == words.eos_token_id


def test_only_the_assistant_counts(model, words):
    job = hugging_face.causal_lm(model, words, [{"messages": chat} for chat in CHATS])
    ids, labels = sample(job, 1)
    counted = words.decode([one for one in labels if one != -100])
    assert counted.split() == ["reads", "a", "book", "<|end|>", "sings", "<|end|>"]
    assert words.decode(ids) == words.decode(words.apply_chat_template(CHATS[1], return_dict=True)["input_ids"])
    marks = kit.CHATML.replace(
        "{{ m['content'] }}<|end|>",
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}"
        "{% else %}{{ m['content'] }}<|end|>{% endif %}",
    )
    marked = hugging_face.causal_lm(model, words, [{"messages": chat} for chat in CHATS], chat_template=marks)
    assert sample(marked, 1) == (ids, labels)
    pairs = [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in CHATS]
    last = hugging_face.causal_lm(model, words, pairs)
    ids_of_pair, labels_of_pair = sample(last, 1)
    assert ids_of_pair == ids
    assert words.decode([one for one in labels_of_pair if one != -100]).split() == ["sings", "<|end|>"]


def test_a_template_that_forgets_is_refused(model, words):
    template = "{% for m in messages %}{% if loop.last %}{{ m['content'] }} {{ m['role'] }} {% endif %}{% endfor %}"
    with pytest.raises(ValueError, match=r"cannot be told. Give a template with \{% generation %\}"):
        hugging_face.causal_lm(model, words, [{"messages": CHATS[1]}], chat_template=template)
    with pytest.raises(ValueError, match="The tokenizer has no chat template"):
        hugging_face.causal_lm(model, kit.tokenizer(), [{"messages": CHATS[1]}])


def test_queries_are_made_as_samples_are(model, words):
    job = hugging_face.causal_lm(model, words, [{"messages": chat} for chat in CHATS])
    x, y = job.texts.encode(messages=CHATS[0])
    assert (x["input_ids"][0].tolist(), y[0].tolist()) == sample(job, 0)
    x, y = job.texts.encode(prompt="a cat", answer="sings")
    assert (x["input_ids"][0].tolist(), y[0].tolist()) == sample(job, 0)
    own = job.texts.answer("a cat", max_new_tokens=5)
    assert len(own.split()) <= 5
    x, _ = job.texts.encode(prompt="a cat")
    assert words.decode(x["input_ids"][0]).startswith("<|start|> user a cat <|end|>")
    plain = hugging_face.causal_lm(model, words, kit.TEXTS)
    x, y = plain.texts.encode(kit.TEXTS[2])
    assert (x["input_ids"][0].tolist(), y[0].tolist()) == sample(plain, 2)
    for wrong in ({}, {"text": "a", "prompt": "b"}):
        with pytest.raises(ValueError, match=r"A query is one of text, prompt .with its answer., or messages; got"):
            job.texts.encode(**wrong)
    with pytest.raises(ValueError, match="No token of the query has a loss"):
        plain.texts.encode("fox")


def test_an_index_of_texts_finds_a_text_itself(model, words, tmp_path):
    job = hugging_face.causal_lm(model, words, kit.TEXTS, columns={"length": [len(text) for text in kit.TEXTS]})
    index = gradindex.build(job, tmp_path / "index")
    result = index.explain(*job.texts.encode(kit.TEXTS[3]), k=2)
    assert result.ordered_indices[0, 0] == 3
    assert result.scores[0, 0] == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="requires a target"):
        index.explain(job.texts.encode(kit.TEXTS[3])[0], k=2)
    assert job.render(3) == kit.TEXTS[3]
    copy = pickle.loads(pickle.dumps(job))
    np.testing.assert_allclose(kit.rows(copy), kit.rows(job))
    assert copy.texts.text(3) == kit.TEXTS[3]


def test_pieces_are_the_text():
    tokenizer = kit.tokenizer("bytes")
    model = kit.causal("gpt2", len(tokenizer)).eval()
    texts = ["the red fox", "狐と鯨", "ثعلب أحمر", "a 🦊 sings"]
    job = hugging_face.causal_lm(model, tokenizer, texts)
    for i, text in enumerate(texts):
        pieces = job.texts.pieces(i)
        assert len(pieces) == len(sample(job, i)[0])
        assert "".join(pieces) == text == job.texts.text(i)
    assert "" in job.texts.pieces(3)  # the fox's four bytes are told at the last


def test_what_is_cut_is_said(model, words):
    with pytest.warns(UserWarning, match=r"3 of 8 texts were cut at 6 tokens \(max_length\): ids 2, 3, 7"):
        job = hugging_face.causal_lm(model, words, kit.TEXTS, max_length=6)
    assert job.texts.truncated.tolist() == [2, 3, 7]
    assert max(len(ids) for ids in job.source.take(np.arange(8)).x["input_ids"]) == 6
    with pytest.warns(UserWarning, match="1 of 2 texts have no token with a loss: ids 1. Their gradients are zero"):
        hugging_face.causal_lm(model, words, ["a cat sings", "fox"])
    with pytest.warns(UserWarning, match="were cut at 64 tokens"):  # the model's own limit
        hugging_face.causal_lm(model, words, [*kit.TEXTS, "fox " * 70])


def test_streams_are_read_once(model, words, tmp_path):
    datasets = pytest.importorskip("datasets")
    reads = []

    def stream():
        for i, text in enumerate(kit.TEXTS):
            reads.append(i)
            yield {"text": text, "number": i}

    data = datasets.IterableDataset.from_generator(stream)
    with pytest.raises(TypeError, match=r"is a stream, and has no positions.*cache=FILE: the stream is read once"):
        hugging_face.causal_lm(model, words, data)
    reads.clear()
    path = tmp_path / "texts.arrow"
    job = hugging_face.causal_lm(model, words, data, cache=path, columns=["number"])
    assert len(job.source) == 8
    once = list(reads)
    assert once == list(range(8))
    plain = hugging_face.causal_lm(model, words, kit.TEXTS)
    np.testing.assert_allclose(kit.rows(job), kit.rows(plain), rtol=1e-5)
    assert job.columns["number"].to_pylist() == list(range(8))
    again = hugging_face.causal_lm(model, words, data, cache=path, columns=["number"])
    assert len(reads) <= len(once) + 1  # the first row shows the columns
    np.testing.assert_allclose(kit.rows(again), kit.rows(plain), rtol=1e-5)
    assert len(pickle.dumps(again.source)) < 1000
    with pytest.raises(ValueError, match="were encoded with other settings"):
        hugging_face.causal_lm(model, words, data, cache=path, max_length=5)
    (tmp_path / "other").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no cache of texts"):
        hugging_face.causal_lm(model, words, data, cache=tmp_path / "other")


def test_forms_of_datasets(model, words):
    datasets = pytest.importorskip("datasets")

    class Map(torch.utils.data.Dataset):
        def __len__(self):
            return len(kit.TEXTS)

        def __getitem__(self, i):
            return {"text": kit.TEXTS[i]}

    wanted = hugging_face.causal_lm(model, words, kit.TEXTS).source.take(np.arange(8))
    for data in (datasets.Dataset.from_dict({"text": kit.TEXTS}), Map(), [{"text": text} for text in kit.TEXTS]):
        found = hugging_face.causal_lm(model, words, data).source.take(np.arange(8))
        assert all(map(np.array_equal, found.x["input_ids"], wanted.x["input_ids"]))
    data = datasets.Dataset.from_dict({"input_ids": [words(text)["input_ids"] for text in kit.TEXTS]})
    found = hugging_face.causal_lm(model, words, data).source.take(np.arange(8))
    assert all(map(np.array_equal, found.y, wanted.y))
    for data, error, match in (
        ([], ValueError, "The dataset is empty"),
        ("a text", TypeError, "holds no texts: expected"),
        ([{"words": "a"}], ValueError, "There is no column 'text' of texts; the dataset has 'words'"),
        ([{"text": 3}], TypeError, "Row 0 has int in the column 'text': expected a text"),
        ([{"messages": "hello"}], TypeError, "Row 0 has str in the column 'messages': expected messages"),
        ([3], TypeError, "Row 0 is int: expected"),
        ([{"text": "a"}, {"words": "b"}], ValueError, "Row 1 has no 'text'; it has 'words'"),
    ):
        with pytest.raises(error, match=match):
            hugging_face.causal_lm(model, words, data)
    with pytest.raises(
        ValueError, match="Give one of text, messages, and prompt with completion; got text and messages"
    ):
        hugging_face.causal_lm(model, words, kit.TEXTS, text="text", messages="messages")


@pytest.mark.parametrize("told", ["seq_lengths", "position_ids", "numbers", "blocks"])
def test_packed_documents_are_samples(told, model, words):
    documents = [words(text)["input_ids"] for text in kit.TEXTS]
    data = []
    for some in (documents[:3], documents[3:5], documents[5:]):
        lengths = [len(ids) for ids in some]
        row = {"input_ids": [one for ids in some for one in ids]}
        if told == "seq_lengths":
            row["seq_lengths"] = lengths
        elif told == "position_ids":
            row["position_ids"] = [place for length in lengths for place in range(length)]
        elif told == "numbers":
            row["attention_mask"] = [number + 1 for number, length in enumerate(lengths) for _ in range(length)]
        else:
            blocks = [torch.ones(length, length).tril() for length in lengths]
            row["attention_mask"] = torch.block_diag(*blocks).tolist()
        data.append(row)
    job = hugging_face.causal_lm(model, words, data, packing=True)
    assert len(job.source) == 8
    alone = hugging_face.causal_lm(model, words, kit.TEXTS, reduction="sum")
    np.testing.assert_allclose(kit.rows(job), kit.rows(alone), rtol=1e-5, atol=1e-7)
    if told == "blocks":  # the sum of a row's documents is the row, where attention does not pass from one to the next
        mask = torch.tensor(data[0]["attention_mask"])[None, None].bool()
        ids = torch.tensor(data[0]["input_ids"])[None]
        labels, places = ids.clone(), torch.cat([torch.arange(len(one)) for one in documents[:3]])[None]
        labels[places == 0] = -100
        loss = model(input_ids=ids, attention_mask=mask, position_ids=places, labels=labels).loss
        whole = kit.of_loss(model, loss * (labels != -100).sum())
        np.testing.assert_allclose(kit.rows(job, [0, 1, 2]).sum(axis=0), whole, atol=1e-4 * np.linalg.norm(whole))
    whole = hugging_face.causal_lm(model, words, [{"input_ids": row["input_ids"]} for row in data])
    assert len(whole.source) == 3
    with pytest.raises(ValueError, match="nothing says where a document of a packed row ends"):
        hugging_face.causal_lm(model, words, [{"input_ids": [5, 6, 7]}], packing=True)


def test_padding_is_left_out(model, words):
    padded = words(kit.TEXTS, padding=True, return_tensors="np")
    words.padding_side = "left"
    left = words(kit.TEXTS, padding=True, return_tensors="np")
    words.padding_side = "right"
    assert (left["input_ids"][:, 0] == 0).any()
    wanted = kit.rows(hugging_face.causal_lm(model, words, kit.TEXTS))
    for encoded in (padded, left):
        data = [{name: part[i].tolist() for name, part in encoded.items()} for i in range(8)]
        found = hugging_face.causal_lm(model, words, data)
        np.testing.assert_allclose(kit.rows(found), wanted, rtol=1e-5, atol=1e-7)


class FullyShardedDataParallel(torch.nn.Module):
    """Stands for torch's, which wants processes to talk to."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_models_in_parts_are_refused(model, words):
    with pytest.raises(
        ValueError, match=r"is fully sharded \(FSDP\).*Save it whole .trainer.save_model.*from_pretrained"
    ):
        hugging_face.causal_lm(FullyShardedDataParallel(model), words, kit.TEXTS)
    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(model.config)
    with pytest.raises(ValueError, match="is on the meta device, offloaded"):
        hugging_face.causal_lm(empty, words, kit.TEXTS)
    model._tp_size = 2
    try:
        with pytest.raises(ValueError, match=r"split over 2 devices .tensor parallel."):
            hugging_face.causal_lm(model, words, kit.TEXTS)
    finally:
        del model._tp_size
    with pytest.raises(TypeError, match="has no `config`: expected a model of transformers"):
        hugging_face.causal_lm(torch.nn.Linear(2, 2), words, kit.TEXTS)


def test_a_sharded_tensor_is_refused(words):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    model = kit.causal("llama", len(words))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        value = distribute_tensor(model.lm_head.weight.data, mesh, [Shard(0)])
        model.lm_head.weight = torch.nn.Parameter(value)
        with pytest.raises(ValueError, match=r"lm_head.weight is a DTensor, sharded over devices"):
            hugging_face.causal_lm(model, words, kit.TEXTS)
    finally:
        dist.destroy_process_group()


def test_half_precision_caches_and_checkpoints(words):
    model = kit.causal("llama", len(words), use_cache=True).eval()
    wanted = kit.rows(hugging_face.causal_lm(model, words, kit.TEXTS))
    model.activation_checkpointing_enable()
    model.train()
    job = hugging_face.causal_lm(model, words, kit.TEXTS)
    np.testing.assert_allclose(kit.rows(job), wanted, rtol=1e-4, atol=1e-6)
    assert kit.paths(job) == {"factored"}
    assert model.training
    half = kit.causal("llama", len(words)).eval().to(torch.bfloat16)
    job = hugging_face.causal_lm(half, words, kit.TEXTS)
    found = kit.rows(job)
    cosines = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    assert (cosines > 0.99).all()
    assert kit.paths(job) == {"factored"}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_routers_loss_is_kept(reduction, words):
    model = kit.causal("mixtral", len(words), output_router_logits=True).eval()
    assert model.router_aux_loss_coef == 0.001
    job = hugging_face.causal_lm(model, words, kit.TEXTS, reduction=reduction)
    encoded = [words(text)["input_ids"] for text in kit.TEXTS]
    truth = [kit.gradient(model, input_ids=ids, labels=ids) for ids in encoded]
    times = [len(ids) - 1 if reduction == "sum" else 1 for ids in encoded]
    kit.assert_rows(job, [row * count for row, count in zip(truth, times, strict=True)], 1e-5)
    assert kit.paths(job) == {"factored"}, job.engine.paths
    assert not hasattr(job.loss_fn, "per_token")


def test_a_loss_of_the_models_own_is_found(words):
    model = kit.causal("llama", len(words)).eval()
    plain = model.loss_function
    model.loss_function = lambda logits, labels, vocab_size, **more: plain(1.5 * logits, labels, vocab_size, **more)
    with pytest.warns(
        UserWarning, match=r"The model's loss of the first sample is .* takes another loss, or adds to it"
    ):
        job = hugging_face.causal_lm(model, words, kit.TEXTS)
    truth = [kit.gradient(model, input_ids=ids, labels=ids) for ids in (words(text)["input_ids"] for text in kit.TEXTS)]
    kit.assert_rows(job, truth)
    assert kit.paths(job) == {"factored"}, job.engine.paths
    x, y = job.texts.encode(kit.TEXTS[0])
    found = job.engine.gradients(x, y).gradients[0]
    np.testing.assert_allclose(found, truth[0], atol=1e-4 * np.linalg.norm(truth[0]))


def test_importing_the_doors_loads_no_framework():
    from tests.test_imports import run

    heavy = ("torch", "transformers", "datasets", "tensorflow", "peft", "trl", "faiss")
    done = run(f"import sys, gradindex.hugging_face; print([m for m in {heavy!r} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
