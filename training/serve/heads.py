"""What a model that does not write answers to a text: classes with their shares, or a vector."""

from __future__ import annotations

from typing import Any, Literal

import torch

Kind = Literal["generation", "classification", "embedding", "unknown"]


def kind_of(model: Any) -> Kind:
    """By the class the folder was saved from. An encoder without a head, and one that fills in masks, give vectors."""
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        return "classification"
    if model.can_generate():
        return "generation"
    if name.endswith(("Model", "ForMaskedLM", "ForPreTraining")):
        return "embedding"
    return "unknown"


def embed(model: Any, tokens: list[int]) -> list[float]:
    """Mean of the last layer over the tokens, scaled to length 1 (as OpenAI's are)."""
    base = getattr(model, model.base_model_prefix, model)
    tokens_BT = torch.tensor([tokens])
    with torch.inference_mode():
        hidden_TD = base(input_ids=tokens_BT, attention_mask=torch.ones_like(tokens_BT)).last_hidden_state[0]
    vector_D = torch.nn.functional.normalize(hidden_TD.float().mean(0), dim=0)
    values: list[float] = vector_D.tolist()
    return values


def classify(model: Any, tokens: list[int]) -> dict[str, Any]:
    """label, probs in the order of the labels. Several labels may hold at once: each has its own share, and `labels` lists
    those above one half. A number to predict: `value`, in the unit it was learned in."""
    config = model.config
    tokens_BT = torch.tensor([tokens])
    with torch.inference_mode():
        logits_C = model(input_ids=tokens_BT, attention_mask=torch.ones_like(tokens_BT)).logits[0].double()
    if config.problem_type == "regression" or config.num_labels == 1:
        value = float(logits_C[0]) * getattr(config, "value_deviation", 1.0) + getattr(config, "value_mean", 0.0)
        return {"value": value}
    names = [config.id2label[number] for number in range(len(logits_C))]
    several = config.problem_type == "multi_label_classification"
    probs_C = logits_C.sigmoid() if several else logits_C.softmax(-1)
    found: dict[str, Any] = {
        "label": names[int(logits_C.argmax())],
        "probs": probs_C.tolist(),
        "num_classes": len(names),
    }
    if several:
        found["labels"] = [name for name, prob in zip(names, probs_C.tolist(), strict=True) if prob > 0.5]
    return found
