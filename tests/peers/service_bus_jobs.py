"""Exchanges jobs with promptmill through a Service Bus queue, by Microsoft's Python SDK.

Usage: service_bus_jobs.py CONNECTION_STRING QUEUE send|receive|broken|reasons|enqueued

`send` enqueues three jobs in the documented JSON, and one message that is no job. `receive` takes
three jobs that promptmill sent, checks them field by field, and completes them; it then looks for
the message that promptmill has set aside. `broken` sends messages that are no jobs, each in a way of
its own, and `reasons` looks for them among the dead letters. `enqueued` reads the five jobs that the
command `enqueue` wrote.
"""

import json
import sys
import uuid
from datetime import datetime, timedelta, timezone

from azure.servicebus import ServiceBusClient, ServiceBusMessage, ServiceBusSubQueue

WAIT = 10

# Job ids are UUIDv5 of batch and custom id in this namespace.
NAMESPACE = uuid.UUID("7d3c41a6-52f0-5a8e-9b1d-c0ffee000001")


def job_id(batch, custom_id):
    return str(uuid.uuid5(NAMESPACE, f"{batch}\n{custom_id}"))


def chat(text):
    return {"model": "gpt-4.1", "messages": [{"role": "user", "content": text}]}


def send(client, queue):
    minimal = {
        "custom_id": "minimal",
        "batch_id": "from-python",
        "url": "/v1/chat/completions",
        "body": chat("経理の要約"),
    }
    full = {
        "custom_id": "full",
        "batch_id": "from-python",
        "method": "POST",
        "url": "/v1/embeddings",
        "body": {"model": "text-embedding-3-small", "input": ["a", "b"]},
        "position": 7,
        "estimate": {"prompt": 2, "max_output": 0},
        "deadline": "2030-01-01T00:00:00Z",
        "priority": 3,
        "metadata": {"team": "営業"},
    }
    later = dict(minimal, custom_id="later")
    with client.get_queue_sender(queue) as sender:
        batch = sender.create_message_batch()
        for job in (minimal, full):
            batch.add_message(
                ServiceBusMessage(
                    json.dumps(job, ensure_ascii=False),
                    message_id=job_id(job["batch_id"], job["custom_id"]),
                    content_type="application/json",
                )
            )
        sender.send_messages(batch)
        sender.send_messages(ServiceBusMessage("not a job at all"))
        due = datetime.now(timezone.utc) + timedelta(seconds=2)
        sender.schedule_messages(ServiceBusMessage(json.dumps(later)), due)


def receive(client, queue):
    seen = {}
    with client.get_queue_receiver(queue) as receiver:
        while len(seen) < 3:
            messages = receiver.receive_messages(max_message_count=3, max_wait_time=WAIT)
            assert messages, f"only {len(seen)} jobs came"
            for message in messages:
                job = json.loads(b"".join(message.body))
                assert message.message_id == job_id(job["batch_id"], job["custom_id"]), message
                assert message.content_type == "application/json", message.content_type
                assert message.delivery_count == 0, message.delivery_count
                seen[job["custom_id"]] = job
                receiver.complete_message(message)
    assert sorted(seen) == ["0", "1", "2"], seen
    for custom_id, job in seen.items():
        assert job["batch_id"] == "from-rust", job
        assert job["url"] == "/v1/chat/completions", job
        assert job["body"]["messages"][0]["content"] == custom_id, job
        assert job["metadata"] == {"team": "営業"}, job
        assert job["estimate"] == {"prompt": 8, "max_output": 16}, job
    with client.get_queue_receiver(queue, sub_queue=ServiceBusSubQueue.DEAD_LETTER) as dead:
        letters = dead.receive_messages(max_message_count=5, max_wait_time=WAIT)
        assert len(letters) == 1, letters
        assert letters[0].dead_letter_reason == "RetriesExhausted", letters[0]
        assert letters[0].dead_letter_error_description == "8 回の試行", letters[0]


BROKEN = {
    "not-json": "{not json",
    "no-batch": json.dumps({"custom_id": "x", "url": "/v1/embeddings", "body": {}}),
    "no-such-url": json.dumps(
        {"custom_id": "x", "batch_id": "b", "url": "/v1/images", "body": {"model": "m"}}
    ),
    "binary": b"\xff\xfe\x00\x01",
}


def broken(client, queue):
    with client.get_queue_sender(queue) as sender:
        for name, body in BROKEN.items():
            sender.send_messages(ServiceBusMessage(body, message_id=name))


def reasons(client, queue):
    with client.get_queue_receiver(queue, sub_queue=ServiceBusSubQueue.DEAD_LETTER) as dead:
        letters = {}
        while len(letters) < len(BROKEN) + 1:
            more = dead.receive_messages(max_message_count=9, max_wait_time=WAIT)
            assert more, f"only {sorted(letters)} are set aside"
            letters.update((letter.message_id, letter) for letter in more)
    for name, body in BROKEN.items():
        assert letters[name].dead_letter_reason == "NotAJob", letters[name]
        assert letters[name].dead_letter_error_description, letters[name]
        kept = b"".join(letters[name].body)
        assert kept == (body if isinstance(body, bytes) else body.encode()), kept
    assert "batch_id" in letters["no-batch"].dead_letter_error_description
    assert "/v1/images" in letters["no-such-url"].dead_letter_error_description


def enqueued(client, queue):
    seen = {}
    with client.get_queue_receiver(queue) as receiver:
        while len(seen) < 5:
            messages = receiver.receive_messages(max_message_count=5, max_wait_time=WAIT)
            assert messages, f"only {len(seen)} jobs came"
            for message in messages:
                job = json.loads(b"".join(message.body))
                assert message.message_id == job_id("night", job["custom_id"]), message
                seen[job["position"]] = job
                receiver.complete_message(message)
    for position, job in seen.items():
        assert job["custom_id"] == f"job-{position}" and job["batch_id"] == "night", job
        assert (job["url"], job["method"]) == ("/v1/chat/completions", "POST"), job
        assert job["body"]["messages"][0]["content"] == f"prompt {position}", job
        assert job["estimate"]["prompt"] > 0 and job["estimate"]["max_output"] == 32, job


def main():
    connection, queue, what = sys.argv[1:]
    with ServiceBusClient.from_connection_string(connection) as client:
        actions = (send, receive, broken, reasons, enqueued)
        {action.__name__: action for action in actions}[what](client, queue)


if __name__ == "__main__":
    main()
