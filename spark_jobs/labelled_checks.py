"""What is mended in an example, and why one is refused: expressions of Spark over the columns of READ.

Characters are code points, in Spark as in Python. Each check is a row of `checks_of`; the first that fires names the reject.
"""

from __future__ import annotations

from typing import NamedTuple

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_jobs.label_spec import LabelSpec

LETTER = r"(?U)[^\s\p{Cf}\p{Cc}]"  # a text without one is empty: zero-width marks and controls count as space
TAG = r"^(O|[BI]-.+)$"
MENDINGS = ("answer_moved", "tags", "class_removed")  # what `mended` names
ROLES = ("system", "user", "assistant")
SINGLE = ("classification", "relation")
CLASSES = ("classification", "multi_label", "relation")  # tasks whose classes are in `labels`

# A span moves to where its text occurs once; what else it says of its end follows from the text.
MOVED = """transform(array_distinct(spans), s -> case
    when s.label = '' then named_struct('start', s.start, 'end', s.end,
        'label', if(s.start >= 0 and s.end > s.start, substring(pair, s.start + 1, s.end - s.start), ''))
    when s.start >= 0 and substring(pair, s.start + 1, char_length(s.label)) = s.label
        then named_struct('start', s.start, 'end', s.start + char_length(s.label), 'label', s.label)
    when {repair} and instr(pair, s.label) > 0 and instr(substring(pair, instr(pair, s.label) + 1), s.label) = 0
        then named_struct('start', instr(pair, s.label) - 1,
            'end', instr(pair, s.label) - 1 + char_length(s.label), 'label', s.label)
    else s end)"""
MENDED_TAGS = """transform(tags, (t, i) -> case
    when t like 'I-%' and (i = 0 or not (get(tags, i - 1) = t or get(tags, i - 1) = concat('B-', substring(t, 3))))
    then concat('B-', substring(t, 3)) else t end)"""
ENTITY_TYPES = "array_sort(array_distinct(transform(filter(tags, t -> t <> 'O'), t -> substring(t, 3))))"


class Check(NamedTuple):
    """`fires`: null counts as not. `measured` and `allowed`: what the reject says of it, if it measures anything."""

    reason: str
    fires: Column
    measured: Column | None = None
    allowed: Column | None = None
    detail: Column | None = None


def mended(rows: DataFrame, spec: LabelSpec) -> DataFrame:
    """Adds `mended` array<string>: what was repaired; `classes` array<string>: those of the row; `outside`: not in label_set."""
    before = {name: F.col(name) for name in ("spans", "tags")}
    kept = rows.withColumns({f"old_{name}": column for name, column in before.items()})
    if spec.task == "question_answering":
        kept = kept.withColumn("spans", F.expr(MOVED.format(repair=str(spec.misplaced_answers == "repair").lower())))
    if spec.task == "tagging" and spec.invalid_tags == "repair":
        kept = kept.withColumn("tags", F.expr(MENDED_TAGS))
    classes = F.expr(ENTITY_TYPES) if spec.task == "tagging" else F.col("labels")
    kept = kept.withColumn("classes", classes)
    allowed = F.array(*map(F.lit, sorted(spec.label_set)))
    outside = F.array_except("classes", allowed) if spec.label_set else F.array().cast("array<string>")
    kept = kept.withColumn("outside", F.coalesce(outside, F.array().cast("array<string>")))
    if spec.outside == "remove":
        kept = _without_outside(kept, spec)
    repairs = [
        _starts("spans") != _starts("old_spans"),
        _num_changed_tags() > 0,
        F.lit(spec.outside == "remove") & (F.size("outside") > 0),
    ]
    names = [F.when(changed, F.lit(name)) for name, changed in zip(MENDINGS, repairs, strict=True)]
    return kept.withColumn("mended", F.array_compact(F.array(*names))).drop("old_spans", "old_tags")


def _starts(spans: str) -> Column:
    return F.expr(f"transform(array_distinct({spans}), s -> s.start)")


def _num_changed_tags() -> Column:
    """Only those of classes that stay: a tag that became O is counted as a class removed."""
    changed = "zip_with(tags, old_tags, (t, o) -> if(t <> o and t <> 'O', 1, 0))"
    return F.expr(f"coalesce(aggregate({changed}, 0, (sum, one) -> sum + one), 0)")


def _without_outside(rows: DataFrame, spec: LabelSpec) -> DataFrame:
    if spec.task == "tagging":
        rows = rows.withColumn(
            "tags", F.expr("transform(tags, t -> if(array_contains(outside, substring(t, 3)), 'O', t))")
        )
    else:
        rows = rows.withColumn("labels", F.array_except("labels", "outside"))
    return rows.withColumn("classes", F.array_except("classes", "outside"))


def checked(rows: DataFrame, spec: LabelSpec) -> DataFrame:
    """Fills reason, measured, allowed, detail of the examples that fail a check; a reader's own reason stays."""
    none: dict[str, Column] = {
        name: F.lit(None).cast(kind)
        for name, kind in (("measured", "double"), ("allowed", "double"), ("detail", "string"))
    }
    reason = F.when(F.lit(False), F.lit(""))
    columns = {name: F.when(F.lit(False), column) for name, column in none.items()}
    for check in checks_of(spec):
        reason = reason.when(check.fires, check.reason)
        for name, column in columns.items():
            found = getattr(check, name)
            columns[name] = column.when(check.fires, none[name] if found is None else found.cast(columns_type(name)))
    is_example = F.col("reason").isNull()
    labelled = rows.withColumn("found", reason).withColumns(
        {f"found_{name}": column for name, column in columns.items()}
    )
    for name in columns:
        labelled = labelled.withColumn(name, F.when(is_example, F.col(f"found_{name}")).otherwise(F.col(name)))
    labelled = labelled.withColumn("reason", F.coalesce("reason", "found"))
    return labelled.drop("found", *(f"found_{name}" for name in columns))


def columns_type(name: str) -> str:
    return "string" if name == "detail" else "double"


def checks_of(spec: LabelSpec) -> list[Check]:
    """In the order in which they are asked."""
    task = spec.task
    found = list(_inputs(task))
    if task in CLASSES:
        found += _classes(spec)
    if task == "tagging":
        found += _tagging()
    if task in CLASSES or task == "tagging":
        found.append(Check(
            "label_outside", F.lit(spec.outside == "reject") & (F.size("outside") > 0), F.size("outside"), F.lit(0),
            F.concat(F.lit("not in label_set: "), F.array_join("outside", ", ")),
        ))  # fmt: skip
    if task in ("similarity", "regression", "ranking"):
        found.append(Check("no_value", F.col("value").isNull()))
    if task == "relation":
        found.append(_arguments())
    if task == "question_answering":
        found += _answers()
    if task in ("translation", "summarization"):
        found.append(Check("empty_target", is_empty("target")))
    if task == "dialogue":
        found += _dialogue(F.lit(2))
    if task == "preference":
        found += [
            Check("empty_answer", is_empty("chosen") | is_empty("rejected")),
            Check("same_answers", F.col("chosen") == F.col("rejected")),
        ]
    return found


def is_empty(column: str) -> Column:
    return ~F.coalesce(F.col(column).rlike(LETTER), F.lit(False))


def _inputs(task: str) -> list[Check]:
    if task == "tagging":
        blank = F.exists("tokens", lambda token: ~F.coalesce(token.rlike(LETTER), F.lit(False)))
        return [Check("empty_text", F.coalesce(F.size("tokens"), F.lit(0)) <= 0), Check("empty_token", blank)]
    if task == "dialogue":
        return []
    if task == "preference":
        return [Check("empty_text", is_empty("text") & F.col("messages").isNull()), *_dialogue(F.lit(1), ends="user")]
    found = [Check("empty_text", is_empty("text"))]
    if task in ("question_answering", "similarity", "ranking"):
        found.append(Check("empty_pair", is_empty("pair")))
    return found


def _classes(spec: LabelSpec) -> list[Check]:
    # a class that was removed is no missing label, but one class is what a single-label row must have
    found = [Check("no_label", F.col("labels").isNull())]
    if spec.task in SINGLE:
        removed = F.concat(F.lit("not in label_set: "), F.array_join("outside", ", "))
        found += [
            Check(
                "label_outside", (F.size("labels") == 0) & (F.size("outside") > 0), F.size("outside"), F.lit(0), removed
            ),
            Check("no_label", F.size("labels") == 0),
            Check("several_labels", F.size("labels") > 1, F.size("labels"), F.lit(1), F.array_join("labels", ", ")),
        ]
    return found


def _tagging() -> list[Check]:
    bad = F.filter("tags", lambda tag: ~F.coalesce(tag.rlike(TAG), F.lit(False)))
    orphans = F.expr(f"size(filter(zip_with(tags, {MENDED_TAGS}, (t, m) -> t <> m), changed -> changed))")
    sizes = F.coalesce(F.size("tags"), F.lit(0))
    return [
        Check("tags_not_as_tokens", sizes != F.size("tokens"), sizes, F.size("tokens")),
        Check("bad_tag", F.size(bad) > 0, F.size(bad), F.lit(0), F.concat(F.lit("wanted O, B-x or I-x: "), F.array_join(bad, " "))),
        Check("invalid_bio", orphans > 0, orphans, F.lit(0), F.lit("I-x that follows no x")),
    ]  # fmt: skip


def _arguments() -> Check:
    inside = F.expr(
        "size(spans) = 2 and array_join(array_sort(transform(spans, s -> s.label)), ' ') = 'e1 e2' "
        "and forall(spans, s -> s.start >= 0 and s.start < s.end and s.end <= char_length(text)) "
        "and not (get(spans, 0).start = get(spans, 1).start and get(spans, 0).end = get(spans, 1).end)"
    )
    return Check(
        "bad_spans", ~F.coalesce(inside, F.lit(False)), detail=F.lit("wanted two spans e1 and e2 inside the text")
    )


def _answers() -> list[Check]:
    misplaced = F.expr(
        "filter(spans, s -> s.label = '' or s.start < 0 or "
        "substring(pair, s.start + 1, s.end - s.start) <> s.label or s.end - s.start <> char_length(s.label))"
    )
    absent = F.filter(misplaced, lambda span: ~F.contains(F.col("pair"), span["label"]))
    first = F.substring(F.get(misplaced, F.lit(0))["label"], 1, 80)
    return [
        Check("no_answers", F.col("spans").isNull(), detail=F.lit("an unanswerable question has an empty list")),
        Check("answer_not_in_context", F.size(absent) > 0, F.size(absent), F.lit(0), first),
        Check("answer_misplaced", F.size(misplaced) > 0, F.size(misplaced), F.lit(0), first),
    ]


def _dialogue(least: Column, ends: str = "assistant") -> list[Check]:
    """Turns after the system's, if there is one: user and assistant in turn, the last of them `ends`. Null fires nothing."""
    names = ", ".join(f"'{role}'" for role in ROLES)
    roles = "transform(messages, m -> m.role)"
    known = F.expr(f"forall({roles}, r -> coalesce(r in ({names}), false))")
    first = "if(get(messages, 0).role = 'system', 1, 0)"
    in_turn = F.expr(
        f"forall(transform(messages, (m, i) -> case when i < {first} then true "
        f"when (i - {first}) % 2 = 0 then m.role = 'user' else m.role = 'assistant' end), ok -> ok)"
    )
    size = F.expr(f"size(messages) - {first}")
    last = F.try_element_at("messages", F.lit(-1))["role"]
    given = F.col("messages").isNotNull()
    missing = [] if ends == "user" else [Check("empty_text", F.col("messages").isNull() | (F.size("messages") == 0))]
    return [
        *missing,
        Check("bad_messages", given & (F.size("messages") == 0), F.lit(0), least),
        Check("bad_messages", given & ~known, detail=F.lit(f"a role that is none of {', '.join(ROLES)}")),
        Check("bad_messages", given & (size < least), size, least, F.lit("too few turns")),
        Check("bad_messages", given & ~in_turn, detail=F.lit("user and assistant do not take turns")),
        Check("bad_messages", given & (last != ends), detail=F.lit(f"the last turn is not of the {ends}")),
        Check("empty_text", F.exists("messages", lambda turn: ~F.coalesce(turn["content"].rlike(LETTER), F.lit(False))),
              detail=F.lit("a turn without text")),
    ]  # fmt: skip
