"""Traces through a Service Bus queue, by Microsoft's Python SDK: CONNECTION_STRING QUEUE TRACEPARENT.

Reads the trace of a job that `enqueue` sent off its properties, then sends a job of its own, whose
trace stands where the SDK's own instrumentation puts it and nowhere else.
"""

import json
import sys

from azure.servicebus import ServiceBusClient, ServiceBusMessage

connection_string, queue, traceparent = sys.argv[1:]

with ServiceBusClient.from_connection_string(connection_string) as client:
    with client.get_queue_receiver(queue) as receiver:
        (message,) = receiver.peek_messages(max_message_count=1)
        job = json.loads(b"".join(message.body))
        named = {key.decode(): value.decode() for key, value in message.application_properties.items()}
        expected = job["history"]["traceparent"]
        assert named == {"traceparent": expected, "Diagnostic-Id": expected}, named
    job = {
        "custom_id": "from-python",
        "batch_id": "b",
        "url": "/v1/embeddings",
        "body": {"model": "text-embedding-3-small", "input": "a"},
    }
    properties = {"Diagnostic-Id": traceparent}
    with client.get_queue_sender(queue) as sender:
        sender.send_messages(ServiceBusMessage(json.dumps(job), application_properties=properties))
