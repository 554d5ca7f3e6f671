"""What requests and answers hold."""

from typing import Annotated, Any, Literal

from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from gradindex.defaults import NEIGHBOURS, RERANK
from gradindex.kernels import KernelName

Id = Annotated[int, Field(ge=0, lt=2**63, strict=True, description="Position in the training set.")]
Scalar = StrictBool | StrictInt | StrictFloat | StrictStr | None
Where = Annotated[
    dict[str, Scalar | list[Scalar]] | list[Id] | None,
    Field(
        description='Find only these: ids, or columns with what they must have, {"label": [3, 8]}; null: a missing one.'
    ),
]
K = Annotated[int, Field(ge=1, strict=True, description="Neighbours of each side.")]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ExplainRequest(_Request):
    """Queries, and how to search: give either `inputs`, `ids` or `texts`."""

    inputs: list[Any] | None = Field(None, min_length=1, description="Raw samples, each in the form of a training one.")
    labels: list[Any] | None = Field(
        None, description="Of `inputs`; without them the model's predictions are explained."
    )
    ids: list[Id] | None = Field(None, min_length=1, description="Training samples as queries, with their own labels.")
    texts: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, min_length=1, description="Queries in words, of a job with a tokenizer: all of their tokens have a loss."
    )
    k: K = NEIGHBOURS
    kernel: KernelName | None = Field(
        None, description="grad_cos, or the index's own metric, where none is given; white_… of whitened rows."
    )
    rerank: int = Field(RERANK, ge=0, strict=True, description="Candidates of each side checked exactly; 0: estimates.")
    certify: bool = Field(False, description="Check until the answer is proved; needs an index of Landmark rows.")
    max_checks: int | None = Field(None, ge=1, strict=True, description="With `certify`: give up after so many.")
    recall: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Check until this share of the true neighbours is held on average; see `calibrate`.",
    )
    where: Where = None
    render: bool = Field(False, description="Return what samples look like, too.")


class SearchRequest(_Request):
    """Embeddings to search with."""

    vectors: list[list[float]] = Field(min_length=1, description="Each as wide as the index's rows, of any length.")
    k: K = NEIGHBOURS
    where: Where = None


class Rendered(BaseModel):
    """What a sample looks like."""

    kind: Literal["image", "text", "table"]
    data: str | dict[str, Any] = Field(description="A data: address of a PNG, a text, or names and values.")
    shape: list[int] | None = Field(None, description="Height and width of an image.")


class Sample(BaseModel):
    """What is known of a sample."""

    id: int | None = Field(None, description="Position in the training set; null for a raw input.")
    label: Any = None
    prediction: Any = None
    label_name: str | None = None
    prediction_name: str | None = None
    columns: dict[str, Any] = {}
    rendered: Rendered | None = None


class Neighbour(Sample):
    """A training sample that was found."""

    score: float
    exact: bool = Field(description="Whether the score is that of the real gradients, or estimated from sketches.")


class Item(Sample):
    """A training sample."""

    loss: float | None = None
    norm: float = Field(description="Of its gradient; the square is its self-influence.")
    removed: bool = Field(False, description="Whether it was removed from all answers.")


class Items(BaseModel):
    """Some training samples."""

    total: int
    offset: int
    items: list[Item]


class Answer(BaseModel):
    """The neighbours of one query."""

    query: Sample
    proponents: list[Neighbour] = Field(description="Highest score first.")
    opponents: list[Neighbour] = Field(description="Lowest score first.")
    proved: bool = Field(description="Whether these are the true ones of the unprojected kernel over all rows.")
    checked: int = Field(description="Rows evaluated exactly.")
    expected_recall: float | None = Field(
        None, description="Share of the true neighbours that such answers hold on average, the lower of both sides'."
    )


class Recall(BaseModel):
    """What a wanted recall means for these queries."""

    wanted: float
    calibrated: bool = Field(description="Whether it is promised of queries like these.")
    queries: int | None = Field(None, description="Of the calibration.")
    note: str = Field(description="Why nothing is promised; empty if it is.")


class Timing(BaseModel):
    """Where the time went, in seconds."""

    waited: float = Field(description="Until the worker was free.")
    total: float = Field(description="From the request's arrival to the answer.")
    stages: dict[str, float] = Field(description="Of the whole batch.")
    batch: int = Field(description="Queries that shared the forward pass, those of other requests included.")


class ExplainResponse(BaseModel):
    """One answer a query."""

    kernel: str
    k: int
    rerank: int
    rows: int = Field(description="Of the index.")
    selected: int = Field(description="Of these, rows that could be found.")
    recall: Recall | None = None
    answers: list[Answer]
    timing: Timing


class SearchResponse(BaseModel):
    """Estimated cosines, one list a vector; fewer than k where fewer were found."""

    k: int
    ids: list[list[int]]
    scores: list[list[float]]
    timing: Timing


class KernelWording(BaseModel):
    """A kernel in words."""

    title: str
    finds: str = Field(description="Which question it answers: the rest of a sentence that begins with the title.")
    proponents: str
    opponents: str
    estimated: bool = Field(description="Whether its scores are estimates in any case, so that nothing is checked.")


class IndexInfo(BaseModel):
    """What is served."""

    samples: int
    removed: int
    dim: int
    factory: str
    sketch: dict[str, Any]
    parameters: int = Field(description="Numbers of a gradient.")
    task: str
    backend: str
    columns: list[str]
    classes: list[Any] = Field(description="Distinct labels, where there are at most 1,000.")
    class_names: list[str] | None
    input: dict[str, Any] = Field(description="Form of a raw input: kind, shape, range.")
    metric: str | None = Field(description="Whose rows the index holds; null for gradients.")
    kernels: list[str] = Field(description="What scores may be: kernels of gradients, or the metric alone.")
    kernel: str = Field(description="What they are where no kernel is given.")
    wording: dict[str, KernelWording] = Field(description="Of these kernels, those of gradients in words.")
    certifiable: bool = Field(description="Whether `certify` can prove a cosine.")
    max_k: int
    max_queries: int
    max_body: int
    version: str


class OwnInput(BaseModel):
    """A file as a query."""

    input: Any = Field(None, description="For `inputs` of a question; null for a picture whose pixels say it all.")
    pixels: str | None = Field(None, description="Of the size of the training pictures, in base64 for addresses.")
    note: str = Field("", description="What was done to it, in a sentence.")


class Audit(BaseModel):
    """Measured agreement with the exact kernel; see `gradindex.Audit`."""

    kernel: str = Field(description="Or the metric's name.")
    k: int
    queries: int
    rerank: int
    rows: int
    seed: int
    recall: float = Field(description="Of the final answers.")
    recall_interval: tuple[float, float]
    search_recall: float = Field(description="Of the sketch's own order.")
    search_recall_interval: tuple[float, float]
    rank_correlation: float = Field(description="Spearman's, of sketched and exact values.")
    rank_correlation_interval: tuple[float, float]
    seconds: float
    compared: int = Field(description="Rows compared; fewer than `rows` where time ran out.")
    drawn: str = Field(description="What the queries were.")
    stages: dict[str, dict[str, tuple[float, float, float]]] = Field(description="Each (value, low, high).")
    pairs: list[tuple[float, float]] = Field(description="Some pairs (sketched, exact) of cosines.")
    steps: int = Field(0, description="Exact values that were compared with training steps.")
    steps_error: float = Field(0.0, description="The largest difference of those, as a cosine.")
    coverage: dict[str, Any] | None = Field(
        None, description="Whether a calibrated recall holds, where that was measured."
    )


class Health(BaseModel):
    """Whether the service answers."""

    status: Literal["ok"]
    rows: int


class Ready(Health):
    """Whether lookups are taken, and by which index."""

    stale: str = Field(
        "", description="Why an index that took its place on the disk does not answer; empty if it does."
    )


class Error(BaseModel):
    """Why there is no answer."""

    detail: str


def reply(model: BaseModel, status: int = 200) -> Response:
    """Return a model as JSON, without validating once more what was made here."""
    return Response(model.model_dump_json(), status, media_type="application/json")
