"""Drives provisioned and flex deployments of a running simulator with OpenAI's own client.

    python openai_sdk_tiers.py http://127.0.0.1:PORT

Deployments: `ptu`, whose 1,000 tokens of 100 % drain in a second; `payg` and `rigid`, standard ones
without a flex tier; `flexible`, whose flex tier has room, and `full`, whose has none.

Needs the package `openai`. Exits with 0 if the client understood everything.
"""

import sys
import time

from openai import BadRequestError, OpenAI, RateLimitError

MESSAGES = [{"role": "user", "content": "Wie geht es dir? お元気ですか。"}]


# No correction takes a prompt back, so that this fills the bucket to 400 % for some three seconds.
LONG = [{"role": "user", "content": "word " * 4_000}]


def raw(client, model, messages=MESSAGES, **more):
    return client.chat.completions.with_raw_response.create(model=model, messages=messages, **more)


def provisioned(client):
    patient = client.with_options(max_retries=5)
    impatient = client.with_options(max_retries=0)
    answer = raw(impatient, "ptu", LONG, max_tokens=20)
    assert answer.headers["azure-openai-deployment-utilization"].endswith("%")
    assert "x-ratelimit-limit-tokens" not in answer.headers
    try:
        raw(impatient, "ptu", max_tokens=20)
        raise AssertionError("it was not full")
    except RateLimitError as error:
        wait = int(error.response.headers["retry-after-ms"]) / 1000
        assert 0 < wait < 3.1, wait
    spilled = impatient.with_options(default_headers={"x-ms-spillover-deployment": "payg"})
    answer = raw(spilled, "ptu", max_tokens=20)
    assert answer.headers["x-ms-spillover-from-deployment"] == "ptu"
    assert answer.headers["x-ms-deployment-name"] == "payg"
    assert answer.parse().choices[0].message.content

    # By its own back-off it would come back after half a second and be refused again.
    answer = raw(patient, "ptu", max_tokens=20)
    assert answer.retries_taken == 1, answer.retries_taken


def flex(client):
    client = client.with_options(max_retries=0)

    def ask(model, tier):
        return client.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=20, service_tier=tier
        )

    assert ask("flexible", "flex").service_tier == "flex"
    assert ask("flexible", "default").service_tier == "default"
    response = client.responses.create(model="flexible", input="Hello", service_tier="flex")
    assert response.service_tier == "flex"
    stream = client.chat.completions.create(
        model="flexible", messages=MESSAGES, max_tokens=20, service_tier="flex", stream=True
    )
    assert {chunk.service_tier for chunk in stream if chunk.choices} == {"flex"}
    try:
        ask("full", "flex")
        raise AssertionError("there was room")
    except RateLimitError as error:
        assert error.code == "429", error.code
    try:
        ask("rigid", "flex")
        raise AssertionError("there was a flex tier")
    except BadRequestError as error:
        assert error.param == "service_tier", error.param


def main():
    base = sys.argv[1].rstrip("/")
    client = OpenAI(base_url=f"{base}/openai/v1", api_key="peer-key", timeout=10)
    for check in (provisioned, flex):
        check(client)
        print(f"{check.__name__} ok")


main()
