"""Labelled sets: examples of a fine-tuning task, from any source, checked and split (formats and reasons: docs/labelled.md).

In this order: read; mend what can be mended; check each row by itself; give it a split; take out copies, conflicts, rows whose
group or text a more protected split has, and rows of classes that train has not. Every row that came is kept or a reject.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import reduce

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from spark_jobs import tables
from spark_jobs.errors import DataError
from spark_jobs.job import Job
from spark_jobs.label_spec import LabelJobSpec, LabelSpec
from spark_jobs.labelled_checks import CLASSES, MENDINGS, checked, mended
from spark_jobs.labelled_examples import CONTENT
from spark_jobs.labelled_files import digest_of
from spark_jobs.labelled_leaks import find_leaks, input_of, sign
from spark_jobs.labelled_reading import READ, read_sources
from spark_jobs.requests import Outcome
from spark_jobs.schemas import REJECTS, Schema

RULE_VERSION = "label-1"
PROTECTED = ("test", "validation", "train")  # a split is kept free of what those before it hold
HASH_RANGE = 1 << 32

LABELLED: Schema = {"id": "string", "split": "string", "source": "string"} | CONTENT | {
    "group": "string", "made_by": "string", "made_from": "string",
}  # fmt: skip
# one row, from when it is checked to when it is written
KNOWN: Schema = READ | {"id": "string", "input": "string", "classes": "array<string>", "mended": "array<string>"}


def label(job: Job, spec: LabelJobSpec) -> Outcome:
    """Raises: RequestError if a source has no file; DataError if a file changed since the step was named, a wanted split is
    empty, train has one class only, or more rows are refused than the spec allows.
    """
    _require_same_files(spec)
    known = tables.stage(
        identified(checked(mended(read_sources(job.spark, spec), spec), spec), spec), job.scratch("known")
    )
    _require_few_outside(known, spec)
    placed = tables.stage(place(known, spec), job.scratch("placed"))
    free = tables.stage(without_leaks(job, without_copies(placed, spec), spec), job.scratch("free"))
    balance = class_counts(free)
    unseen = unseen_classes(balance, spec)
    if unseen:
        free = tables.stage(without_unseen(free, unseen), job.scratch("seen"))
        balance = class_counts(free)
    return _written(job, free, balance, spec)


def _require_same_files(spec: LabelJobSpec) -> None:
    for number, digest in spec.digests.items():
        source = spec.sources[int(number)]
        if digest_of(source) != digest:
            raise DataError(
                f"source {source.label!r}: its files changed while the step waited; run it again when they are at rest"
            )


def identified(rows: DataFrame, spec: LabelSpec) -> DataFrame:
    """READ -> KNOWN. id: md5 of the content as JSON, of a ranking with its group; empty for what could not be read."""
    group = F.coalesce("group", "text") if spec.task == "ranking" else F.col("group")
    columns = [*map(F.col, CONTENT), *([group.alias("group")] if spec.task == "ranking" else [])]
    content = F.md5(F.to_json(F.struct(*columns)))
    nothing = reduce(lambda all_null, name: all_null & F.col(name).isNull(), CONTENT, F.lit(True))
    rows = rows.withColumn("group", group)
    rows = rows.withColumns({"id": F.when(nothing, F.lit("")).otherwise(content), "input": input_of(spec.task)})
    return rows.select(*KNOWN, "outside")


def _require_few_outside(known: DataFrame, spec: LabelSpec) -> None:
    """Raises: DataError."""
    if not spec.label_set:
        return
    rows, outside = known.where("id != ''").agg(F.count("*"), F.count(F.when(F.size("outside") > 0, 1))).collect()[0]
    if outside > spec.max_outside_share * rows:
        names = known.select(F.explode("outside").alias("name")).groupBy("name").count()
        worst = names.orderBy(F.desc("count"), "name").limit(5).collect()
        raise DataError(
            f"label: {outside} of {rows} rows have a class outside label_set, more than max_outside_share="
            f"{spec.max_outside_share}: {', '.join(f'{name!r} {count} times' for name, count in worst)}; "
            "add it to label_set, map it in the source's classes, or raise the bound"
        )


def place(known: DataFrame, spec: LabelSpec) -> DataFrame:
    """KNOWN with split, split_rank and the columns of SIGNED. A split that is not given goes by the hash of the group, or of the
    input where there is none, so that rows with one input never part.
    """
    good = known.where("reason is null")
    signed = sign(good.select("id", "input").distinct(), spec)
    together = F.coalesce(F.concat(F.lit("g"), "group"), F.concat(F.lit("i"), "input_key"))
    hashed = F.conv(F.substring(F.md5(F.concat(F.lit(f"{spec.split_seed}/"), together)), 1, 8), 16, 10).cast("long")
    share = hashed / F.lit(HASH_RANGE)
    by_hash = (
        F.when(share < spec.test_share, "test")
        .when(share < spec.test_share + spec.validation_share, "validation")
        .otherwise("train")
    )
    placed = known.join(signed, "id", how="left").withColumn(
        "split", F.coalesce("split", F.when(F.col("reason").isNull(), by_hash))
    )
    rank = F.array_position(F.array(*map(F.lit, PROTECTED)), F.col("split")) - 1
    return placed.withColumn("split_rank", rank.cast("int"))


def _refused(rows: DataFrame, when: Column, reason: str, value: Column, allowed: Column, detail: Column) -> DataFrame:
    """Rows that had no reason and for which `when` is true get this one."""
    fires = F.col("reason").isNull() & F.coalesce(when, F.lit(False))
    given = {"reason": F.lit(reason), "measured": value, "allowed": allowed, "detail": detail}
    flagged = rows.withColumn("fires", fires)
    return flagged.withColumns(
        {name: F.when(F.col("fires"), column).otherwise(F.col(name)) for name, column in given.items()}
    ).drop("fires")


def without_copies(placed: DataFrame, spec: LabelSpec) -> DataFrame:
    """Of rows with one content the first stays: the most protected split, then the first source, file and place. Adds booleans
    `conflict`: another row has the same input and another answer; `crossing`: the one that stays is in another split.
    """
    place_in_file = F.regexp_extract("origin", r"[@#]([0-9]{1,18})$", 1).try_cast("bigint")
    order = ("split_rank", "source_index", F.regexp_replace("origin", r"[@#][0-9]+$", ""), place_in_file, "origin")
    same = Window.partitionBy("id", F.col("reason").isNull()).orderBy(*order)
    first = F.first(F.struct("split", "source", "origin")).over(same)
    ranked = placed.withColumns({"nth": F.row_number().over(same), "first": first})
    is_copy = F.col("nth") > 1
    kept = F.concat(
        F.lit("kept "), "id", F.lit(" of "), "first.split", F.lit(": "), "first.source", F.lit(" "), "first.origin"
    )
    one = F.lit(1.0)
    crossing = F.col("reason").isNull() & is_copy & (F.col("split") != F.col("first.split"))
    rows = _refused(
        ranked.withColumn("crossing", F.coalesce(crossing, F.lit(False))),
        F.col("crossing") & F.lit(spec.leak.action != "report"),
        "leak",
        one,
        F.lit(spec.leak.min_jaccard),
        kept,
    )
    rows = _refused(rows, is_copy, "exact_duplicate", one, one, kept).drop("nth", "first")
    rows = rows.withColumn("conflict", _conflicts(spec))
    if spec.conflicts == "drop":
        others = F.lit("the same input has another answer")
        rows = _refused(
            rows, F.col("conflict"), "conflict", F.lit(None).cast("double"), F.lit(None).cast("double"), others
        )
    return rows


def _conflicts(spec: LabelSpec) -> Column:
    """Only for tasks that have one right answer to an input."""
    answers = {"tagging": "tags", "similarity": "value", "regression": "value"} | dict.fromkeys(CLASSES, "labels")
    if spec.task not in answers:
        return F.lit(False)
    spans = F.to_json("spans") if spec.task == "relation" else F.lit(None).cast("string")
    same = Window.partitionBy("input_key", spans, F.col("reason").isNull())
    answer = F.to_json(F.struct(answers[spec.task]))
    return F.col("reason").isNull() & (F.min(answer).over(same) != F.max(answer).over(same))


def without_leaks(job: Job, rows: DataFrame, spec: LabelSpec) -> DataFrame:
    """Adds `leak` boolean. Raises: DataError if the spec refuses leaks and there is one."""
    none = F.lit(None).cast("double")
    in_group = Window.partitionBy(F.coalesce("group", "id"), F.col("reason").isNull())
    guard = F.min(F.struct("split_rank", "id", "split")).over(in_group)
    rows = rows.withColumn("guard", guard)
    held = F.col("group").isNotNull() & F.col("reason").isNull() & (F.col("guard.split_rank") < F.col("split_rank"))
    rows = rows.withColumn("in_guarded", F.coalesce(held, F.lit(False)))
    group_kept = F.concat(F.lit("the group of "), "guard.id", F.lit(" of "), "guard.split")
    if spec.leak.action == "drop":
        rows = _refused(rows, F.col("in_guarded"), "leak_group", none, none, group_kept)
    rows = tables.stage(rows.drop("guard"), job.scratch("grouped"))
    good = rows.where("reason is null")
    if good.select("split").distinct().count() > 1:
        leaks = find_leaks(job, good, spec.leak)
    else:
        leaks = job.spark.createDataFrame([], "id string, keeper string, jaccard double")
    rows = rows.join(leaks, "id", how="left")
    is_near = F.col("reason").isNull() & F.col("keeper").isNotNull()
    rows = rows.withColumn("leak", is_near | F.col("in_guarded") | F.col("crossing"))
    near_kept = F.concat(F.lit("copies "), "keeper")
    if spec.leak.action == "drop":
        rows = _refused(
            rows, F.col("keeper").isNotNull(), "leak", F.col("jaccard"), F.lit(spec.leak.min_jaccard), near_kept
        )
    elif spec.leak.action == "refuse":
        _require_no_leak(rows)
    return rows.drop("keeper", "jaccard", "in_guarded", "crossing")


def _require_no_leak(rows: DataFrame) -> None:
    found = rows.where("leak").select("id", "split", "source", "origin", "keeper", "jaccard")
    first = found.orderBy("id", "source", "origin").first()
    if first is not None:
        near = first["keeper"] is not None
        why = f"copies {first['keeper']} (Jaccard {first['jaccard']:.2f})" if near else "has content or group of a row"
        raise DataError(
            f"label: {found.count()} rows leak between splits; {first['id']} of {first['split']} ({first['source']} {first['origin']}) "
            f"{why} of a more protected split; mend the splits, or set leak.action=drop"
        )


def class_counts(rows: DataFrame) -> dict[str, dict[str, int]]:
    """split -> class -> rows that have it, of the rows that stay."""
    pairs = rows.where("reason is null").select("split", F.explode("classes").alias("name"))
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for split, name, number in pairs.groupBy("split", "name").count().orderBy("split", "name").collect():
        counts[split][name] = int(number)
    return counts


def unseen_classes(balance: dict[str, dict[str, int]], spec: LabelSpec) -> list[str]:
    """Those of validation and test that train has not. Raises: DataError if the spec refuses them."""
    seen = balance.get("train", {})
    unseen = [
        (name, split, number)
        for split in PROTECTED
        for name, number in balance.get(split, {}).items()
        if seen and name not in seen  # that train is empty is said elsewhere
    ]
    if unseen and spec.unseen == "refuse":
        names = ", ".join(f"{name!r} ({number} rows of {split})" for name, split, number in sorted(unseen)[:5])
        raise DataError(
            f"label: train has no row of class {names}; give train examples of it, leave it out of label_set, or set unseen=drop"
        )
    return sorted({name for name, _, _ in unseen})


def without_unseen(rows: DataFrame, unseen: list[str]) -> DataFrame:
    absent = F.array_intersect("classes", F.array(*map(F.lit, unseen)))
    why = F.concat(F.lit("train has no "), F.array_join(absent, ", "))
    return _refused(rows, F.size(absent) > 0, "class_not_in_train", F.lit(0.0), F.lit(1.0), why)


def _written(job: Job, final: DataFrame, balance: dict[str, dict[str, int]], spec: LabelSpec) -> Outcome:
    facts = {"conflict": F.col("conflict"), "leak": F.col("leak")}
    facts |= {f"mended.{name}": F.array_contains("mended", name) & F.col("reason").isNull() for name in MENDINGS}
    totals = final.groupBy("reason", "split").agg(
        F.count("*").alias("rows"), F.sum(F.octet_length(F.to_json(F.struct(*CONTENT)))).alias("num_bytes"),
        *(F.count_if(fact).alias(name) for name, fact in facts.items()),
    ).collect()  # fmt: skip
    counts = tables.counts_of((row["reason"], row["rows"]) for row in totals)
    sizes = {
        split: sum(row["rows"] for row in totals if row["reason"] is None and row["split"] == split)
        for split in PROTECTED
    }
    names = tuple(sorted(spec.label_set)) or tuple(sorted(balance.get("train", {})))
    _require_usable(final, counts, sizes, balance, spec)
    parts = tables.num_files(sum(row["num_bytes"] for row in totals if row["reason"] is None))
    kept = final.where("reason is null").withColumns(
        {"made_by": F.lit(""), "made_from": F.lit("")}
        | ({"labels": F.lit(None).cast("array<string>")} if spec.task == "tagging" else {})
    )
    place_of = tables.range_of_hex("id", parts)
    tables.write_table(kept.select(*LABELLED), job.out / "data", "parquet", place_of, parts, ("id",), small_groups=True)
    _write_rejects(job, final, counts)
    counts |= {name: found for name in facts if (found := sum(row[name] for row in totals))}
    counts |= balance_counts(balance, names)
    fields = {"task": spec.task, "label_set": names} | {f"num_{split}": sizes[split] for split in reversed(PROTECTED)}
    return Outcome(
        num_rows=counts["out"], format="parquet", columns=tables.columns_of(LABELLED), counts=counts, fields=fields
    )


def _write_rejects(job: Job, final: DataFrame, counts: dict[str, int]) -> None:
    given = {
        "doc_id": F.col("id"), "step": F.lit(job.name), "value": F.col("measured"), "threshold": F.col("allowed"),
        "detail": F.coalesce("detail", F.lit("")), "rule_version": F.lit(RULE_VERSION),
    }  # fmt: skip
    rejects = final.where("reason is not null").drop("value").withColumns(given)
    tables.write_rejects(rejects.select(*REJECTS), counts["in"] - counts["out"], job.out / "rejects")


def _require_usable(
    final: DataFrame,
    counts: dict[str, int],
    sizes: dict[str, int],
    balance: dict[str, dict[str, int]],
    spec: LabelSpec,
) -> None:
    """Raises: DataError."""
    reasons = sorted(((number, name) for name, number in counts.items() if name.startswith("reject.")), reverse=True)
    why = ", ".join(f"{name.removeprefix('reject.')} {number}" for number, name in reasons[:5]) or "none"
    for split in spec.wanted_splits:
        if not sizes[split]:
            raise DataError(
                f"label: no row of {split} is left of {counts['in']} (rejects: {why}); mend the sources, or ask for another split"
            )
    copies = counts.get("reject.exact_duplicate", 0)  # they say nothing against the rest
    rejected = counts["in"] - counts["out"] - copies
    if rejected > spec.max_reject_share * counts["in"]:
        raise DataError(
            f"label: {rejected} of {counts['in']} rows are rejected, more than max_reject_share={spec.max_reject_share}: {why}; "
            "mend the sources, or raise the bound"
        )
    train = final.where("reason is null and split = 'train'")
    _require_something_to_learn(train, sizes["train"], balance.get("train", {}), spec)


def _require_something_to_learn(train: DataFrame, num_train: int, classes: dict[str, int], spec: LabelSpec) -> None:
    """Raises: DataError if all rows of train have one answer."""
    if spec.task in CLASSES and not any(number < num_train for number in classes.values()):
        raise DataError(
            f"label: all {num_train} rows of train have the same classes, {sorted(classes)}; wanted two different answers at least, "
            "or there is nothing to learn; add a source of another class"
        )
    if spec.task == "tagging" and not classes:
        raise DataError(
            f"label: none of the {num_train} rows of train has an entity, only O; look at the tags of the sources"
        )
    if spec.task in ("similarity", "regression", "ranking"):
        low, high = train.agg(F.min("value"), F.max("value")).collect()[0]
        if low == high:
            raise DataError(
                f"label: value is {low} in all {num_train} rows of train, so there is nothing to learn; wanted two different ones at "
                "least; look at the column of the sources"
            )


def balance_counts(balance: dict[str, dict[str, int]], names: tuple[str, ...]) -> dict[str, int]:
    """`label.<split>.<class>`, in characters that tracking servers take; a class whose name is then another's gets its number."""
    safe = [re.sub(r"[^0-9A-Za-z_.-]", "_", name)[:100] for name in names]
    unique = [name if safe.count(name) == 1 else f"{name}_{number}" for number, name in enumerate(safe)]
    return {
        f"label.{split}.{key}": balance[split].get(name, 0)
        for split in PROTECTED
        if split in balance
        for name, key in zip(names, unique, strict=True)
    }
