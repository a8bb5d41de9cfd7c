"""Dialogues: a causal model learns what the assistant says, and where it stops, and nothing that others say.

A dialogue is rendered by the tokenizer's chat template, whole, and then cut into tokens. What is learned of it is said by
the template, if it marks answers with {% generation %}. If not, every answer is found by rendering the dialogue up to it
and with it: both must be the beginning of the whole, which is checked. The token that ends a turn belongs to the turn
that it ends, and is its last one learned; white space that a template puts behind it is never written, and not learned.

Shapes: T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from spark_jobs.errors import RequestError
from training.finetune.generation import PROMPT, TextTask, answer_perplexity, check_causal
from training.finetune.task import Example, Prediction, Row, Unusable
from training.finetune_spec import TaskSpec
from training.metrics.bootstrap import Bootstrap
from training.metrics.score import Score
from training.metrics.translation import chrf
from training.pretrain.loss import IGNORED

Message = Mapping[str, str]  # role: system, user or assistant; content
Span = tuple[int, int]

# Of tokenizers that have none. Each turn is its role's name on a line, then what is said; the end token ends an answer.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] | capitalize + ':\n' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
PROBE = tuple({"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate("abcd"))


class Dialogue(TextTask):
    """messages: turns, the last one the assistant's. Loss: cross entropy of the assistant's tokens."""

    def __init__(self, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
        """Raises: RequestError if the base is not causal, or its chat template does not tell what to learn. DataError if its
        tokenizer has no end token."""
        check_causal(spec, config)
        super().__init__(spec, tokenizer)
        if not tokenizer.is_fast:
            raise RequestError(
                "task.kind dialogue: the base's tokenizer is a slow one, which does not tell where its tokens stand in the text; "
                "choose a base with a tokenizer.json"
            )
        self.plain = not tokenizer.chat_template
        if self.plain:
            tokenizer.chat_template = PLAIN_TEMPLATE
        self.end_ids = tuple(sorted({self.end_id, self.end_of_turn()}))

    def end_of_turn(self) -> int:
        """The token after which an answer is over, found on a made-up dialogue.

        Raises: RequestError if there is none, or if nothing or everything of the dialogue would be learned.
        """
        name = f"the chat template of {self.tokenizer.name_or_path or 'the base'}"
        try:
            ids, learned = self.tokens_of(PROBE)
        except TemplateError as error:
            raise RequestError(f"{name} cannot render user, assistant, user, assistant: {error}; mend it") from error
        if not any(learned) or all(learned):
            raise RequestError(
                f"{name} marks {sum(learned)} of {len(ids)} tokens of a dialogue as the assistant's: put "
                "{% generation %} around what it says, and nothing else, or leave it out"
            )
        last = ids[max(place for place, one in enumerate(learned) if one)]
        if last not in self.special_ids:
            raise RequestError(
                f"{name} ends an answer with {self.tokenizer.decode([last])!r}, which is no special token: a model could not tell "
                "its end from its text; put eos_token behind an answer"
            )
        return last

    def encode(self, row: Row) -> list[Example]:
        messages: list[Message] = row["messages"] or []
        if not messages:
            raise Unusable("no_messages")
        if messages[-1]["role"] != "assistant":
            raise Unusable("last_turn_not_assistant")
        if not (messages[-1]["content"] or "").strip():
            raise Unusable("no_target")
        for message in messages:
            self.refuse_special(message["content"] or "")
        try:
            turns, ids, learned = self.fitting(messages)
            prompt = self.prompt_of(turns[:-1])
        except TemplateError as error:  # for example roles that do not take turns
            raise Unusable("refused_by_template") from error
        labels = [number if one else IGNORED for number, one in zip(ids, learned, strict=True)]
        return [Example(row["id"], {"input_ids": ids, "labels": labels, PROMPT: prompt}, len(ids))]

    def fitting(self, messages: Sequence[Message]) -> tuple[Sequence[Message], list[int], list[bool]]:
        """The dialogue without its oldest turns, so that it has at most max_length tokens. A leading system message stays,
        and what follows it begins with a turn of the user's.

        Raises: Unusable if the last question and answer alone are too long, or nothing is learned.
        """
        for turns in shorter_and_shorter(messages):
            ids, learned = self.tokens_of(turns)
            if len(ids) <= self.spec.max_length:
                break
        else:
            raise Unusable("no_target")
        if not any(learned):
            raise Unusable("no_target")
        return turns, ids, learned

    def tokens_of(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Tokens, and which of them are learned. Raises: RequestError, TemplateError."""
        if MARKED.search(str(self.tokenizer.chat_template)):
            return self._marked(messages)
        text = self.rendered(messages)
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, learned = list(found["input_ids"]), [False] * len(found["input_ids"])
        for start, end in self.answers_in(text, messages):
            inside = [i for i, (first, last) in enumerate(found["offset_mapping"]) if start <= first and last <= end]
            steering = [i for i in inside if ids[i] in self.special_ids]
            for i in inside:
                learned[i] = not steering or i <= steering[-1]
        return ids, learned

    def answers_in(self, text: str, messages: Sequence[Message]) -> Iterator[Span]:
        """Where each answer stands, with what the template puts behind it."""
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = self.rendered(messages[:place], True), self.rendered(messages[: place + 1])
            if not (text.startswith(after) and after.startswith(before)):
                raise RequestError(
                    f"the chat template of {self.tokenizer.name_or_path or 'the base'} renders the first {place + 1} turns of a "
                    "dialogue otherwise than within the whole, so its answers cannot be found: put {% generation %} and "
                    "{% endgeneration %} around what the assistant says in it"
                )
            yield len(before), len(after)

    def _marked(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """As the template marks it; and the token behind an answer too, if it is what ends the last one."""
        found = self.tokenizer.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, learned = list(found["input_ids"]), [bool(one) for one in found["assistant_masks"]]
        ends = [i for i, one in enumerate(learned) if one and not (i + 1 < len(ids) and learned[i + 1])]
        if ends and ids[ends[-1]] not in self.special_ids and ends[-1] + 1 < len(ids):
            closing = ids[ends[-1] + 1]
            for i in ends:
                if closing in self.special_ids and i + 1 < len(ids) and ids[i + 1] == closing:
                    learned[i + 1] = True
        return ids, learned

    def rendered(self, messages: Sequence[Message], answer_follows: bool = False) -> str:
        """As a batch of one: a lone dialogue must have a turn, and there is none yet before an answer that opens one."""
        texts = self.tokenizer.apply_chat_template(
            [list(messages)], tokenize=False, add_generation_prompt=answer_follows
        )
        return str(texts[0])

    def prompt_of(self, messages: Sequence[Message]) -> list[int]:
        """Tokens up to where the next answer begins."""
        return list(self.tokenizer(self.rendered(messages, True), add_special_tokens=False)["input_ids"])

    def settle(self, model: PreTrainedModel, folder: Path) -> None:
        """Also the chat template, if it is the plain one: the base's tokenizer has none."""
        super().settle(model, folder)
        if self.plain:
            (folder / "chat_template.jinja").write_text(PLAIN_TEMPLATE)

    def score(self, rows: Sequence[Row], predictions: Mapping[str, list[Prediction]], seed: int) -> dict[str, Score]:
        """perplexity: of all the assistant's tokens, lower is better; intervals by drawing dialogues. chrf: of what is written
        in place of the last answer."""
        bootstrap = Bootstrap(seed=seed)
        written = [next((p["text"] for p in predictions[row["id"]]), None) for row in rows]
        wanted = [[(row["messages"] or [{"content": ""}])[-1]["content"] or ""] for row in rows]
        return {"perplexity": answer_perplexity(predictions, bootstrap), "chrf": chrf(written, wanted, bootstrap)}


def shorter_and_shorter(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """All of it, then without turns up to the second of the user's, the third, and so on."""
    system = list(messages[:1]) if messages[0]["role"] == "system" else []
    turns = list(messages[len(system) :])
    for start, turn in enumerate(turns):
        if start == 0 or turn["role"] == "user":
            yield system + turns[start:]
