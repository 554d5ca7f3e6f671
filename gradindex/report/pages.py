"""The templates of reports, with everything escaped that comes from data."""

from functools import cache
from typing import TYPE_CHECKING

from gradindex.errors import missing

if TYPE_CHECKING:
    import jinja2


def require() -> None:
    """Raise an ImportError that says what to type if Jinja2 is not installed."""
    _environment()


@cache
def _environment() -> "jinja2.Environment":
    try:
        import jinja2
    except ImportError as error:
        raise missing("Jinja2", "gradindex[report]", "A report") from error
    return jinja2.Environment(
        loader=jinja2.PackageLoader("gradindex.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: object) -> str:
    """Return a template of this folder, filled in."""
    return _environment().get_template(template).render(**values)
