"""Which weights of a model are trained: all, some blocks, or a small part beside them (peft)."""

from __future__ import annotations

import importlib.util
from typing import Any, cast

import peft
import torch
from peft import PeftModel, TaskType
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from spark_jobs.errors import RequestError
from training.finetune_spec import MethodSpec
from training.pretrain.optimizer import depths_of

MERGED = ("lora", "qlora", "adalora", "ia3")  # become part of the base's own weights
HEADS = ("classifier", "score", "qa_outputs")  # what transformers calls a new head: always trained, and saved whole


def quantization_of(method: MethodSpec) -> BitsAndBytesConfig | None:
    """How the base is loaded for qlora: 4-bit NormalFloat, scales quantized too, products in bf16 (arXiv:2305.14314).

    Raises: RequestError on a machine that cannot.
    """
    if method.kind != "qlora":
        return None
    missing = [
        name
        for name, there in (
            ("a CUDA device", torch.cuda.is_available()),
            ("the package bitsandbytes", importlib.util.find_spec("bitsandbytes") is not None),
        )
        if not there
    ]
    if missing:
        raise RequestError(f"method.kind qlora wants {' and '.join(missing)}, not here: use lora, or such a machine")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def apply_method(model: PreTrainedModel, method: MethodSpec, task_type: str, num_steps: int = 1) -> PreTrainedModel:
    """`model` with only the trained weights requiring gradients; wrapped by peft for all methods but full.

    task_type: SEQ_CLS, TOKEN_CLS, QUESTION_ANS, CAUSAL_LM or SEQ_2_SEQ_LM of peft. num_steps: of the training, which
    adalora's pruning schedule needs.
    Raises: RequestError if the model has none of the layers asked for, or is of another family than the method's.
    """
    if method.kind == "full":
        freeze_lowest(model, method.frozen_layers)
        return model
    if isinstance(model, PeftModel) or hasattr(model, "peft_config"):
        raise RequestError(  # wrapping twice would train a second update and lose the first, lerobot#3459
            "the base already carries an adapter: merge it (export) before another is trained on it"
        )
    check_task(method, task_type)
    if method.kind == "prompt" and task_type == "SEQ_CLS" and hasattr(model, "score"):
        raise RequestError(  # it finds it by input ids, and a prompt makes it read embeddings
            f"method.kind prompt does not fit a {model.config.model_type} that classifies: it answers at a text's last token, and "
            "would take padding for it; choose lora, or an encoder as base"
        )
    config = adapter_config(method, model, TaskType(task_type), num_steps)
    try:
        wrapped = peft.get_peft_model(model, config)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise RequestError(
            f"method.kind {method.kind} does not fit a {model.config.model_type}: {str(error).splitlines()[0]}; "
            "name its layers in method.targets, or choose another method"
        ) from error
    return cast("PreTrainedModel", wrapped)


def check_task(method: MethodSpec, task_type: str) -> None:
    """Raises: RequestError if peft cannot train the method for a task of this type."""
    fitting = {"prefix": ("CAUSAL_LM", "SEQ_2_SEQ_LM"), "adapter": ("CAUSAL_LM",)}.get(method.kind, (task_type,))
    if task_type not in fitting:
        raise RequestError(  # peft 0.21 gives prefixes to no classifier of transformers 5.24, and adapters train no new head
            f"method.kind {method.kind} is for models that write text ({', '.join(fitting)}), this task wants {task_type}: "
            "choose lora or prompt"
        )


def freeze_lowest(model: PreTrainedModel, num_blocks: int) -> None:
    """Freeze embeddings and the lowest `num_blocks` blocks; 0 freezes nothing. Raises: RequestError if that is all of them."""
    if num_blocks == 0:
        return
    depths, deepest = depths_of(model)
    if num_blocks >= deepest - 1:
        raise RequestError(f"method.frozen_layers {num_blocks}: the model has {deepest - 1} blocks; leave at least one")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(depths[name] > num_blocks)


def adapter_config(method: MethodSpec, model: PreTrainedModel, task_type: TaskType, num_steps: int) -> peft.PeftConfig:
    targets: Any = list(method.targets) or None
    match method.kind:
        case "lora" | "qlora":
            return peft.LoraConfig(
                task_type=task_type, r=method.rank, lora_alpha=method.alpha, lora_dropout=method.dropout,
                target_modules=targets or linear_layers(model),
            )  # fmt: skip
        case "adalora":
            return peft.AdaLoraConfig(
                task_type=task_type, target_r=method.rank, init_r=round(1.5 * method.rank), lora_alpha=method.alpha,
                lora_dropout=method.dropout, target_modules=targets or linear_layers(model),
                tinit=num_steps // 10, tfinal=num_steps // 2, total_step=num_steps, deltaT=1,
            )  # fmt: skip
        case "ia3":
            # Without targets: keys, values and what leaves the feed-forward layer, by peft's table of families.
            feed_forward = [name for name in targets if not _is_attention(name)] if targets else None
            return peft.IA3Config(task_type=task_type, target_modules=targets, feedforward_modules=feed_forward)
        case "prefix":
            return peft.PrefixTuningConfig(task_type=task_type, num_virtual_tokens=method.num_virtual_tokens)
        case "prompt":
            return peft.PromptTuningConfig(task_type=task_type, num_virtual_tokens=method.num_virtual_tokens)
        case "adapter":
            return peft.AdaptionPromptConfig(
                task_type=task_type, adapter_len=method.num_virtual_tokens,
                adapter_layers=model.config.num_hidden_layers - 1,
            )  # fmt: skip
    raise AssertionError(method.kind)


def linear_layers(model: nn.Module) -> list[str]:
    """Last parts of the names of the linear layers inside blocks, sorted: no head, no pooler, no embedding.

    GPT-2's matrices are Conv1D, which peft knows too.
    """
    found = {
        name.rsplit(".", 1)[-1] if not _needs_parent(name) else ".".join(name.rsplit(".", 2)[-2:])
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Linear4bit", "Conv1D")
        and any(part.isdigit() for part in name.split("."))
    }
    return sorted(found)


def _needs_parent(name: str) -> bool:
    """BERT calls three layers `dense`: attention.output.dense, intermediate.dense, output.dense."""
    return name.endswith(".dense")


def _is_attention(name: str) -> bool:
    return any(
        part in name.lower() for part in ("query", "key", "value", "q_proj", "k_proj", "v_proj", "attn", "q_lin")
    )


def num_trainable(model: nn.Module) -> tuple[int, int]:
    """Parameters that are trained, and all of them."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)
