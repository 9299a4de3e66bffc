"""Drives a running simulator with OpenAI's own client, which nobody here wrote.

    python openai_sdk.py http://127.0.0.1:PORT           every API, on both kinds of client
    python openai_sdk.py http://127.0.0.1:PORT --full    against a quota of zero requests: 429 only

Needs the package `openai`. Exits with 0 if the client understood everything.
"""

import sys

from openai import (
    AuthenticationError,
    AzureOpenAI,
    BadRequestError,
    NotFoundError,
    OpenAI,
    RateLimitError,
)

KEY = "peer-key"
MESSAGES = [{"role": "user", "content": "Wie geht es dir? お元気ですか。"}]


def clients(base):
    """The three ways in: classic Azure paths, Azure's v1, and a plain OpenAI server."""
    common = {"api_key": KEY, "max_retries": 0, "timeout": 10}
    yield "azure", AzureOpenAI(azure_endpoint=base, api_version="2025-04-01-preview", **common)
    yield "azure v1", OpenAI(base_url=f"{base}/openai/v1", **common)
    yield "openai", OpenAI(base_url=f"{base}/v1", **common)


def chat(client):
    whole = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, max_tokens=30)
    assert whole.choices[0].message.content
    assert whole.choices[0].finish_reason in ("stop", "length")
    usage = whole.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens <= 30
    assert usage.prompt_tokens_details.cached_tokens == 0

    stream = client.chat.completions.create(
        model="gpt-4o",
        messages=MESSAGES,
        max_tokens=30,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, last = "", None
    for chunk in stream:
        last = chunk
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == whole.choices[0].message.content, (text, whole)
    assert last.usage == usage, (last, usage)

    two = client.chat.completions.create(model="gpt-4o", messages=MESSAGES, n=2)
    assert [choice.index for choice in two.choices] == [0, 1]

    reasoning = client.chat.completions.create(
        model="o3", messages=MESSAGES, max_completion_tokens=500
    )
    details = reasoning.usage.completion_tokens_details
    assert 0 < details.reasoning_tokens < reasoning.usage.completion_tokens


def responses(client):
    whole = client.responses.create(model="gpt-4o", input="Hello there")
    assert whole.status == "completed", whole
    assert whole.output_text
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens

    events = list(client.responses.create(model="gpt-4o", input="Hello there", stream=True))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == whole.output_text
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage == whole.usage

    with client.responses.stream(model="gpt-4o", input="Hello there") as stream:
        final = stream.get_final_response()
    assert final.output_text == whole.output_text

    short = client.responses.create(model="o3", input="Hello there", max_output_tokens=16)
    if short.status == "incomplete":
        assert short.incomplete_details.reason == "max_output_tokens"


def embeddings(client):
    texts = ["first", "第二"]
    result = client.embeddings.create(model="text-embedding-3-small", input=texts)
    assert [len(item.embedding) for item in result.data] == [1536, 1536]
    floats = client.embeddings.create(
        model="text-embedding-3-small", input=texts, dimensions=64, encoding_format="float"
    )
    vector = floats.data[0].embedding
    assert len(vector) == 64
    assert abs(sum(x * x for x in vector) - 1) < 1e-4
    packed = client.embeddings.create(
        model="text-embedding-3-small", input=texts, dimensions=64, encoding_format="base64"
    )
    assert isinstance(packed.data[0].embedding, str)


def raises(kind, code, call):
    try:
        call()
    except kind as error:
        assert error.code == code, (error.code, error.body)
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


def errors(client):
    def ask(content="hi", model="gpt-4o", **more):
        messages = [{"role": "user", "content": content}]
        client.chat.completions.create(model=model, messages=messages, **more)

    filtered = raises(BadRequestError, "content_filter", lambda: ask("[[content_filter]]"))
    assert filtered.body["innererror"]["code"] == "ResponsibleAIPolicyViolation"
    assert filtered.param == "prompt"
    code = "context_length_exceeded"
    raises(BadRequestError, code, lambda: ask("[[context_length_exceeded]]"))
    raises(BadRequestError, "unsupported_parameter", lambda: ask(model="o3", max_tokens=5))
    raises(NotFoundError, "DeploymentNotFound", lambda: ask(model="no such name!"))
    client = client.with_options(api_key="wrong")
    raises(AuthenticationError, "401", ask)


def full(client):
    def ask():
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)

    headers = raises(RateLimitError, "429", ask).response.headers
    assert int(headers["retry-after-ms"]) > 0
    assert int(headers["retry-after"]) > 0
    assert headers["x-ratelimit-remaining-requests"] == "0"


def main():
    base = sys.argv[1].rstrip("/")
    checks = [full] if "--full" in sys.argv else [chat, responses, embeddings, errors]
    for name, client in clients(base):
        for check in checks:
            check(client)
            print(f"{name}: {check.__name__} ok")


main()
