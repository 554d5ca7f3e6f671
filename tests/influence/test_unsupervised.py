"""Losses without labels: gradients, draws and their error against loops written out by hand."""

import numpy as np
import pytest

import gradindex
from gradindex.influence import UnsupervisedJob
from tests.influence.unsupervised_models import LATENT, SIDE, TEXTS, WORDS, KerasKit, TorchKit, X, Z, same_weights


def vae_job(models, draws=4, seed=1, **options):
    model, loss_fn = models.vae()
    return UnsupervisedJob(model, loss_fn, X, takes="model", noise=(LATENT,), draws=draws, seed=seed, **options)


def found_gradients(job):
    batch = job.source.take(np.arange(len(job.source)))
    return job.engine.gradients(batch.x, batch.y)


def naive_vae(models, job, x, draws=None):
    def loss(one):
        noise = job.noise_values if draws is None else job.noise_values[draws]
        return models.mean([job.loss_fn(job.model, one, models.tensor(draw[None])) for draw in noise])

    return models.gradients(job.model, loss, x)


def test_an_autoencoder_is_its_own_label(models):
    model, loss_fn = models.autoencoder()
    job = UnsupervisedJob(model, loss_fn, X)
    found = found_gradients(job)
    want = models.gradients(model, lambda one: models.mean([models.call_loss(loss_fn, model(one), one)]), X)
    np.testing.assert_allclose(found.gradients, want, rtol=1e-4, atol=1e-6)
    assert set(job.engine.paths.values()) == {"factored"}
    losses, error = job.losses()
    np.testing.assert_allclose(losses, found.losses, rtol=1e-6)
    assert (error == 0).all()


def test_a_stochastic_loss_is_averaged_over_common_draws(models):
    job = vae_job(models)
    found = found_gradients(job)
    np.testing.assert_allclose(found.gradients, naive_vae(models, job, X), rtol=1e-4, atol=1e-6)
    assert set(job.engine.paths.values()) == {"factored"}
    assert job.noise_values.shape == (4, LATENT)
    again = found_gradients(vae_job(models))
    np.testing.assert_array_equal(again.gradients, found.gradients)
    other = found_gradients(vae_job(models, seed=2))
    assert np.abs(other.gradients - found.gradients).max() > 0.01


def one_loss(models, job, z, draw):
    found = job.loss_fn(job.model, models.tensor(z[None]), models.tensor(draw[None]))
    return float(models.array(found)[0])


def test_losses_come_with_the_standard_error_of_their_draws(models):
    job = vae_job(models, draws=6)
    every = np.array([[one_loss(models, job, z, draw) for draw in job.noise_values] for z in Z])
    losses, error = job.losses(Z)
    np.testing.assert_allclose(losses, every.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(error, every.std(axis=1, ddof=1) / np.sqrt(6), rtol=1e-3)
    assert np.isnan(vae_job(models, draws=1).losses(Z)[1]).all()


def test_influence_has_the_jackknife_error_of_its_draws(models):
    job = vae_job(models, draws=3)
    value, error = job.influence([0, 5], Z)
    want = naive_vae(models, job, X[[0, 5]]) @ naive_vae(models, job, Z).T
    np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-5)
    parts = np.stack(
        [naive_vae(models, job, X[[0, 5]], s) @ naive_vae(models, job, Z, s).T for s in ([1, 2], [0, 2], [0, 1])]
    )
    jackknife = np.sqrt(2 / 3 * np.square(parts - parts.mean(axis=0)).sum(axis=0))
    np.testing.assert_allclose(error, jackknife, rtol=1e-3, atol=1e-5)


def test_the_standard_error_foretells_the_spread_over_seeds():
    """Few draws with many seeds spread about as far as the jackknife says."""
    runs = [vae_job(TorchKit, draws=32, seed=seed).influence([0, 5], Z) for seed in range(40)]
    spread = np.std([value for value, _ in runs], axis=0, ddof=1)
    foretold = np.sqrt(np.mean([error**2 for _, error in runs], axis=0))
    assert ((foretold / spread > 0.7) & (foretold / spread < 1.5)).all()  # the jackknife errs to the safe side


def test_a_language_model_has_a_loss_for_each_text(models):
    model, loss_fn = models.language_model()
    job = UnsupervisedJob(model, loss_fn, TEXTS)
    want = models.gradients(model, lambda one: models.mean([models.call_loss(loss_fn, model(one), one)]), TEXTS)
    np.testing.assert_allclose(found_gradients(job).gradients, want, rtol=1e-3, atol=1e-5)


def test_a_hugging_face_language_model_has_its_own_token_loss():
    transformers = pytest.importorskip("transformers")
    import torch

    sizes = {"vocab_size": WORDS, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2, "use_cache": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))

    def loss_fn(output, tokens):
        return torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    job = UnsupervisedJob(model, loss_fn, TEXTS)
    want = TorchKit.gradients(model, lambda one: model(input_ids=one, labels=one).loss, TEXTS)
    np.testing.assert_allclose(found_gradients(job).gradients, want, rtol=1e-3, atol=1e-5)


def test_one_token_can_be_asked_about():
    """The texts that make one token likely: a loss of the model that weighs the tokens of its input."""
    from torch.nn import functional as F

    model, _ = TorchKit.language_model()
    model.eval()

    def loss_fn(model, x):
        output = model(x["tokens"])[:, :-1]
        losses = F.cross_entropy(output.transpose(1, 2), x["tokens"][:, 1:], reduction="none")
        return (losses * x["weights"]).sum(dim=1)

    weights = np.ones((len(TEXTS), TEXTS.shape[1] - 1), np.float32)
    job = UnsupervisedJob(model, loss_fn, {"tokens": TEXTS, "weights": weights}, takes="model")
    only = np.zeros_like(weights[:1])
    only[0, 3] = 1
    x, y = job.queries({"tokens": TEXTS[:1], "weights": only})
    found = job.engine.gradients(x, y).gradients
    want = TorchKit.gradients(model, lambda one: F.cross_entropy(model(one)[:, 3], one[:, 4]), TEXTS[:1])
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_loss_of_the_model_may_reduce_but_pays_for_it(reduction, caplog):
    from torch.nn import functional as F

    model, _ = TorchKit.autoencoder()

    def loss_fn(model, x):
        loss = F.mse_loss(model(x), x, reduction=reduction)
        return loss.mean(dim=1) if reduction == "none" else loss

    job = UnsupervisedJob(model, loss_fn, X, takes="model")
    want = TorchKit.gradients(model, lambda one: F.mse_loss(model(one), one), X)
    np.testing.assert_allclose(found_gradients(job).gradients, want, rtol=1e-4, atol=1e-6)
    assert set(job.engine.paths.values()) == {"factored" if reduction == "none" else "vmap"}


def test_frameworks_agree_with_the_same_weights():
    torch_job, keras_job = vae_job(TorchKit), vae_job(KerasKit)
    same_weights(torch_job.model, keras_job.model)
    (one, other) = (next(gradindex.embed(job, sketch=gradindex.CountSketch(64))) for job in (torch_job, keras_job))
    np.testing.assert_allclose(one.sketches, other.sketches, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-5)
    np.testing.assert_allclose(torch_job.losses(Z), keras_job.losses(Z), rtol=1e-3)


def test_an_index_of_a_vae_answers_like_the_exact_kernel(models, tmp_path):
    job = vae_job(models)
    index = gradindex.build(job, tmp_path / "index")
    result = index.explain(*job.queries(Z), k=14, kernel="grad_dot")
    dots = naive_vae(models, job, Z) @ naive_vae(models, job, X).T
    np.testing.assert_allclose(result.scores, -np.sort(-dots, axis=1), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(result.ordered_indices, np.argsort(-dots, axis=1))
    assert set(index.store.columns) == {"loss"}
    assert "query_predictions" not in result.data
    gradindex.load(tmp_path / "index", vae_job(models))
    with pytest.raises(gradindex.MismatchError, match=r"noise.* has other values"):
        gradindex.load(tmp_path / "index", vae_job(models, seed=2))


def test_the_model_leaves_as_it_came(models):
    job = vae_job(models)
    before = models.weights(job.model)
    models.train(job.model)
    found_gradients(job)
    for one, other in zip(before, models.weights(job.model), strict=True):
        np.testing.assert_array_equal(one, other)
    assert models.trains(job.model)


def test_parameters_are_chosen_by_the_models_own_names():
    names = ["decoder.2.bias", "encoder.0.weight"]
    assert [p.name for p in vae_job(TorchKit, parameters=names).engine.parameters] == [
        "model." + n for n in names[::-1]
    ]
    last = vae_job(TorchKit, parameters="last_layer").engine.parameters
    assert [p.name for p in last] == ["model.decoder.2.weight", "model.decoder.2.bias"]


def test_labels_of_a_dataset_are_ignored():
    model, loss_fn = TorchKit.autoencoder()
    plain = found_gradients(UnsupervisedJob(model, loss_fn, X))
    labelled = found_gradients(UnsupervisedJob(model, loss_fn, [(x, 3) for x in X]))
    np.testing.assert_array_equal(plain.gradients, labelled.gradients)


def wrong_shape(model, x):
    return (model(x) - x) ** 2


AUTOENCODER = TorchKit.autoencoder()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: UnsupervisedJob(*AUTOENCODER, X, takes="x"), ValueError, "Unknown takes 'x'.*'output' | 'model'"),
        (lambda: UnsupervisedJob(*AUTOENCODER, X, draws=2), ValueError, "draws is 2, but no noise is drawn"),
        (lambda: UnsupervisedJob(*AUTOENCODER, X, noise=(3,)), ValueError, "give takes='model' and loss_fn"),
        (lambda: vae_job(TorchKit, draws=0), ValueError, "draws must be a positive integer, got 0"),
        (lambda: vae_job(TorchKit, seed=-1), ValueError, "seed"),
        (lambda: vae_job(TorchKit, draws=1).influence([0], Z), ValueError, "needs at least 2 draws"),
        (lambda: vae_job(TorchKit).losses(Z * np.nan), ValueError, r"loss of samples \[0, 1, 2\] holds NaN"),
        (
            lambda: UnsupervisedJob(AUTOENCODER[0], wrong_shape, X, takes="model").losses(),
            ValueError,
            rf"shape \(14, {SIDE}\) for 14 samples; expected one loss each, \(14,\)",
        ),
        (
            lambda: UnsupervisedJob(AUTOENCODER[0], lambda model, x: 3.0, X, takes="model").losses(),
            TypeError,
            "loss_fn must return a tensor, got float",
        ),
    ],
)
def test_bad_jobs_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
