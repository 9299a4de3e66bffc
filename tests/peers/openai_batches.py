"""The whole life of batches, by OpenAI's own client.

    python openai_batches.py http://127.0.0.1:PORT TOKEN

Needs the package `openai`, and workers behind the server. Exits with 0 if all went as it should.
"""

import json
import sys
import time

from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI

base, token = sys.argv[1:]
client = OpenAI(base_url=f"{base}/v1", api_key=token, timeout=30)
FINAL = ("completed", "failed", "expired", "cancelled")


def lines(n, url="/v1/chat/completions", name="job"):
    body = {"model": "gpt-4.1-mini", "max_tokens": 16}
    for i in range(n):
        prompt = {"messages": [{"role": "user", "content": f"{name} {i}: 元気ですか"}]}
        if url == "/v1/embeddings":
            prompt, body = {"input": f"{name} {i}"}, {"model": "text-embedding-3-small"}
        yield json.dumps({"custom_id": f"{name}-{i}", "method": "POST", "url": url, "body": body | prompt})


def upload(text):
    return client.files.create(file=("input.jsonl", text.encode()), purpose="batch")


def create(text, endpoint="/v1/chat/completions", **more):
    file = upload(text)
    return client.batches.create(input_file_id=file.id, endpoint=endpoint,
                                 completion_window="24h", **more)


def wait(batch):
    until = time.monotonic() + 60
    while batch.status not in FINAL:
        assert time.monotonic() < until, batch
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    return batch


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind} expected")


def whole_cycle():
    text = "\n".join(lines(40)) + "\n"
    file = upload(text)
    assert (file.purpose, file.bytes, file.filename) == ("batch", len(text.encode()), "input.jsonl")
    assert client.files.content(file.id).content == text.encode()
    assert file.id in [f.id for f in client.files.list(purpose="batch")]
    assert client.files.retrieve(file.id).id == file.id
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions",
                                  completion_window="24h", metadata={"team": "tokyo"})
    assert batch.object == "batch" and batch.status in ("validating", "in_progress"), batch
    assert batch.expires_at - batch.created_at == 24 * 3600
    done = wait(batch)
    assert done.status == "completed" and done.metadata == {"team": "tokyo"}, done
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (40, 40, 0), counts
    assert done.error_file_id is None and done.completed_at >= done.in_progress_at
    output = client.files.content(done.output_file_id).text
    answers = [json.loads(line) for line in output.splitlines()]
    assert {a["custom_id"] for a in answers} == {f"job-{i}" for i in range(40)}
    for answer in answers:
        assert answer["response"]["status_code"] == 200 and answer["error"] is None
        assert answer["response"]["body"]["choices"][0]["message"]["content"]
    about = client.files.retrieve(done.output_file_id)
    assert (about.purpose, about.bytes) == ("batch_output", len(output.encode()))
    assert client.files.delete(file.id).deleted
    refused(NotFoundError, lambda: client.files.content(file.id))


def refusals_in_the_error_file():
    good = list(lines(3, name="good"))
    bad = json.loads(good[0]) | {"custom_id": "filtered"}
    bad["body"]["messages"][0]["content"] = "[[content_filter]]"
    done = wait(create("\n".join([*good, json.dumps(bad)])))
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 3, 1)
    errors = client.files.content(done.error_file_id).text.splitlines()
    assert [json.loads(line)["custom_id"] for line in errors] == ["filtered"]
    assert json.loads(errors[0])["response"]["status_code"] == 400


def embeddings():
    done = wait(create("\n".join(lines(5, "/v1/embeddings", "text")), "/v1/embeddings"))
    assert (done.status, done.request_counts.completed) == ("completed", 5), done


def bad_input():
    done = wait(create(next(lines(1)) + "\nno json\n"))
    assert done.status == "failed" and done.failed_at, done
    assert [(e.line, e.code) for e in done.errors.data] == [(2, "invalid_json_line")], done.errors
    wrong = wait(create("\n".join(lines(2, "/v1/embeddings"))))
    assert {e.code for e in wrong.errors.data} == {"mismatched_endpoint"}, wrong.errors
    file = upload(next(lines(1)))
    window = dict(input_file_id=file.id, completion_window="24h")
    refused(BadRequestError, lambda: client.batches.create(endpoint="/v1/images", **window))
    refused(NotFoundError, lambda: client.batches.retrieve("batch_0"))
    stranger = OpenAI(base_url=f"{base}/v1", api_key="sk-wrong-wrong-wrong", max_retries=0)
    refused(AuthenticationError, stranger.batches.list)


def cancelled():
    batch = create("\n".join(lines(2_000, name="long")))
    until = time.monotonic() + 60
    while batch.status == "validating":
        assert time.monotonic() < until, batch
        batch = client.batches.retrieve(batch.id)
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = wait(client.batches.retrieve(batch.id))
    counts = done.request_counts
    assert done.status == "cancelled" and done.cancelling_at <= done.cancelled_at, done
    assert counts.completed < 2_000 and counts.completed + counts.failed == counts.total == 2_000
    refused(BadRequestError, lambda: client.batches.cancel(batch.id))


def pages():
    ids = [batch.id for batch in client.batches.list(limit=2)]
    assert len(ids) == len(set(ids)) >= 5 and ids == sorted(ids, reverse=True), ids
    first = client.batches.list(limit=2)
    assert first.has_more and [b.id for b in first.data] == ids[:2]


for check in (whole_cycle, refusals_in_the_error_file, embeddings, bad_input, cancelled, pages):
    check()
    print(check.__name__, "as it should be", flush=True)
