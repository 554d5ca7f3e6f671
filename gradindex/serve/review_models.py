"""What requests and answers about reviews and maps hold."""

from typing import Annotated, Literal

from fastapi import Path
from pydantic import BaseModel, Field

from gradindex.review.decisions import Decision
from gradindex.review.found import Kind
from gradindex.serve.models import Id, Item, _Request

Reviewer = Annotated[
    str,
    Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$", description="Who decides."),
]


PathId = Annotated[int, Path(ge=0, lt=2**63)]


class Making(BaseModel):
    """How far something is that takes longer than a request may."""

    state: Literal["none", "running", "ready", "failed"]
    stage: str = ""
    step: int = Field(default=0, description="Stages that are done.")
    steps: int = 0
    seconds: float = Field(default=0, description="Since it began.")
    detail: str = Field(default="", description="Why it failed.")


class KindOfLines(BaseModel):
    """A list of the review."""

    kind: Kind
    title: str
    meaning: str = Field(description="Of its scores.")
    total: int
    decided: int
    first_open: int | None = Field(description="Place of the first line that is not decided.")


class ReviewStatus(BaseModel):
    """What there is to look at, and how much of it is decided."""

    making: Making
    read_only: bool
    why_read_only: str = Field(description="In a sentence; empty where decisions are taken.")
    generation: str = Field(description="Of the index: another one has another review.")
    kinds: list[KindOfLines] = []
    left_out: list[str] = []
    precision_from: str = Field(default="", description="How the expected precision was estimated.")
    decided: int = Field(description="Samples with a decision, those of other lists included.")
    next: int = Field(description="The `since` of decisions that come from now on.")
    damaged: int = Field(description="Lines of the file of decisions that cannot be read.")


class BeforeEntry(BaseModel):
    """What stood on a sample until a decision."""

    decision: Decision | None
    label: int | None


class DecisionEntry(BaseModel):
    """A line of the file of decisions; see `gradindex.review.decision_log`."""

    number: int
    time: str
    reviewer: str
    id: int
    decision: Decision | None
    label: int | None
    label_name: str | None = None
    undoes: int | None
    before: BeforeEntry | None = Field(None, description="Null where nothing stood.")
    client: str | None = Field(None, description="The name of the token with which it was sent.")
    request: str | None = Field(None, description="The id of the request.")


class Decided(BaseModel):
    """What stands on a sample."""

    entry: DecisionEntry | None = Field(default=None, description="The line that was written.")
    standing: DecisionEntry | None
    differing: list[DecisionEntry] = Field(description="The last decisions of others that differ.")


class DecideRequest(_Request):
    """A decision on a sample."""

    reviewer: Reviewer
    id: Id
    decision: Decision
    label: int | None = Field(default=None, strict=True, description="The new label; of relabel alone.")


class UndoRequest(_Request):
    """Whose last decision is taken back."""

    reviewer: Reviewer


class ReviewRow(BaseModel):
    """A line of a list."""

    place: int
    id: int | None = Field(description="Null for a pair of classes.")
    score: float
    proposed: int | None
    proposed_name: str | None
    precision: float | None = Field(description="Expected share of wrong labels up to this line: an estimate.")
    note: str
    classes: list[str] = Field(description="Names of the two classes of a pair.")
    sample: Item | None
    neighbours: list[Item]
    decided: Decided | None


class ReviewRows(BaseModel):
    """Some lines of a list."""

    kind: Kind
    total: int
    offset: int
    rows: list[ReviewRow]


class DecisionsPage(BaseModel):
    """Lines of the file of decisions."""

    next: int
    entries: list[DecisionEntry]


class MapStatus(BaseModel):
    """Whether there is a map."""

    making: Making
    generation: str
    points: int = Field(description="How many it has, or will have.")


class MapPoints(BaseModel):
    """A map: a column a field."""

    ids: list[int]
    x: list[float] = Field(description="From 0 to 1.")
    y: list[float]
    labels: list[float | None] | None
    norms: list[float]
    decisions: list[Decision | None]
    of: int = Field(description="How many samples these were drawn from.")
    way: str
    explained: float = Field(description="Share of variance that the principal components have.")
