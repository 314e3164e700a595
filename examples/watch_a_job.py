"""Every step of a job as it happens, by server-sent events, and how to cancel it (pip install httpx).

    fastvideo serve
    python examples/watch_a_job.py "a blue star spinning on pink" --after 100

Cancels the job when it is --after percent done.
"""

import argparse
import json
import uuid

import httpx

parser = argparse.ArgumentParser()
parser.add_argument("prompt")
parser.add_argument("--url", default="http://127.0.0.1:8000")
parser.add_argument("--key", default="none")
parser.add_argument("--after", type=int, default=100)
options = parser.parse_args()

headers = {"Authorization": f"Bearer {options.key}"}
with httpx.Client(base_url=options.url, headers=headers, timeout=60) as client:
    # with this key the request may be sent again, should the answer be lost: it stays one job
    once = {"Idempotency-Key": str(uuid.uuid4())}
    answer = client.post("/v1/videos", json={"prompt": options.prompt}, headers=once)
    if answer.is_error:
        raise SystemExit(answer.json()["error"]["message"])
    job = answer.json()["id"]
    with client.stream("GET", f"/v1/videos/{job}/events") as events:
        for line in events.iter_lines():
            if not line.startswith("data: "):
                continue
            event = json.loads(line.removeprefix("data: "))
            if event["type"] == "video.progress":
                print(f"{event['progress']}%: {event['stage']} {event['step']} of {event['total']}, "
                      f"{event['seconds_left']} s left{', with a preview' if 'preview' in event else ''}")  # fmt: skip
                if event["progress"] >= options.after:
                    client.post(f"/v1/videos/{job}/cancel")
            else:
                print(event["type"], event.get("error", {}).get("message", ""))
