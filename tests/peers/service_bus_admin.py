"""Reads and creates queues with Microsoft's own administration client: CONNECTION_STRING."""

import datetime
import sys

from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.core.pipeline.transport import RequestsTransport
from azure.servicebus import ServiceBusClient, ServiceBusMessage
from azure.servicebus.management import ServiceBusAdministrationClient



class Plain(RequestsTransport):
    """The client asks by TLS alone; the broker speaks without."""

    def send(self, request, **kwargs):
        request.url = request.url.replace("https://", "http://", 1)
        return super().send(request, **kwargs)


connection_string = sys.argv[1]
admin = ServiceBusAdministrationClient.from_connection_string(connection_string, transport=Plain())

seen = admin.get_queue("unique")
assert seen.lock_duration == datetime.timedelta(seconds=60), seen.lock_duration
assert seen.max_delivery_count == 3, seen.max_delivery_count
assert seen.requires_duplicate_detection is True
assert admin.get_queue("jobs").requires_duplicate_detection is False
assert admin.get_subscription("news", "all").max_delivery_count == 3
assert admin.get_topic("news").requires_duplicate_detection is False

try:
    admin.get_queue("nothing")
    raise AssertionError("a queue that is not there was found")
except ResourceNotFoundError:
    pass

made = admin.create_queue(
    "made",
    lock_duration=datetime.timedelta(minutes=5),
    max_delivery_count=7,
    requires_duplicate_detection=True,
    dead_lettering_on_message_expiration=True,
)
assert made.lock_duration == datetime.timedelta(minutes=5), made.lock_duration
assert (made.max_delivery_count, made.requires_duplicate_detection) == (7, True)
try:
    admin.create_queue("made")
    raise AssertionError("a queue was created twice")
except (ResourceExistsError, HttpResponseError) as error:
    assert error.status_code == 409, error

with ServiceBusClient.from_connection_string(connection_string) as client:
    with client.get_queue_sender("made") as sender:
        sender.send_messages([ServiceBusMessage(str(n), message_id=str(n)) for n in range(3)])
        due = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
        sender.schedule_messages(ServiceBusMessage("later", message_id="later"), due)
    with client.get_queue_receiver("made", max_wait_time=5) as receiver:
        first, second = receiver.receive_messages(2, max_wait_time=5)
        receiver.dead_letter_message(first, reason="because")
        runtime = admin.get_queue_runtime_properties("made")
        assert runtime.active_message_count == 2, runtime.active_message_count
        assert runtime.dead_letter_message_count == 1
        assert runtime.scheduled_message_count == 1
        receiver.complete_message(second)
