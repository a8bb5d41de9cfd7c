"""The augment job: a labelled set in, the same rows and new training rows out.

Memory does not grow with the set: it is read a row group at a time, once for each method, and made rows are sorted on disk.
What is kept of the whole set is 8 bytes a row.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from spark_jobs.errors import DataError
from spark_jobs.manifests import Column, LabelledSet
from spark_jobs.requests import Outcome, Request, send
from training.augment.allowed import Row, changed_columns, check_labels
from training.augment.back_translation import back_translate
from training.augment.change_words import Change, change_rows
from training.augment.made import CONTENT, Made, Result, input_key
from training.augment.mixing import mix_rows
from training.augment.noise import character_change, word_change
from training.augment.sorted_rows import SortedRuns, read_rows, write_merged
from training.augment.synonyms import synonym_change
from training.augment.translator import Translator
from training.augment.wordnet import WordNet, find_wordnet
from training.augment_spec import (
    AnyMethod,
    AugmentJobSpec,
    BackTranslationSpec,
    CharacterNoiseSpec,
    MixingSpec,
    SynonymsSpec,
    WordNoiseSpec,
)
from training.inputs import input_uri
from training.processes import num_threads

COLUMNS = (*CONTENT, "id", "split", "made_by", "made_from")


def run(request: Request) -> Outcome:
    """Input: labelled. `used/sources.json` says which WordNet and which models took part, by digest.

    counts: original, made.<method>, unused.<method>.<reason>, out. A made row that asks the same as any row of the set, of
    whatever split, is unused (equals_original): nothing of the test rows gets into training.

    Raises: RequestError if a method cannot keep the labels of the task; DataError if no row was made, or the set was made
    longer before.
    """
    spec = AugmentJobSpec.model_validate(request.spec)
    labelled = LabelledSet.load(input_uri(request, "labelled"))
    for method in spec.methods:
        changed_columns(labelled.task, method.kind)
        check_labels(method.only_labels, labelled.label_set, method.kind)
    torch.set_num_threads(num_threads())
    paths = labelled.paths()
    schema = common_schema(paths)
    taken = original_keys(paths)
    out = Path(request.out)
    scratch = out / "scratch"
    for folder in (out / "data", out / "used", scratch):
        folder.mkdir(parents=True, exist_ok=True)
    runs, counts, sources = SortedRuns(scratch, schema), Counter[str](), dict[str, str]()
    for method in spec.methods:
        for result in results_of(method, paths, labelled.task, spec.seed, sources):
            reason = keep(result, taken, runs)
            if reason:
                counts[f"unused.{method.kind}.{reason}"] += 1
    counts.update(write_merged(paths, runs.in_order(), schema, out / "data" / "part-00000.parquet"))
    shutil.rmtree(scratch)
    (out / "used" / "sources.json").write_text(json.dumps(sources, indent=1, sort_keys=True) + "\n")
    return _outcome(labelled, counts)


def results_of(method: AnyMethod, paths: list[str], task: str, seed: int, sources: dict[str, str]) -> Iterator[Result]:
    """What the method makes of the training rows. Notes in `sources` what it takes from outside, by digest."""
    read = functools.partial(train_rows, paths)
    match method:
        case MixingSpec():
            return mix_rows(read, task, method, seed)
        case BackTranslationSpec():
            forward = Translator(method.forward, method.forward_prompt, "forward")
            backward = Translator(method.backward, method.backward_prompt, "backward")
            sources |= {"back_translation.forward": forward.digest(), "back_translation.backward": backward.digest()}
            return back_translate(read(), task, method, seed, forward, backward)
        case SynonymsSpec():
            wordnet = WordNet(find_wordnet(method.wordnet))
            sources["synonyms.wordnet"] = wordnet.digest()
            return change_rows(read(), task, method, seed, synonym_change(wordnet, method.strength))
        case CharacterNoiseSpec() | WordNoiseSpec():
            return change_rows(read(), task, method, seed, noise_of(method))


def noise_of(method: CharacterNoiseSpec | WordNoiseSpec) -> Change:
    if isinstance(method, CharacterNoiseSpec):
        return character_change(method.strength)
    return word_change(method.delete, method.swap)


def keep(result: Result, taken: np.ndarray, runs: SortedRuns) -> str:
    """Put a made row into the runs; or the reason why it is not used."""
    if not isinstance(result, Made):
        return result.reason
    key = np.uint64(input_key(result.row))
    place = int(np.searchsorted(taken, key))
    if place < len(taken) and taken[place] == key:
        return "equals_original"
    runs.add(result.row)
    return ""


def train_rows(paths: list[str]) -> Iterator[Row]:
    return (row for row in read_rows(paths) if row["split"] == "train")


def common_schema(paths: list[str]) -> pa.Schema:
    """Raises: DataError if a file lacks a column of labelled sets, or differs from the first."""
    schemas = [pq.read_schema(path).remove_metadata() for path in paths]
    if not schemas:
        raise DataError("the labelled set has no files: run the step that made it again")
    for path, schema in zip(paths, schemas, strict=True):
        missing = sorted(set(COLUMNS) - set(schema.names))
        if missing or schema != schemas[0]:
            raise DataError(f"{path}: columns {missing or schema.names} are not those of a labelled set; make it again")
    return schemas[0]


def original_keys(paths: list[str]) -> np.ndarray:
    """What all rows ask, of every split, as sorted 64-bit hashes.

    Raises: DataError if a row was made by augmentation, or ids do not ascend.
    """
    keys = np.fromiter((input_key(row) for row in _checked(paths)), np.uint64)
    return np.unique(keys)


def _checked(paths: list[str]) -> Iterator[Row]:
    before = ""
    for row in read_rows(paths):
        if row["made_by"]:
            raise DataError(
                f"row {row['id']} was made by {row['made_by']}: this set has been augmented; name all methods in one "
                "augment step on the set it was made from"
            )
        if row["id"] <= before:
            raise DataError(f"row {row['id']} comes behind {before}: a labelled set is sorted by id; make it again")
        before = row["id"]
        yield row


def _outcome(labelled: LabelledSet, counts: Counter[str]) -> Outcome:
    """Raises: DataError if nothing was made."""
    num_made = sum(count for name, count in counts.items() if name.startswith("made."))
    if not num_made:
        raise DataError(
            f"no row was made of {labelled.num_train} training rows ({dict(sorted(counts.items()))}): raise share or strength"
        )
    num_rows = labelled.num_rows + num_made
    facts = dict(sorted(counts.items())) | {"original": labelled.num_rows, "out": num_rows}
    send("event", {"job": "augment"} | facts)
    fields: dict[str, Any] = {
        "task": labelled.task,
        "label_set": labelled.label_set,
        "num_train": labelled.num_train + num_made,
        "num_validation": labelled.num_validation,
        "num_test": labelled.num_test,
    }
    columns = tuple(Column(name=c.name, type=c.type) for c in labelled.columns)
    return Outcome(num_rows=num_rows, format="parquet", columns=columns, counts=facts, fields=fields)
