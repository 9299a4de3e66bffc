"""What most people write first: the `openai` SDK, one task a prompt, and a semaphore."""

import asyncio
import json
import sys

from openai import AsyncOpenAI


async def main(source: str, target: str, url: str, calls: int) -> None:
    client = AsyncOpenAI(base_url=url, api_key="none")
    room = asyncio.Semaphore(calls)
    with open(source) as lines, open(target, "w") as out:

        async def one(job: dict) -> None:
            async with room:
                answer = await client.chat.completions.create(**job["body"])
            out.write(json.dumps({"custom_id": job["custom_id"], "body": answer.to_dict()}) + "\n")

        await asyncio.gather(*(one(json.loads(line)) for line in lines))


asyncio.run(main(*sys.argv[1:4], int(sys.argv[4])))
