"""Results as data frames of pandas and polars, and by Arrow's C stream interface."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from gradindex.errors import missing

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow as pa


class Tabular(ABC):
    """A result that is a table; what reads Arrow's C stream interface takes it as it is: ``polars.DataFrame(r)``."""

    @abstractmethod
    def to_arrow(self) -> "pa.Table":
        """Return the table."""

    def to_pandas(self) -> "pandas.DataFrame":
        """Return `to_arrow` as a ``pandas.DataFrame``; needs pandas."""
        try:
            return self.to_arrow().to_pandas(use_threads=False)  # as in Shard.table
        except ImportError as error:
            raise missing("pandas", "pandas", "A data frame of pandas") from error

    def to_polars(self) -> "polars.DataFrame":
        """Return `to_arrow` as a ``polars.DataFrame``; needs polars."""
        try:
            import polars
        except ImportError as error:
            raise missing("polars", "polars", "A data frame of polars") from error
        return polars.DataFrame(self.to_arrow())

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Return the table by Arrow's C stream interface."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)
