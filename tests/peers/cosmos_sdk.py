"""Reads a batch as a user's own script would, with Microsoft's SDK for Python.

Arguments: endpoint, key, database, batch, job id. Prints one JSON object.
"""

import json
import sys

from azure.cosmos import CosmosClient

endpoint, key, database, batch_id, job_id = sys.argv[1:]
client = CosmosClient(endpoint, key, connection_timeout=30)
database = client.get_database_client(database)
outcomes = database.get_container_client("outcomes")


def rows(container, query, **parameters):
    return list(
        container.query_items(
            query,
            parameters=[{"name": "@" + name, "value": value} for name, value in parameters.items()],
            enable_cross_partition_query=True,
        )
    )


batch = database.get_container_client("batches").read_item(batch_id, partition_key=batch_id)

# One outcome by its id: the shard is in the id, so this is a point read of one request unit.
shard = int(job_id[-8:], 16) % batch["shards"]
one = outcomes.read_item(job_id, partition_key=f"{batch_id}|{shard}")

endings = {}
for row in rows(outcomes, "SELECT c.ending FROM c WHERE c.batchId = @batch", batch=batch_id):
    endings[row["ending"]] = endings.get(row["ending"], 0) + 1

tokens = rows(
    outcomes,
    "SELECT VALUE SUM(c.usage.prompt + c.usage.completion) FROM c WHERE c.batchId = @batch",
    batch=batch_id,
)
running = rows(
    database.get_container_client("usage"),
    "SELECT c.hour, c.usage.prompt, c.usage.completion FROM c WHERE c.batchId = @batch",
    batch=batch_id,
)

print(
    json.dumps(
        {
            "endings": endings,
            "tokens": sum(tokens),
            "running_tokens": sum(row["prompt"] + row["completion"] for row in running),
            "hours": sorted({row["hour"] for row in running}),
            "one": {
                "customId": one["customId"],
                "position": one["position"],
                "answer": json.loads(one["body"])["answer"],
                "team": json.loads(one["metadata"])["team"],
            },
        }
    )
)
