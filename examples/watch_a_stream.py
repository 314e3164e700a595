"""A video while it is made, of a model that makes it chunk by chunk (pip install httpx).

    fastvideo serve --generator.model FastVideo/SFWan2.1-T2V-1.3B-Diffusers
    python examples/watch_a_stream.py "a red kite over the sea" | mpv -

Another argument: the server's URL.
"""

import sys

import httpx

prompt = sys.argv[1]
url = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000"

with httpx.Client(base_url=url, timeout=None) as web:
    job = web.post("/v1/videos", json={"prompt": prompt}).raise_for_status().json()
    with web.stream("GET", f"/v1/videos/{job['id']}/stream") as answer:
        if answer.status_code != 200:
            sys.exit(answer.read().decode())
        for piece in answer.iter_raw():
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
