"""The model as MLflow serves it. This file is copied beside the weights and run from there, so it stands alone: compressed
weights need the library of their format beside transformers, none needs Nightmill.

MLflow runs it as code (no pickle). A model that writes: column `prompt` in, column `text` out, the continuation without the prompt.
One that classifies: column `text` in, columns `label` and `score` (probability of that label) out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd  # at run time: MLflow reads the annotation of `predict`, and warns if it cannot


class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Writing is greedy, so that the same prompt gives the same text."""

    def load_context(self, context: Any) -> None:
        import transformers
        from transformers import AutoConfig, AutoTokenizer

        folder = Path(context.artifacts["model"])
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        kind = getattr(transformers, config.architectures[0])
        self.model = kind.from_pretrained(folder, local_files_only=True, **_how(folder, config)).eval()

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        if type(self.model).__name__.endswith("ForSequenceClassification"):
            return pd.DataFrame([self._classify(text) for text in model_input["text"]], columns=["label", "score"])
        wanted = int((params or {}).get("max_new_tokens", 32))
        return pd.DataFrame({"text": [self._continue(prompt, wanted) for prompt in model_input["prompt"]]})

    def _continue(self, prompt: str, max_new_tokens: int) -> str:
        import torch

        start = [self.model.config.bos_token_id] if self.model.config.bos_token_id is not None else []
        tokens_BT = torch.tensor([start + self.tokenizer.encode(prompt, add_special_tokens=False)])
        if not self.model.can_generate():
            return self._filled(tokens_BT, max_new_tokens)
        with torch.no_grad():
            output_BT = self.model.generate(
                tokens_BT,
                attention_mask=torch.ones_like(tokens_BT),
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
        first = 1 if self.model.config.is_encoder_decoder else tokens_BT.shape[1]
        text: str = self.tokenizer.decode(output_BT[0, first:], skip_special_tokens=True)
        return text

    def _classify(self, text: str) -> tuple[str, float]:
        """The likeliest label and its probability; of a regression, the number it predicts."""
        import torch

        config = self.model.config
        inputs = self.tokenizer(text, return_tensors="pt", truncation=True, max_length=config.max_position_embeddings)
        with torch.no_grad():
            logits_C = self.model(**inputs).logits[0].float()
        if config.problem_type == "regression":
            scores_C = logits_C
        elif config.problem_type == "multi_label_classification":
            scores_C = logits_C.sigmoid()
        else:
            scores_C = logits_C.softmax(-1)
        best = int(scores_C.argmax())
        return config.id2label[best], float(scores_C[best])

    def _filled(self, tokens_BT: Any, max_new_tokens: int) -> str:
        """A masked model fills in one hidden token after another; padding's id is its mask."""
        import torch

        start, config = tokens_BT.shape[1], self.model.config
        with torch.no_grad():
            while tokens_BT.shape[1] < min(start + max_new_tokens, config.max_position_embeddings):
                hidden_BT = torch.cat([tokens_BT, torch.full((1, 1), config.pad_token_id)], dim=1)
                logits_BTV = self.model(input_ids=hidden_BT, attention_mask=torch.ones_like(hidden_BT)).logits
                tokens_BT = torch.cat([tokens_BT, logits_BTV[:, -1:].argmax(-1)], dim=1)
                if int(tokens_BT[0, -1]) == config.eos_token_id:
                    break
        text: str = self.tokenizer.decode(tokens_BT[0, start:], skip_special_tokens=True)
        return text


def _how(folder: Path, config: Any) -> dict[str, Any]:
    """What `from_pretrained` must be told of the folder's format."""
    from transformers import CompressedTensorsConfig

    if (folder / "model.gguf").exists():
        return {"gguf_file": "model.gguf"}
    groups = (getattr(config, "quantization_config", None) or {}).get("config_groups", {})
    if any(not group["weights"]["symmetric"] for group in groups.values()):  # packed zero points load no other way
        return {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    return {}


mlflow.models.set_model(ServedModel())
