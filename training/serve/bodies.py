"""Bodies of requests: OpenAI's names, and only those that mean something here.

Fields that only label a request (user, metadata ...) are taken and dropped; any other unknown field is refused, for an answer
that ignores half of what was asked looks like one that does not.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator


def _of_characters(text: str) -> str:
    """Half a surrogate pair is none, and no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as err:
        raise ValueError("not text: a surrogate without its other half") from err
    return text


Text = Annotated[str, AfterValidator(_of_characters)]
Tokens = Annotated[list[Annotated[StrictInt, Field(ge=0, lt=2**31)]], Field(min_length=1)]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1, max_length=200, description="A name of GET /v1/models.")
    user: str | None = Field(None, description="Taken and dropped.")


class Generating(Body):
    """What completions and chat have in common."""

    n: StrictInt = Field(1, ge=1, le=128, description="Answers to the same prompt.")
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False, description="0: the likeliest token, always.")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Draw from the likeliest tokens that together have this share.",
    )
    seed: StrictInt | None = Field(
        None, ge=-(2**63), lt=2**63, description="The same seed draws the same answer again."
    )
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = Field(
        None, description="Text that ends an answer."
    )
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    metadata: dict[str, str] | None = Field(None, description="Taken and dropped.")
    store: StrictBool | None = Field(None, description="Taken and dropped: nothing is stored.")
    service_tier: str | None = Field(None, description="Taken and dropped.")
    frequency_penalty: Literal[0] | None = Field(None, description="Only 0: there are no penalties.")
    presence_penalty: Literal[0] | None = Field(None, description="Only 0: there are no penalties.")

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def usage_wanted(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @model_validator(mode="after")
    def options_go_with_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for stream: true")
        return self


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    include_usage: StrictBool = False
    include_obfuscation: StrictBool = Field(False, description="Taken and dropped.")


class CompletionBody(Generating):
    """POST /v1/completions."""

    prompt: Text | Annotated[list[Text], Field(min_length=1)] | Tokens | Annotated[list[Tokens], Field(min_length=1)]
    max_tokens: StrictInt | None = Field(
        None, ge=0, description="0 only with echo: the prompt is scored, nothing written."
    )
    logprobs: StrictInt | None = Field(None, ge=0, le=100, description="Alternatives told with every token.")
    echo: StrictBool = Field(
        False, description="Begin the answer with the prompt; with logprobs its tokens are scored."
    )
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt

    @model_validator(mode="after")
    def something_is_asked(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens 0 asks for nothing; set echo, or at least 1")
        if self.echo and self.stream:
            raise ValueError("echo does not go with stream")
        return self


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = Field(None, description="Taken and dropped.")

    def for_template(self) -> dict[str, Any]:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatBody(Generating):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: StrictInt | None = Field(None, ge=1)
    max_completion_tokens: StrictInt | None = Field(None, ge=1, description="The newer name of max_tokens.")
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = Field(None, ge=0, le=100)

    @model_validator(mode="after")
    def fields_agree(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs wants logprobs: true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are the same; set one")
        return self


class TextsBody(Body):
    """Texts to read, each alone."""

    input: Text | Annotated[list[Text], Field(min_length=1)] | Tokens | Annotated[list[Tokens], Field(min_length=1)]

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return self.input


class EmbeddingBody(TextsBody):
    """POST /v1/embeddings."""

    encoding_format: Literal["float", "base64"] = "float"


class ClassificationBody(TextsBody):
    """POST /v1/classifications."""


Generating.model_rebuild()
CompletionBody.model_rebuild()
ChatBody.model_rebuild()
