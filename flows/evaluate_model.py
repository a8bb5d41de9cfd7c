"""Tonight's candidate and the champion on held-out documents, and the verdict. Deployment `evaluate-model`, pool `gpu`."""

from __future__ import annotations

from collections.abc import Mapping

from prefect import flow

from flows.night import FlowReport, Night, open_night
from flows.specs import NightlySpec
from spark_jobs.manifests import Corpus, Handle, TokenizerFiles
from tasks.benchmark_steps import score_benchmarks
from tasks.compress_steps import measure
from tasks.gate_alarm import tell_refusal
from tasks.model_steps import decide, report_evaluation, score_model
from training.manifests import CompressionChoice, ModelFolder, Scorecard


@flow(name="evaluate-model")
def evaluate_model(spec: NightlySpec, night: str = "") -> FlowReport:
    """Score dense model and champion, decide whether the candidate may replace the champion, and report why.

    Args:
        spec: What to do; this flow reads `evaluate`, `compress.recipes`, `compress.measure` and `gate`.
        night: Logical night as YYYY-MM-DD, whose models are there already. Empty: tonight (UTC).
    """
    with open_night(spec, night) as tonight:
        corpus = tonight.find("corpus", Corpus, "prepare-corpus")
        tokenizer = tonight.find("tokenizer", TokenizerFiles, "prepare-corpus")
        name, candidate = tonight.candidate()
        if spec.compress.recipes:  # they were scored to choose among them
            score = tonight.find(f"evaluate-{name}", Scorecard, "compress-model")
        else:
            score = score_model(name, candidate, corpus, tokenizer, spec.evaluate)
        champion = tonight.champion_to_beat(candidate)
        beaten = score_model("champion", champion, corpus, tokenizer, spec.evaluate) if champion else None
        sides = {"candidate": (name, candidate)} | ({"champion": ("champion", champion)} if champion else {})
        answered = benchmarked(tonight, sides, corpus, tokenizer)
        guards = guarded(spec, candidate, champion) if champion else {}
        verdict = decide(score, beaten, spec.gate, answered | guards)
        tell_refusal(tonight.engine, verdict)
        choice = tonight.find("choose", CompressionChoice, "compress-model") if spec.compress.recipes else None
        chosen: dict[str, Handle] = {"choice": choice} if choice is not None else {}
        report_evaluation(score, beaten, verdict, corpus, answered | chosen)
        return tonight.report()


def benchmarked(
    tonight: Night, sides: Mapping[str, tuple[str, ModelFolder]], corpus: Corpus, tokenizer: TokenizerFiles
) -> dict[str, Handle]:
    """Answers of both models to the benchmarks, where some are asked. sides: label and model of each."""
    asked = tonight.spec.evaluate.benchmarks
    if not asked:
        return {}
    return {
        f"{side}_benchmarks": score_benchmarks(label, model, corpus, tokenizer, asked)
        for side, (label, model) in sides.items()
    }


def guarded(spec: NightlySpec, candidate: ModelFolder, champion: ModelFolder) -> dict[str, Handle]:
    """What the guards ask for: sizes, and speeds of both on this machine tonight."""
    sides = {"candidate": candidate, "champion": champion}
    found: dict[str, Handle] = {}
    if spec.gate.guards.max_bytes_ratio is not None:
        found |= {f"{side}_model": model for side, model in sides.items()}
    if spec.gate.guards.max_latency_ratio is not None:
        found |= {
            f"{side}_speed": measure(f"gate-{side}", model, spec.compress.measure) for side, model in sides.items()
        }
    return found
