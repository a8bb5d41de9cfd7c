"""The calibrate job: the corpus's own texts, for the recipes that measure layers on them."""

from __future__ import annotations

from pathlib import Path

from spark_jobs.errors import DataError
from spark_jobs.manifests import Corpus, TokenizerFiles
from spark_jobs.requests import Outcome, Request, send
from training.compress.calibration import draw, save
from training.compress_spec import CalibrationSpec
from training.inputs import input_uri


def run(request: Request) -> Outcome:
    """Inputs: corpus, tokenizer. Raises: what `draw` raises; DataError on another vocabulary."""
    spec = CalibrationSpec.model_validate(request.spec)
    corpus = Corpus.load(input_uri(request, "corpus"))
    tokenizer = TokenizerFiles.load(input_uri(request, "tokenizer"))
    if tokenizer.vocab_size != corpus.vocab_size:
        raise DataError(
            f"corpus {corpus.address} has {corpus.vocab_size} token ids, tokenizer {tokenizer.address} "
            f"{tokenizer.vocab_size}: give the tokenizer that made its shards"
        )
    drawn = draw(corpus, tokenizer, spec)
    data = Path(request.out) / "data"
    data.mkdir(parents=True, exist_ok=True)
    save(data, drawn.sequences)
    fields = {
        "corpus": corpus.address,
        "num_sequences": len(drawn.sequences),
        "num_tokens": sum(len(s) for s in drawn.sequences),
        "num_overlapping": drawn.num_overlapping,
    }
    send("event", {"job": "calibrate"} | fields)
    spare = drawn.num_drawn - drawn.num_overlapping - len(drawn.sequences)
    counts = {
        "in": drawn.num_drawn,
        "out": len(drawn.sequences),
        "reject.overlap": drawn.num_overlapping,
        "reject.spare": spare,
    }
    return Outcome(num_rows=len(drawn.sequences), format="safetensors", counts=counts, fields=fields)
