"""The peer of benchmarks/finetune.py: the Trainer of transformers with peft's LoRA, on the rows and settings of a JSON file.

    python -m benchmarks.finetune_peer SETTINGS        as its users start it: one process, all cores
    torchrun --nproc-per-node 2 -m benchmarks.finetune_peer SETTINGS

SETTINGS: folder (the base), rows (Parquet with text and label), num_labels, max_length, batch (over all processes), steps, warm
(steps not counted), learning_rate, rank, alpha, targets. Prints {"examples_per_s"}, from process 0. Wants accelerate.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import peft
import pyarrow.parquet as pq
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


def main() -> None:
    settings: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
    tokenizer = AutoTokenizer.from_pretrained(settings["folder"])
    rows = pq.read_table(settings["rows"]).to_pylist()
    encoded = [
        dict(tokenizer(row["text"], truncation=True, max_length=settings["max_length"])) | {"labels": row["label"]}
        for row in rows
    ]
    model = AutoModelForSequenceClassification.from_pretrained(settings["folder"], num_labels=settings["num_labels"])
    lora = peft.LoraConfig(
        task_type="SEQ_CLS", r=settings["rank"], lora_alpha=settings["alpha"], target_modules=settings["targets"]
    )
    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    arguments = TrainingArguments(
        output_dir=str(Path(settings["rows"]).parent / "peer"), max_steps=settings["warm"] + settings["steps"],
        per_device_train_batch_size=settings["batch"] // world_size, learning_rate=settings["learning_rate"],
        lr_scheduler_type="linear", weight_decay=0.01, use_cpu=True, ddp_backend="gloo" if world_size > 1 else None,
        save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no", seed=0,
    )  # fmt: skip
    trainer = Trainer(
        model=peft.get_peft_model(model, lora), args=arguments, train_dataset=encoded,
        data_collator=DataCollatorWithPadding(tokenizer), callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    seconds = ends[-1] - ends[settings["warm"] - 1]
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps({"examples_per_s": settings["steps"] * settings["batch"] / seconds}), flush=True)


if __name__ == "__main__":
    main()
