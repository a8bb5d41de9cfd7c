import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.clean import label_batch
from spark_jobs.quality_model import QualityModel
from spark_jobs.quality_rules import RULES, active, first_broken, measure, strip_lines
from spark_jobs.schemas import DOCUMENTS
from spark_jobs.specs import C4Spec, ClassifierSpec, CleanSpec, FineWebSpec, RepetitionSpec

PROSE = " ".join(
    f"The river number {n} runs to the sea, and it has a name that we know from old maps of land {n}." for n in range(9)
)
OPEN = {
    "min_words": 1,
    "max_mean_word_length": 1e9,
    "min_mean_word_length": 0,
    "min_alpha_word_ratio": 0,
    "min_stop_words": 0,
}
ALL = CleanSpec(
    repetition=RepetitionSpec(),
    c4=C4Spec(),
    fineweb=FineWebSpec(),
    classifier=ClassifierSpec(good="g", bad="b"),
    **OPEN,
)
MODEL = QualityModel(np.full(1024, -1, np.float32), 0.5, 2)


def broken(text: str, spec: CleanSpec) -> tuple[str | None, float, float]:
    texts = strip_lines(pa.array([text], pa.string()), spec)
    reason, value, threshold = first_broken(measure(texts, spec), spec, np.array([""], object), np.zeros(1))
    return reason[0], float(value[0]), float(threshold[0])


@pytest.mark.parametrize(
    ("text", "rules", "reason"),
    [
        (PROSE, {}, None),
        ("one two", {"repetition": {}}, None),
        ("ha " * 10, {"repetition": {"max_dup_line_ratio": 1}}, "top_2gram"),
        ("one line here\n" * 3 + PROSE, {"repetition": {}}, "dup_line"),
        ("\n\n".join(["one line here"] * 3 + [PROSE]), {"repetition": {"max_dup_line_ratio": 1}}, "dup_paragraph"),
        (PROSE, {"repetition": {"max_dup_5gram_ratio": 0.01, "max_top_2gram_ratio": 1, "max_top_3gram_ratio": 1, "max_top_4gram_ratio": 1}}, "dup_5gram"),
        ("Enable javascript.\nWe use cookies.", {"c4": {}, "fineweb": {}}, "empty"),
        ("One sentence only that is long enough.", {"c4": {}}, "few_sentences"),
        ("One sentence only that is long enough.", {"c4": {"min_sentences": 1}}, None),
        (PROSE + " Then int main() { it }.", {"c4": {}}, "placeholder"),
        (PROSE + " Then int main() { it }.", {"c4": {"max_placeholders": 1}}, None),
        ("no end of it all that is of any use here or there\n" * 9 + PROSE, {"fineweb": {}}, "few_terminal_lines"),
        ("A short one.\n" * 3 + PROSE, {"fineweb": {"max_dup_line_char_ratio": 0.01}}, "fineweb_dup_line_chars"),
        ("A short one.\n" * 3 + PROSE, {"fineweb": {"max_dup_line_char_ratio": 0.2}}, "short_lines"),
        ("\n".join(f"This is line {n}." for n in range(9)), {"fineweb": {"max_short_line_ratio": 1, "max_line_word_ratio": 0.2}}, "list_like"),
    ],
)  # fmt: skip
def test_rules_name_the_first_one_broken(text: str, rules: dict[str, object], reason: str | None) -> None:
    assert broken(text, CleanSpec.model_validate(OPEN | rules))[0] == reason


def test_a_reject_carries_value_and_threshold() -> None:
    assert broken("ha " * 10, CleanSpec(repetition=RepetitionSpec(), **OPEN)) == ("top_2gram", 1.0, 0.2)


def test_both_pairs_of_c4_thresholds_can_be_had() -> None:
    text = "One two three.\n" + "One two three four five.\n" * 4
    assert broken(text, CleanSpec(c4=C4Spec(), **OPEN))[0] is None
    assert broken(text, CleanSpec(c4=C4Spec(min_words_a_line=5), **OPEN))[0] == "few_sentences"
    assert broken(text, CleanSpec(c4=C4Spec(min_words_a_line=5, min_sentences=3), **OPEN))[0] is None


def test_rules_that_are_off_by_default_are_not_asked() -> None:
    assert {rule.setting.partition(".")[0] for rule, _ in active(CleanSpec())}.isdisjoint(
        {"repetition", "c4", "fineweb", "classifier"}
    )
    assert len(list(active(ALL))) == len(RULES)
    assert len({rule.reason for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("rule", [rule for rule in RULES if "." in rule.setting], ids=lambda rule: rule.reason)
def test_each_threshold_is_read(rule: object) -> None:
    """A threshold of the spec that nothing reads would change nothing."""
    section, name = rule.setting.split(".")  # type: ignore[attr-defined]
    default = getattr(getattr(ALL, section), name)
    changed = ALL.model_copy(update={section: getattr(ALL, section).model_copy(update={name: default + 1})})
    assert [limit for _, limit in active(changed)] != [limit for _, limit in active(ALL)]


@given(st.lists(st.text(st.sampled_from('ab \t\r\n\x0b\x85\u2028e\u0301天.!"{'), max_size=60), max_size=5))
@settings(deadline=None, max_examples=100)
def test_any_text_is_judged_and_every_ratio_is_bounded(texts: list[str]) -> None:
    array = strip_lines(pa.array(texts, pa.string()), ALL)
    measured = measure(array, ALL, MODEL)
    for rule, _ in active(ALL):
        values = measured[rule.measure]
        assert np.isfinite(values).all()
        if rule.measure.endswith("_ratio") and rule.measure not in ("symbol_word_ratio", "line_word_ratio"):
            assert ((values >= 0) & (values <= 1)).all()
    first_broken(measured, ALL, np.full(len(texts), "", object), np.zeros(len(texts)))


def test_label_batch_applies_c4_lines_before_the_rules() -> None:
    row = {"doc_id": "0" * 32, "text": "One two three four.\nMenu\nOne two three.", "source": "s", "origin": "o", "priority": 1,
           "language": "", "language_score": 0.0, "quality_score": None}  # fmt: skip
    batch = pa.RecordBatch.from_pylist([{name: row[name] for name in DOCUMENTS}])
    spec = CleanSpec(c4=C4Spec(min_sentences=2), identify_language=False, **OPEN)
    labelled = label_batch(batch, spec).to_pylist()[0]
    assert (labelled["text"], labelled["reason"]) == ("One two three four.\nOne two three.", None)
