"""What requests hold and what answers look like; the OpenAPI description is made of these."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from hatllm.config.serve import MOST_ANSWERS, MOST_ITEMS

LONGEST_TITLE = 2000  # characters
LONGEST_NAME = 200  # characters of a run's or a mask's name
MASK = "What if this were the mask: one of the run's masks, or a letter a layer. LLM runs."

Title = Annotated[str, Field(min_length=1, max_length=LONGEST_TITLE)]
SourceId = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Entry = Title | SourceId
Entries = Annotated[list[Entry], Field(max_length=MOST_ITEMS)]
MaskName = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
RunName = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]


class _Strict(BaseModel):
    """A misspelt field is refused, not overlooked."""

    model_config = ConfigDict(extra="forbid")


class _OfRun(_Strict):
    """A request to one of the runs."""

    run: RunName | None = Field(None, description="Name of a run, see /v1/runs; null = the first.")
    history: Annotated[list[Entry], Field(min_length=1, max_length=MOST_ITEMS)] = Field(
        description="Oldest first: titles, or item ids of the source files."
    )


class RecommendRequest(_OfRun):
    """Asks for the best next titles of a history."""

    k: int = Field(10, ge=1, le=MOST_ANSWERS, strict=True, description="Titles to give.")
    exclude_history: bool = Field(
        False, strict=True, description="Whether titles of the history are left out."
    )
    only: Entries | None = Field(
        None, description="Titles or item ids to choose from; null = the whole catalogue."
    )
    block: Entries = Field([], description="Titles or item ids never to give.")
    mask: MaskName | None = Field(None, description=MASK)
    beam_width: int | None = Field(
        None, ge=1, le=MOST_ANSWERS, strict=True,
        description="What if the beam had this width; k titles take one of at least k. LLM runs.",
    )  # fmt: skip
    temperature: float | None = Field(
        None, ge=0.01, le=100.0, allow_inf_nan=False,
        description="What if logits were divided by this. LLM runs.",
    )  # fmt: skip


class ScoreRequest(_OfRun):
    """Asks for the probability of given titles after a history."""

    titles: Annotated[list[Entry], Field(min_length=1, max_length=MOST_ITEMS)] = Field(
        description="Candidates: titles or item ids."
    )


class WhyRequest(_OfRun):
    """Asks how a title came about."""

    title: Entry = Field(description="The title, or its item id.")
    mask: MaskName | None = Field(None, description=MASK)


class ReloadRequest(_Strict):
    """Asks for a run to be loaded anew, or another one in its place."""

    run: RunName | None = Field(None, description="Which run; null = the first.")
    folder: RunName | None = Field(
        None,
        description="Name of a folder beside the run's to load in its place; null = the same.",
    )


class Ranked(BaseModel):
    """One title of a list."""

    rank: int = Field(description="From 1.")
    title: str
    item_id: int = Field(description="The run's own number of the item.")
    source_id: str = Field(description="The source files' id of the item.")
    score: float | None = Field(description="What the list is ordered by.")
    log_prob: float | None = Field(description="Nats; null = impossible under the restrictions.")


class RecommendAnswer(BaseModel):
    """The best titles, best first."""

    run: str
    recommendations: list[Ranked]
    batch_size: int = Field(description="Requests that were decoded together.")
    seconds: float = Field(description="From arrival to answer.")


class ScoreAnswer(BaseModel):
    """The candidates, best first."""

    run: str
    scores: list[Ranked]


class Item(BaseModel):
    """An item of the catalogue."""

    item_id: int
    title: str
    source_id: str


class ItemsAnswer(BaseModel):
    """Items whose title begins with the query, then those that are spelt nearly so."""

    run: str
    items: list[Item]


class RunSummary(BaseModel):
    """One served run."""

    name: str
    label: str
    data: str
    seed: int
    kind: str = Field(description="llm, or the kind of a baseline.")
    model: str
    loss: str | None
    mask: str | None = Field(description="One letter a layer: I intra, F full, C cross.")
    masks: list[str] = Field(description="Presets that it can be asked under; [] = none.")
    decoder: str | None
    num_titles: int
    is_default: bool


class RunsAnswer(BaseModel):
    """All served runs, the default first."""

    runs: list[RunSummary]


class RunAnswer(RunSummary):
    """One run with its settings and numbers."""

    settings: dict[str, object] = Field(description="Groups of its config.yaml.")
    metrics: dict[str, dict[str, float | None]] = Field(description="Split, name, value.")
    patterns: list[str] = Field(description="Mask pattern of each layer, shallow first.")


class User(BaseModel):
    """A test user with what the run ranked."""

    user: str = Field(description="The source files' id.")
    history: list[str] = Field(description="Titles, oldest first.")
    target: str = Field(description="The true next title.")
    target_rank: int | None = Field(description="As evaluated; null = not among the titles found.")


class UsersAnswer(BaseModel):
    """Test users of a run."""

    run: str
    total: int
    users: list[User]


class Choice(BaseModel):
    """One token that may come next."""

    token: str
    prob: float


class Step(Choice):
    """One token of a title."""

    log_prob: float = Field(description="Nats.")
    rank: int = Field(description="Among the legal tokens, from 1.")
    num_choices: int = Field(description="Legal tokens here; 1 = forced.")
    others: list[Choice] = Field(description="The likeliest other tokens.")


class Part(BaseModel):
    """A part of the prompt."""

    name: str = Field(description="prefix, item 1, item 2, ..., response, target or template.")
    title: str | None = Field(description="Of an item.")


class Layer(BaseModel):
    """What one layer saw."""

    pattern: str = Field(description="intra, full or cross.")
    attention: list[float] = Field(
        description="Share of each part: mean over heads and tokens that predict the title."
    )


class WhyAnswer(BaseModel):
    """How a title came about."""

    run: str
    title: str
    log_prob: float = Field(description="Nats, of the title's tokens.")
    path: list[Step]
    parts: list[Part] = Field(description="Of the prompt with the title.")
    layers: list[Layer] = Field(description="Shallow first.")
    masks: dict[str, list[list[float]]] = Field(
        description="Of each pattern: share of token pairs that may attend, a row a querying part."
    )


class ReloadAnswer(BaseModel):
    """What answers from now on."""

    run: str
    seconds: float


class Health(BaseModel):
    """Whether the server lives, or is ready."""

    status: str
