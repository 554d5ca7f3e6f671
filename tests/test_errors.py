import pytest

from gradindex.errors import missing


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("Ray", "gradindex[ray]"), "Ray is not installed. Type: pip install 'gradindex[ray]'"),
        (("A", "a b"), "A is not installed. Type: pip install a b"),
        (("C", "gradindex[c]", "This"), "This needs C, which is not installed. Type: pip install 'gradindex[c]'"),
    ],
)
def test_a_missing_package_says_what_to_type(given, text):
    error = missing(*given)
    assert isinstance(error, ImportError)
    assert str(error) == text
