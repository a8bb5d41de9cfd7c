"""Synonym replacement with WordNet, where the word's part of speech and sense can be told without a model.

The rules, all of them about one word:
1. It is a lemma of three letters or more as it stands, in lower case or at the beginning of the text, and cannot be a form of another lemma.
2. Its part of speech is the one that at least 90 % of its occurrences in WordNet's tagged texts have, or its only one.
3. Its sense is the first, which at least half of those occurrences have, or its only one.
4. A synonym is a single word of that sense whose own first sense, of that part of speech, it is; not slang or archaic,
   and met in the tagged texts with that sense. A verb fits all sentence frames that the word fits.
5. Behind `a` or `an` the synonym begins with a vowel if the word does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from training.augment.change_words import Change
from training.augment.draws import Draws
from training.augment.edits import NewWords
from training.augment.wordnet import PARTS, Synset, WordNet

PART_SHARE, SENSE_SHARE = 0.9, 0.5
VOWELS = frozenset("aeiou")
# Words that WordNet has as nouns or verbs and that sentences use to be built with; and words that turn a meaning round.
KEPT_WORDS = """
    a an the and or but nor if as at by for from in into of off on out over to up with down about than then so no not never none
    nothing nobody neither hardly scarcely barely without after before between behind below beneath beyond near around through
    along across above under since until during like past inside outside within throughout besides opposite upon against toward
    towards among amid despite except per plus unlike versus via worth well please i it he she they we you who what which this
    that these those be am is are was were been being have has had having do does did done can could may might must shall should
    will would need dare one two three four five six seven eight nine ten here there now when where why how all any both each
    every few more most much many some such own same other only very too just even still yet also mr mrs ms dr
"""
KEPT = frozenset(KEPT_WORDS.split())


def synonym_change(wordnet: WordNet, strength: float) -> Change:
    """Each word that has synonyms is replaced by one of them with probability `strength`."""
    synonyms = functools.lru_cache(100_000)(functools.partial(synonyms_of, wordnet))

    def change(words: Sequence[str], free: Sequence[bool], draws: Draws) -> NewWords:
        return [
            _replaced(word, words[place - 1] if place else "", synonyms, strength, draws) if may else word
            for place, (word, may) in enumerate(zip(words, free, strict=True))
        ]

    return change


def _replaced(word: str, before: str, synonyms: Callable[[str], tuple[str, ...]], strength: float, draws: Draws) -> str:
    """The word, or a synonym in its case. A capital inside a text is a name's, for all we know."""
    begins = word.istitle() and not before
    if not (word.islower() or begins):
        return word
    candidates = synonyms(word.lower())
    if before.lower() in ("a", "an"):
        candidates = tuple(c for c in candidates if (c[0] in VOWELS) == (word[0].lower() in VOWELS))
    if not candidates or not draws.happens(strength):
        return word
    synonym = candidates[draws.below(len(candidates))]
    return synonym.capitalize() if begins else synonym


def synonyms_of(wordnet: WordNet, word: str) -> tuple[str, ...]:
    """Words that may stand for the lower-case `word`, in alphabetical order; none where the rules do not decide."""
    if len(word) < 3 or word in KEPT or not word.isascii() or not word.isalpha() or wordnet.is_inflected(word):
        return ()
    part = part_of_speech(wordnet, word)
    if part is None or not _first_sense_is_meant(wordnet, word, part):
        return ()
    place = wordnet.senses(word, part)[0]
    synset = wordnet.synset(part, place)
    if word in synset.marked or word not in synset.words:  # written with capitals: a name, an abbreviation
        return ()
    others = set(synset.words) - {word} - synset.marked - KEPT
    return tuple(sorted(other for other in others if _fits(wordnet, other, word, part, place, synset)))


def _fits(wordnet: WordNet, other: str, word: str, part: str, place: int, synset: Synset) -> bool:
    """Rule 4."""
    return (
        len(other) >= 3
        and other.isalpha()
        and wordnet.senses(other, part)[:1] == (place,)
        and (wordnet.counts(other, part).get(1, 0) > 0 or not wordnet.has_counts)
        and synset.frames[word] <= synset.frames[other]
    )


def part_of_speech(wordnet: WordNet, word: str) -> str | None:
    """Rule 2. None if the word is no lemma, or one of several parts of speech without a clear majority."""
    parts = [part for part in PARTS if wordnet.senses(word, part)]
    if len(parts) <= 1:
        return parts[0] if parts else None
    met = {part: sum(wordnet.counts(word, part).values()) for part in parts}
    best = max(parts, key=met.__getitem__)
    return best if met[best] >= PART_SHARE * sum(met.values()) > 0 else None


def _first_sense_is_meant(wordnet: WordNet, word: str, part: str) -> bool:
    """Rule 3."""
    if len(wordnet.senses(word, part)) == 1:
        return True
    counts = wordnet.counts(word, part)
    return counts.get(1, 0) >= SENSE_SHARE * sum(counts.values()) > 0
