"""The two frameworks' unsupervised models."""

import pytest

from tests.influence.unsupervised_models import KITS


@pytest.fixture(params=KITS)
def models(request):
    """One framework's models and naive gradients."""
    pytest.importorskip({"pytorch": "torch"}.get(request.param, request.param))
    return KITS[request.param]
