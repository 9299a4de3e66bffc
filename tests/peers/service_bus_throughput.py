"""Empties a Service Bus queue with Microsoft's Python SDK and prints the rate, in messages a second.

Usage: service_bus_throughput.py CONNECTION_STRING QUEUE COUNT
"""

import sys
import time

from azure.servicebus import ServiceBusClient

CHUNK = 256
WAIT = 10


def main():
    connection, queue, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with ServiceBusClient.from_connection_string(connection) as client:
        with client.get_queue_receiver(queue, prefetch_count=CHUNK) as receiver:
            left = count
            started = time.monotonic()
            while left:
                messages = receiver.receive_messages(max_message_count=CHUNK, max_wait_time=WAIT)
                assert messages, f"{left} messages did not come"
                for message in messages:
                    receiver.complete_message(message)
                left -= len(messages)
            print(count / (time.monotonic() - started))


if __name__ == "__main__":
    main()
