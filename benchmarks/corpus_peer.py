"""datatrove's own pipeline over a part of the corpus of benchmarks/corpus.py. Runs in any interpreter that has datatrove.

python benchmarks/corpus_peer.py CORPUS TOKENIZER.json MEGABYTES
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.formatters import PIIFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    corpus, tokenizer, megabytes = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    minhash = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))  # its xxhash path fails with xxhash 4
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def run(*steps: object) -> None:
            LocalPipelineExecutor(
                list(steps), tasks=1, workers=1, skip_completed=False, logging_dir=f"{name}/logs"
            ).run()

        def chain(part: Path, out: Path) -> None:
            run(JsonlReader(str(part)), GopherRepetitionFilter(), GopherQualityFilter(max_non_alpha_words_ratio=0.7), C4QualityFilter(),
                FineWebQualityFilter(), JsonlWriter(f"{out}/clean"))  # fmt: skip
            run(JsonlReader(f"{out}/clean"), MinhashDedupSignature(f"{out}/signatures", minhash))
            buckets = MinhashDedupBuckets(f"{out}/signatures", f"{out}/buckets", config=minhash)
            LocalPipelineExecutor([buckets], tasks=14, workers=1, skip_completed=False).run()
            run(MinhashDedupCluster(f"{out}/buckets", f"{out}/remove", config=minhash))
            run(JsonlReader(f"{out}/clean"), MinhashDedupFilter(f"{out}/remove"), PIIFormatter(),
                DocumentTokenizer(f"{out}/tokens", tokenizer_name_or_path=tokenizer, eos_token="<|eos|>"))  # fmt: skip

        chain(cut(corpus, folder / "warm", 0.1), folder / "out-warm")
        part = cut(corpus, folder / "part", megabytes)
        size = sum(path.stat().st_size for path in part.iterdir())
        started = time.monotonic()
        chain(part, folder / "out")
        seconds = time.monotonic() - started
    print(json.dumps({"mb": size / 1e6, "seconds": seconds, "version": version("datatrove")}))


def cut(corpus: Path, folder: Path, megabytes: float) -> Path:
    """The first lines of the corpus."""
    folder.mkdir()
    size = 0
    with (folder / "part.jsonl").open("w") as out:
        for path in sorted(corpus.iterdir()):
            with path.open() as stream:
                for line in stream:
                    size += out.write(line)
                    if size > megabytes * 1e6:
                        return folder
    return folder


if __name__ == "__main__":
    main()
