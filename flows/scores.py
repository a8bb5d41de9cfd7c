"""The metrics of a scorecard, read."""

from __future__ import annotations

import json
from pathlib import Path

from training.manifests import TaskScorecard
from training.metrics.score import Score


def read_scores(card: TaskScorecard) -> dict[str, Score]:
    """All metrics of a scorecard, the main one first."""
    told = json.loads((Path(card.folder()) / "scores.json").read_text())
    return {name: Score.model_validate(score) for name, score in told.items()}
