"""Fills a Blob Storage container as told, by Microsoft's Python SDK.

Usage: blob_sdk.py SERVICE_URL ACCOUNT KEY CONTAINER [AUTHORITY.pem]

Creates the container. Then takes one order a line from standard input, a JSON array of a word and what
goes with it, and answers each with a line of JSON; ends when the input does.
"""

import json
import sys
from datetime import datetime, timedelta, timezone

from azure.storage.blob import BlobServiceClient, StandardBlobTier, generate_container_sas

url, account, key, container, *trusted = sys.argv[1:]
service = BlobServiceClient(
    f"{url}/{account}",
    credential={"account_name": account, "account_key": key},
    connection_verify=trusted[0] if trusted else True,
    retry_total=0,
)
client = service.get_container_client(container)
client.create_container()


def put(name, text, metadata=None):
    client.upload_blob(name, text.encode(), overwrite=True, metadata=metadata)


def put_many(count):
    for n in range(count):
        client.upload_blob(f"many/{n:05}.txt", b"x", overwrite=True)
    return count


def delete(name):
    client.delete_blob(name, delete_snapshots="include")


def snapshot(name):
    return client.get_blob_client(name).create_snapshot()["snapshot"]


def archive(name):
    client.get_blob_client(name).set_standard_blob_tier(StandardBlobTier.ARCHIVE)


def names():
    return sorted(blob.name for blob in client.list_blobs())


def sas(permission, hours):
    expiry = datetime.now(timezone.utc) + timedelta(hours=hours)
    return generate_container_sas(account, container, key, permission=permission, expiry=expiry)


ORDERS = {order.__name__: order for order in (put, put_many, delete, snapshot, archive, names, sas)}

print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    word, *rest = json.loads(line)
    print(json.dumps(ORDERS[word](*rest)), flush=True)
