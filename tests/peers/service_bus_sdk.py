"""Drives a Service Bus namespace with Microsoft's Python SDK and checks every answer.

Usage: service_bus_sdk.py CONNECTION_STRING QUEUE UNIQUE_QUEUE SHORT_LOCK_QUEUE TOPIC SUBSCRIPTION

All queues must be empty. QUEUE gives a message up after 3 deliveries, UNIQUE_QUEUE drops
duplicates, SHORT_LOCK_QUEUE locks for 2 seconds. Prints one line per check and exits with 1 at the
first that fails.
"""

import sys
import time
from datetime import datetime, timedelta, timezone
from unittest import mock

from azure.servicebus import (
    ServiceBusClient,
    ServiceBusMessage,
    ServiceBusReceivedMessage,
    ServiceBusReceiveMode,
    ServiceBusSubQueue,
)
from azure.servicebus.exceptions import (
    MessageLockLostError,
    MessageNotFoundError,
    MessageSizeExceededError,
    MessagingEntityNotFoundError,
)

WAIT = 5
DELIVERIES = 3


def body(message):
    return b"".join(message.body)


class Checks:
    def __init__(self, connection, queue, unique, short, topic, subscription):
        # Without retries: whatever the broker refuses is seen at once.
        self.client = ServiceBusClient.from_connection_string(connection, retry_total=0)
        self.queue, self.unique, self.short = queue, unique, short
        self.topic, self.subscription = topic, subscription

        self.links = {}

    def link(self, open_link, *names, **options):
        """Links are kept: to open and close one takes this SDK a second."""
        key = (open_link.__name__, names, tuple(options.items()))
        if key not in self.links:
            self.links[key] = open_link(*names, **options).__enter__()
        return self.links[key]

    def sender(self, queue):
        return self.link(self.client.get_queue_sender, queue)

    def receiver(self, queue, **options):
        return self.link(self.client.get_queue_receiver, queue, **options)

    def dead_letters(self):
        return self.receiver(self.queue, sub_queue=ServiceBusSubQueue.DEAD_LETTER)

    def send(self, queue, *messages):
        self.sender(queue).send_messages(list(messages))

    def one(self, receiver):
        messages = receiver.receive_messages(max_message_count=1, max_wait_time=WAIT)
        assert len(messages) == 1, f"one message expected, got {len(messages)}"
        return messages[0]

    def empty(self, queue, **options):
        left = self.receiver(queue, **options).peek_messages(max_message_count=5)
        assert not left, f"{queue} should be empty, holds {[body(m) for m in left]}"

    def send_and_complete(self):
        sent = ServiceBusMessage(
            b"hello",
            message_id="m-1",
            subject="greeting",
            correlation_id="c-1",
            content_type="text/plain",
            application_properties={"batch": "b1", "count": 3},
        )
        sender = self.sender(self.queue)
        sender.send_messages(sent)
        receiver = self.receiver(self.queue)
        message = self.one(receiver)
        assert body(message) == b"hello"
        assert (message.message_id, message.subject) == ("m-1", "greeting")
        assert (message.correlation_id, message.content_type) == ("c-1", "text/plain")
        assert message.application_properties == {b"batch": b"b1", b"count": 3}
        assert message.sequence_number > 0 and message.delivery_count == 0
        age = datetime.now(timezone.utc) - message.enqueued_time_utc
        assert abs(age) < timedelta(seconds=10), age
        assert message.locked_until_utc > datetime.now(timezone.utc)
        receiver.complete_message(message)
        self.empty(self.queue)

    def batch(self):
        sender = self.sender(self.queue)
        batch = sender.create_message_batch()
        for number in range(250):
            batch.add_message(ServiceBusMessage(f"job {number}", message_id=f"b-{number}"))
        sender.send_messages(batch)
        seen = []
        # This one is closed at once: it would take the next check's messages in advance.
        with self.client.get_queue_receiver(self.queue, prefetch_count=50) as receiver:
            while len(seen) < 250:
                messages = receiver.receive_messages(max_message_count=100, max_wait_time=WAIT)
                assert messages, f"only {len(seen)} of 250 came"
                for message in messages:
                    seen.append(body(message).decode())
                    receiver.complete_message(message)
        assert seen == [f"job {number}" for number in range(250)], "order kept, none twice"
        self.empty(self.queue)

    def abandon(self):
        self.send(self.queue, ServiceBusMessage("again"))
        receiver = self.receiver(self.queue)
        for delivery in range(DELIVERIES):
            message = self.one(receiver)
            assert message.delivery_count == delivery, message.delivery_count
            receiver.abandon_message(message)
        self.empty(self.queue)
        receiver = self.dead_letters()
        message = self.one(receiver)
        assert message.dead_letter_reason == "MaxDeliveryCountExceeded"
        assert message.delivery_count == DELIVERIES
        receiver.complete_message(message)

    def dead_letter(self):
        self.send(self.queue, ServiceBusMessage("bad", application_properties={"kept": "yes"}))
        receiver = self.receiver(self.queue)
        message = self.one(receiver)
        receiver.dead_letter_message(message, reason="NoGood", error_description="see log")
        self.empty(self.queue)
        receiver = self.dead_letters()
        message = self.one(receiver)
        assert body(message) == b"bad"
        assert message.dead_letter_reason == "NoGood"
        assert message.dead_letter_error_description == "see log"
        assert message.dead_letter_source == self.queue
        assert message.application_properties[b"kept"] == b"yes"
        receiver.complete_message(message)
        self.empty(self.queue, sub_queue=ServiceBusSubQueue.DEAD_LETTER)

    def renew(self):
        self.send(self.short, ServiceBusMessage("slow"))
        receiver = self.receiver(self.short)
        message = self.one(receiver)
        before = message.locked_until_utc
        time.sleep(1.2)
        assert receiver.renew_message_lock(message) > before
        time.sleep(1.2)
        receiver.complete_message(message)
        self.empty(self.short)

    def lock_lost(self):
        self.send(self.short, ServiceBusMessage("too slow"))
        receiver = self.receiver(self.short)
        message = self.one(receiver)
        time.sleep(2.5)
        # The SDK would refuse by its own clock: the broker's answer is what counts here.
        with mock.patch.object(ServiceBusReceivedMessage, "_lock_expired", new=False):
            for settle in (receiver.renew_message_lock, receiver.complete_message):
                try:
                    settle(message)
                    raise AssertionError(f"{settle.__name__}: a lost lock must be reported")
                except MessageLockLostError:
                    pass
        message = self.one(receiver)
        assert message.delivery_count == 1
        receiver.complete_message(message)

    def peek(self):
        self.send(self.queue, *[ServiceBusMessage(f"p{number}") for number in range(5)])
        receiver = self.receiver(self.queue)
        peeked = receiver.peek_messages(max_message_count=3)
        assert [body(m) for m in peeked] == [b"p0", b"p1", b"p2"]
        after = peeked[-1].sequence_number + 1
        rest = receiver.peek_messages(max_message_count=10, sequence_number=after)
        assert [body(m) for m in rest] == [b"p3", b"p4"]
        mode = ServiceBusReceiveMode.RECEIVE_AND_DELETE
        taken = []
        with self.client.get_queue_receiver(self.queue, receive_mode=mode) as taker:
            while len(taken) < 5:
                messages = taker.receive_messages(max_message_count=5, max_wait_time=WAIT)
                assert messages, f"only {len(taken)} of 5 came"
                taken += messages
        self.empty(self.queue)

    def schedule(self):
        sender = self.sender(self.queue)
        due = datetime.now(timezone.utc) + timedelta(seconds=3)
        numbers = sender.schedule_messages(
            [ServiceBusMessage("later"), ServiceBusMessage("never")], due
        )
        assert len(numbers) == 2
        sender.cancel_scheduled_messages(numbers[1])
        try:
            sender.cancel_scheduled_messages(numbers[1])
            raise AssertionError("what is cancelled can't be cancelled again")
        except MessageNotFoundError:
            pass
        receiver = self.receiver(self.queue)
        early = receiver.receive_messages(max_wait_time=1)
        assert early == [], f"{[body(m) for m in early]} came before {due}"
        message = self.one(receiver)
        assert body(message) == b"later"
        assert datetime.now(timezone.utc) >= due - timedelta(milliseconds=50)
        receiver.complete_message(message)
        self.empty(self.queue)
        self.send(self.queue, ServiceBusMessage("soon", scheduled_enqueue_time_utc=due))
        receiver = self.receiver(self.queue)
        receiver.complete_message(self.one(receiver))

    def defer(self):
        self.send(self.queue, ServiceBusMessage("aside"))
        receiver = self.receiver(self.queue)
        message = self.one(receiver)
        receiver.defer_message(message)
        assert receiver.receive_messages(max_wait_time=1) == []
        (again,) = receiver.receive_deferred_messages(message.sequence_number)
        assert body(again) == b"aside"
        receiver.complete_message(again)
        try:
            receiver.receive_deferred_messages(message.sequence_number)
            raise AssertionError("a completed message can't be received")
        except MessageNotFoundError:
            pass

    def duplicates(self):
        twice = [ServiceBusMessage("first", message_id="same") for _ in range(2)]
        self.send(self.unique, *twice)
        self.send(self.unique, ServiceBusMessage("second", message_id="same"))
        receiver = self.receiver(self.unique)
        message = self.one(receiver)
        assert body(message) == b"first"
        receiver.complete_message(message)
        self.empty(self.unique)

    def large(self):
        large = bytes(range(256)) * 720
        self.send(self.queue, ServiceBusMessage(large))
        receiver = self.receiver(self.queue)
        message = self.one(receiver)
        assert body(message) == large
        receiver.complete_message(message)
        sender = self.sender(self.queue)
        try:
            sender.send_messages(ServiceBusMessage(b"x" * 300_000))
            raise AssertionError("a message over the limit must be refused")
        except MessageSizeExceededError:
            pass
        self.empty(self.queue)

    def topic_fans_out(self):
        with self.client.get_topic_sender(self.topic) as sender:
            sender.send_messages(ServiceBusMessage("news"))
        with self.client.get_subscription_receiver(self.topic, self.subscription) as receiver:
            message = self.one(receiver)
            assert body(message) == b"news"
            receiver.complete_message(message)

    def unknown_queue(self):
        try:
            receiver = self.receiver("no-such-queue")
            receiver.receive_messages(max_wait_time=1)
            raise AssertionError("an unknown queue must be refused")
        except MessagingEntityNotFoundError:
            pass

    def run(self):
        checks = [
            self.send_and_complete,
            self.batch,
            self.abandon,
            self.dead_letter,
            self.renew,
            self.lock_lost,
            self.peek,
            self.schedule,
            self.defer,
            self.duplicates,
            self.large,
            self.topic_fans_out,
            self.unknown_queue,
        ]
        for check in checks:
            started = time.monotonic()
            check()
            name = check.__name__.replace("_", " ")
            print(f"ok: {name} ({time.monotonic() - started:.1f} s)", flush=True)
        for link in self.links.values():
            link.close()


if __name__ == "__main__":
    if len(sys.argv) != 7:
        sys.exit(__doc__)
    Checks(*sys.argv[1:]).run()
