"""What a student learns from a teacher, beside its labels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from spark_jobs.manifests import Frozen


class HiddenSpec(Frozen):
    """The student's layers are drawn to the teacher's, of which layer i of S meets layer round(i L / S) of L."""

    weight: float = Field(1.0, gt=0, description="Of the distance, beside the loss of the answers.")
    distance: Literal["mse", "cosine"] = Field(
        "mse",
        description="mse: mean over the width. cosine: one minus it. A learned linear map stands between two widths.",
    )


class DistillSpec(Frozen):
    """(1 - alpha) loss + alpha T^2 KL(teacher || student), of every target. arXiv:1503.02531."""

    alpha: float = Field(0.5, ge=0, le=1, description="Share of the teacher; 1: labels only say what is a target.")
    temperature: float = Field(
        2.0, gt=0, le=100, description="T: logits of both are divided by it, for the divergence."
    )
    hidden: HiddenSpec | None = Field(None, description="Also learn the teacher's layers; none: its answers only.")
    teacher: Literal["model", "served"] = Field(
        "model",
        description="model: a folder, which every rank loads. served: an endpoint as OpenAI's, at NIGHTMILL_TEACHER_URL with key "
        "NIGHTMILL_TEACHER_KEY, asked once for every text before training.",
    )
    teacher_name: str = Field("", description="served: what the endpoint calls the model.")
    top_k: int = Field(5, ge=1, le=1000, description="served: likeliest tokens asked for; the rest is one bucket.")

    @model_validator(mode="after")
    def served_gives_probabilities_only(self) -> DistillSpec:
        if self.teacher != "served":
            return self
        if self.temperature != 1.0:
            raise ValueError(
                f"temperature {self.temperature:g} with teacher served: of the {self.top_k} likeliest tokens no other temperature can be "
                "known; set it to 1"
            )
        if self.hidden is not None:
            raise ValueError("hidden with teacher served: an endpoint answers no hidden states; leave it out")
        return self
