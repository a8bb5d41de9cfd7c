"""The official client against a real server: shapes by its types, contents by what plain `generate` and a forward pass give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion

PROMPT = "the mill grinds"
MESSAGES: list[Any] = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "the night?"}]


@pytest.fixture(scope="module")
def client(guarded: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{guarded.server.url}/v1", api_key=guarded.key, max_retries=0) as made:
        yield made


def complete(client: openai.OpenAI, **fields: Any) -> Completion:
    return client.completions.create(
        **({"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0} | fields)
    )


def test_completion_greedy_equals_plain_generate(client: openai.OpenAI, greedy: Any) -> None:
    answer = complete(client)
    assert Completion.model_validate(answer.model_dump()) == answer
    assert answer.choices[0].text == greedy.text(PROMPT, 12)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(greedy.ids(PROMPT))
    assert answer.usage.completion_tokens == 12
    assert answer.model == "tiny"
    assert str(answer.system_fingerprint).startswith("fp_")


def test_prompt_as_tokens_is_taken_as_it_is(client: openai.OpenAI, greedy: Any) -> None:
    ids = greedy.ids(PROMPT)[1:]
    assert complete(client, prompt=ids).choices[0].text == greedy.after(ids, 12)


def test_several_prompts_are_answered_in_their_order(client: openai.OpenAI, greedy: Any) -> None:
    prompts = ["the mill", "new flour.", "a night waits for the 水 wheel", "naïve"]
    answer = complete(client, prompt=prompts, n=2)
    wanted = [greedy.text(prompt, 12) for prompt in prompts for _ in range(2)]
    assert [choice.text for choice in answer.choices] == wanted
    assert [choice.index for choice in answer.choices] == list(range(8))


def test_chat_answer_is_one_object_of_the_clients_type(client: openai.OpenAI, greedy: Any) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=9, temperature=0)
    assert ChatCompletion.model_validate(answer.model_dump()) == answer
    text = "[system] be kind\n[user] the night?\n[assistant] "
    ids = greedy.tokenizer.encode(text, add_special_tokens=False)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == greedy.after(ids, 9)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 9)


def test_streams_joined_are_the_whole_answers(client: openai.OpenAI) -> None:
    whole = complete(client, max_tokens=40, n=2)
    texts = ["", ""]
    finishes: dict[int, str | None] = {}
    pieces = list(complete(client, max_tokens=40, n=2, stream=True, stream_options={"include_usage": True}))
    for piece in pieces:
        for choice in piece.choices:  # type: ignore[attr-defined]
            texts[choice.index] += choice.text
            finishes[choice.index] = choice.finish_reason  # of the last piece
    assert texts == [choice.text for choice in whole.choices]
    assert finishes == {choice.index: choice.finish_reason for choice in whole.choices}
    assert pieces[-1].usage == whole.usage  # type: ignore[attr-defined]
    assert len(pieces) > 4

    chat = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=30, temperature=0)
    stream = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=30, temperature=0, stream=True)
    parts = list(stream)
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == chat.choices[0].message.content
    assert {(part.model, part.system_fingerprint) for part in parts} == {(chat.model, chat.system_fingerprint)}
    assert len({part.id for part in parts}) == 1


def test_logprobs_are_those_of_the_model_before_temperature(client: openai.OpenAI, greedy: Any) -> None:
    for temperature in (0, 1.5):
        choice = complete(client, logprobs=3, temperature=temperature, seed=5).choices[0]
        told = choice.logprobs
        assert told is not None
        assert "".join(told.tokens or []) == choice.text
        assert told.text_offset is not None
        assert told.text_offset[0] == len(PROMPT)
        assert told.top_logprobs is not None
        ids = greedy.ids(PROMPT)
        for token, logprob, top in zip(told.tokens or [], told.token_logprobs or [], told.top_logprobs, strict=True):
            row = greedy.logprobs(ids)[-1]
            best = row.topk(3)
            assert max(top.values()) == pytest.approx(float(best.values[0]), abs=1e-4)
            assert top[token] == logprob
            chosen = int((row - logprob).abs().argmin())
            assert float(row[chosen]) == pytest.approx(logprob, abs=1e-4)
            ids.append(chosen)


def test_chat_logprobs_list_alternatives_likeliest_first(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=6, temperature=0, logprobs=True, top_logprobs=4
    )
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert len(told.content) == 6
    for entry in told.content:
        values = [other.logprob for other in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert values[0] == entry.logprob
        assert bytes(entry.bytes or []).decode() == entry.token


def test_echo_scores_the_prompt_as_a_forward_pass_does(client: openai.OpenAI, greedy: Any) -> None:
    """What an evaluation asks of a served model: log-likelihood of a text that is there already."""
    text = "a night weighs old stones."
    choice = complete(client, prompt=text, max_tokens=0, echo=True, logprobs=1).choices[0]
    told, ids = choice.logprobs, greedy.ids(text)
    rows = greedy.logprobs(ids)
    wanted = [float(rows[place, token]) for place, token in enumerate(ids[1:])]
    assert choice.text == text
    assert told is not None
    assert told.token_logprobs == pytest.approx(wanted, abs=1e-4)
    tokens = complete(client, prompt=ids, max_tokens=1, echo=True, logprobs=1).choices[0].logprobs
    assert tokens is not None
    assert tokens.token_logprobs is not None
    assert tokens.token_logprobs[0] is None  # nothing comes before the first
    assert tokens.token_logprobs[1:-1] == pytest.approx(wanted, abs=1e-4)


def test_long_texts_are_scored_in_chunks_as_in_one_pass(client: openai.OpenAI, greedy: Any) -> None:
    ids = ([7, 30, 44, 9, 80] * 40)[:150]
    told = complete(client, prompt=[1, *ids], max_tokens=0, echo=True, logprobs=0).choices[0].logprobs
    rows = greedy.logprobs([1, *ids])
    assert told is not None
    assert (told.token_logprobs or [])[1:] == pytest.approx([float(rows[i, t]) for i, t in enumerate(ids)], abs=2e-4)
    assert told.top_logprobs is None


def test_seed_draws_the_same_again_whoever_asks_beside_it(client: openai.OpenAI) -> None:
    asked = {"temperature": 1.2, "top_p": 0.9, "seed": 11, "max_tokens": 20}
    alone = complete(client, **asked).choices[0].text
    beside = complete(client, prompt=[PROMPT, "new flour", "rye"], **asked)
    other = complete(client, **(asked | {"seed": 12})).choices[0].text
    assert beside.choices[0].text == alone
    assert other != alone
    three = complete(client, n=3, **asked)
    assert len({choice.text for choice in three.choices}) == 3


def test_stop_string_ends_the_answer_and_is_never_shown(client: openai.OpenAI, greedy: Any) -> None:
    whole = greedy.text(PROMPT, 40)
    stop = whole[11:14]
    wanted = whole[: whole.index(stop)]
    answer = complete(client, max_tokens=40, stop=[stop, "\x00never"])
    assert answer.choices[0].text == wanted
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 40
    pieces = [piece.choices[0].text for piece in complete(client, max_tokens=40, stop=stop, stream=True)]  # type: ignore[attr-defined]
    assert "".join(pieces) == wanted


def test_end_token_ends_the_answer(client: openai.OpenAI, greedy: Any) -> None:
    """A prompt is sought behind which the model ends by itself."""
    for token in range(3, 290):
        new = greedy.continued([1, token], 30)
        if new[-1] == 2 and len(new) > 1:
            break
    else:
        pytest.skip("this model never ends by itself")
    answer = complete(client, prompt=[1, token], max_tokens=30, logprobs=0).choices[0]
    assert answer.finish_reason == "stop"
    assert answer.text == greedy.after([1, token], 30)
    assert answer.logprobs is not None
    assert len(answer.logprobs.tokens or []) == len(new) - 1


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    found = client.models.retrieve("tiny")
    assert isinstance(found, Model)
    assert found.object == "model"


@pytest.mark.parametrize(
    ("fields", "error", "code"),
    [
        ({"model": "other"}, openai.NotFoundError, "model_not_found"),
        ({"max_tokens": 101}, openai.BadRequestError, "invalid_value"),
        ({"prompt": "rye " * 200}, openai.BadRequestError, "context_length_exceeded"),
        ({"prompt": [1, 5000]}, openai.BadRequestError, "invalid_value"),
        ({"temperature": 3}, openai.BadRequestError, "invalid_value"),
        ({"n": 99}, openai.BadRequestError, "invalid_value"),
        ({"logprobs": 50}, openai.BadRequestError, "invalid_value"),
        ({"extra_body": {"best_guess": 1}}, openai.BadRequestError, "unknown_parameter"),
        ({"max_tokens": 0}, openai.BadRequestError, "invalid_value"),
    ],
)
def test_wrong_request_is_the_clients_own_error(
    client: openai.OpenAI, fields: dict[str, Any], error: Any, code: str
) -> None:
    with pytest.raises(error) as caught:
        complete(client, **fields)
    assert caught.value.code == code
    assert caught.value.body["message"]
    assert "Traceback" not in str(caught.value)


def test_conversation_that_the_template_refuses_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="chat template"):
        client.chat.completions.create(model="tiny", messages=[MESSAGES[1], MESSAGES[0]])


def test_model_that_writes_gives_no_vectors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="generation"):
        client.embeddings.create(model="tiny", input="x")
