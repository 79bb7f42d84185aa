"""What a request is refused with: one shape of JSON for every error."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, Field


@dataclass(eq=False)
class Refusal(Exception):  # noqa: N818  # a refusal is an answer, not a fault of the program
    """Ends a request with a status and one line that names the field."""

    status: int
    code: str  # for programs
    message: str  # for people
    field: str | None = None  # such as history[2]
    nearest: Sequence[str] = ()  # titles near one that is unknown
    retry_after: int | None = None  # seconds

    def body(self) -> "ErrorBody":
        """The JSON of the answer."""
        error = ErrorDetail(
            code=self.code, message=self.message, field=self.field, nearest=list(self.nearest)
        )
        return ErrorBody(error=error)

    def headers(self) -> dict[str, str]:
        """Headers that the status asks for."""
        found = {}
        if self.retry_after is not None:
            found["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        return found


class ErrorDetail(BaseModel):
    """What is wrong with a request."""

    code: str = Field(description="What kind of error, for programs.")
    message: str = Field(description="What is wrong and what would be right.")
    field: str | None = Field(description="The field at fault, such as history[2]; null = none.")
    nearest: list[str] = Field(description="Known titles near one that is unknown.")


class ErrorBody(BaseModel):
    """The one shape of every error."""

    error: ErrorDetail
