"""litellm's own way through many prompts: `batch_completion`, a pool of threads."""

import json
import sys

import litellm

source, target, url, calls = sys.argv[1:]
litellm.suppress_debug_info = True
with open(source) as lines:
    jobs = [json.loads(line) for line in lines]
answers = litellm.batch_completion(
    model="openai/" + jobs[0]["body"]["model"],
    messages=[job["body"]["messages"] for job in jobs],
    max_tokens=jobs[0]["body"]["max_tokens"],
    max_workers=int(calls),
    api_base=url,
    api_key="none",
)
with open(target, "w") as out:
    for job, answer in zip(jobs, answers):
        if isinstance(answer, Exception):
            raise answer
        out.write(json.dumps({"custom_id": job["custom_id"], "body": answer.model_dump()}) + "\n")
