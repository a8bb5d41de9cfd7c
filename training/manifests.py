"""Typed handles of the model steps (see `spark_jobs.manifests.Handle`). Pydantic only."""

from __future__ import annotations

from typing import ClassVar

from spark_jobs.manifests import Handle


class Checkpoint(Handle):
    """`data/`: model.safetensors, optimizer.safetensors (the optimizer's state by parameter name), config.json, and
    curve.jsonl: a line a step with loss, learning rate, gradient norm, tokens. num_rows = optimizer steps. Where
    there is an average of weights, ema.safetensors; where steps were not applied, incidents.jsonl. `resumed_from` is
    the address of the champion training went on from, "" from scratch. `num_sequences` were trained on: the first of
    the data stream, without the `jumped` windows of positions [first, end). `exported`: model or ema.
    """

    kind: ClassVar[str] = "checkpoints"
    model_type: str
    num_parameters: int
    num_steps: int
    num_tokens: int
    final_loss: float
    resumed_from: str = ""
    num_sequences: int = 0
    jumped: tuple[tuple[int, int], ...] = ()
    num_incidents: int = 0
    stopped_early: bool = False
    exported: str = "model"


class ModelFolder(Handle):
    """`data/`: a Hugging Face folder (config.json, model.safetensors or model.gguf, tokenizer files) that plain
    `from_pretrained` of the class named in config.json loads. num_rows = number of tensors. `scheme` is dense, adapter, or
    the name of the recipe that compressed it; such a folder also holds report.parquet (a row a layer) and README.md.
    file_format: dense, adapter, compressed-tensors, torchao or gguf. effective_bits: stored bits a weight, of quantised
    layers where there are some.
    """

    kind: ClassVar[str] = "models"
    later: ClassVar[tuple[str, ...]] = ("file_format",)
    scheme: str
    num_parameters: int
    weight_bytes: int
    effective_bits: float
    max_logit_difference: float = 0.0
    file_format: str = "dense"


class Scorecard(Handle):
    """`data/documents.parquet`: one row a held-out document: doc_id, source, language, num_bytes, num_tokens, nats.
    `data/scores.json`: scores with intervals of all documents and of slices, and the bins of confidence.
    num_rows = documents scored. `gzip_bits_per_byte` is gzip -9 over the same texts, joined.
    """

    kind: ClassVar[str] = "scorecards"
    model: str
    bits_per_byte: float
    perplexity: float
    num_tokens: int
    num_bytes: int
    num_invalid: int
    gzip_bits_per_byte: float


class Verdict(Handle):
    """`data/verdict.json`: what the gate decided and the numbers it used; `tests`: each of its tests, a row. decision: promote | keep."""

    kind: ClassVar[str] = "verdicts"
    decision: str
    reason: str
    candidate: str
    champion: str
    difference: float | None = None
    upper_bound: float | None = None
    num_documents: int = 0


class EvaluationReport(Handle):
    """`data/report.html`: scores, tests, slices, changed documents and calibration of a candidate beside the champion, for the
    browser; nothing is loaded from elsewhere. decision: of the verdict. num_rows = tests."""

    kind: ClassVar[str] = "evaluation-reports"
    decision: str


class Evidence(Handle):
    """`data/ROLE.json`: copies of the manifests behind a decision about the champion (candidate, verdict, corpus, scorecards ...),
    `data/verdict/verdict.json`: the numbers, `data/index.json`: address and sha256 of each. decision: of the verdict.
    num_rows = manifests.
    """

    kind: ClassVar[str] = "evidence"
    decision: str


class Release(Handle):
    """`data/release.json`: registered version, alias, evidence. decision: promoted | kept | awaiting (a person)."""

    kind: ClassVar[str] = "releases"
    decision: str
    model_name: str
    model_version: str
    champion: str


class TaskCheckpoint(Checkpoint):
    """A checkpoint whose tensors are those that the method trained, by the names they have beside the base; `base` is the
    base's address. config.json is of the model with its head."""

    task: str
    method: str
    num_trainable: int
    base: str


class TaskScorecard(Handle):
    """`data/predictions.parquet`: id, prediction (JSON list, one entry a window), in order of id; `noisy/predictions.parquet`:
    the same of disturbed rows, where asked for. `data/scores.json`: every
    metric with value, n, n_invalid, interval, signature; the main one first, whose name and value are here too.
    num_rows = rows scored, those that could not be encoded included: they count as wrong.
    """

    kind: ClassVar[str] = "task-scorecards"
    task: str
    model: str
    metric: str
    value: float
    low: float
    high: float


class TaskComparison(Handle):
    """`data/comparison.json`: one model's main metric minus another's on the same rows, with the 95 % interval of paired
    draws. mcnemar_p: two-sided, where the metric is a share of right answers. num_rows = rows compared."""

    kind: ClassVar[str] = "task-comparisons"
    task: str
    metric: str
    difference: float
    low: float
    high: float
    mcnemar_p: float | None = None


class TrialResult(Handle):
    """`data/scores.json` of one training of a search, on the validation split; the model itself is not kept. `failure` says
    why there is no score (a loss that was not finite). model_sha256: of names and bytes of the exported folder's files,
    by which the same training run alone can be compared. num_rows = rows scored.
    """

    kind: ClassVar[str] = "trials"
    metric: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    failure: str = ""
    model_sha256: str = ""


class SearchResult(Handle):
    """`data/trials.json`: every trial with values, scores and what became of it. `data/best.yaml`: the fine-tuning with the
    best trial's values, for `nightmill finetune`. `data/history.svg`, `data/importance.svg`, `data/importance.json`.
    num_rows = trials; best: number of the best one, which scored `value`.
    """

    kind: ClassVar[str] = "searches"
    metric: str
    best: int
    value: float
    num_finished: int
    num_pruned: int
    num_failed: int


class Calibration(Handle):
    """`data/sequences.safetensors`: tokens int32, one sequence behind the other, and lengths int32: texts of `corpus` on which
    layers are measured. num_overlapping: sequences drawn and left out, as they share tokens with a held-out document.
    num_rows = sequences.
    """

    kind: ClassVar[str] = "calibrations"
    corpus: str
    num_sequences: int
    num_tokens: int
    num_overlapping: int


class Measurement(Handle):
    """`data/measurement.json`: speed and memory of a model folder in a fresh process, every repeat. Medians are here too.
    peak_bytes: of the process while it wrote, model and libraries included. joules_per_token: of a written token, where the
    machine tells its energy. num_rows = repeats.
    """

    kind: ClassVar[str] = "measurements"
    model: str
    num_threads: int
    weight_bytes: int
    peak_bytes: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    joules_per_token: float | None = None


class CompressionChoice(Handle):
    """`data/candidates.json`: every candidate with bytes, bits, speed, quality and interval; `data/pareto.svg`: their picture;
    `data/candidates.md`: their table. `best`: name of the recipe that the budget chose, "dense" where none was good enough.
    num_rows = candidates, the dense model included.
    """

    kind: ClassVar[str] = "choices"
    best: str
    reason: str
    minimize: str
    max_loss: float


class WatchReference(Handle):
    """`data/reference.json`, `data/texts.safetensors`: what the corpus of `model` looks like in the bins of traffic, and how the
    model writes; see training/watch/reference.py. num_rows = documents drawn, of num_documents with num_tokens.
    """

    kind: ClassVar[str] = "watch-references"
    model: str
    num_documents: int
    num_tokens: int
    num_scored: int
    num_answers: int


class WatchReport(Handle):
    """`data/report.json`: every check of one window of traffic with value, threshold, p-value, n and outcome; `data/page.html`:
    the same with distributions, for the browser; `data/distributions.svg`. status: ok | alarm | too few. alarms: names of
    checks. It names its model and snapshot in `spec` only: a report keeps nothing else from being removed. num_rows = checks.
    """

    kind: ClassVar[str] = "watch-reports"
    status: str
    start: str
    end: str
    num_requests: int
    alarms: tuple[str, ...] = ()


class BenchmarkAnswers(Handle):
    """`data/answers.parquet`: what a model answered to one shard of a benchmark: id, request (its place in the item), kind,
    log_likelihood, num_tokens, greedy, text, finish, flags; see training/benchmarks/requests.py. Of harness tasks
    `data/items.parquet` and `data/scores.json` as of a BenchmarkScorecard, and no answers. num_rows = requests (items).
    """

    kind: ClassVar[str] = "benchmark-answers"
    model: str
    benchmark: str
    num_items: int


class CorpusOverlap(Handle):
    """`data/overlaps.parquet`: one row an item of a benchmark: benchmark, id, num_runs (of consecutive tokens; 0: too short to
    be judged), num_found (of them in training sequences). num_tokens: of the corpus, looked through. num_rows = items.
    """

    kind: ClassVar[str] = "corpus-overlaps"
    corpus: str
    num_tokens: int
    num_contaminated: int


class BenchmarkScorecard(Handle):
    """`data/items.parquet`: one row an item: benchmark, id, line, prediction, gold, right (null where there is no right or
    wrong), value (the item's part of the main metric, more is better; null: not finite), log_likelihoods, nats, num_tokens, finite,
    tied, flags, contaminated, slices (map). `data/scores.json`: of each benchmark kind, version, main metric, every metric
    with n, n_invalid, interval and signature, slices, counts, contamination. num_rows = items. benchmarks: names.
    """

    kind: ClassVar[str] = "benchmark-scorecards"
    model: str
    benchmarks: tuple[str, ...] = ()
