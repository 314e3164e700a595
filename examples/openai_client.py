"""A video from a server, with the official OpenAI client (pip install openai): ask, watch, download.

    fastvideo serve
    python examples/openai_client.py "a red circle moving left on a white background"

Other arguments: the server's URL, and an API key if it wants one.
"""

import sys
import time
import warnings

from openai import APIConnectionError, BadRequestError, OpenAI

# the package warns that OpenAI's own videos come to an end, which is not about this server
warnings.filterwarnings("ignore", "The Sora API", DeprecationWarning)
prompt = sys.argv[1] if len(sys.argv) > 1 else "a red circle moving left on a white background"
url = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000"
key = sys.argv[3] if len(sys.argv) > 3 else "none"

with OpenAI(base_url=f"{url}/v1", api_key=key) as client:
    try:
        # what the OpenAI API does not have goes into extra_body
        video = client.videos.create(prompt=prompt, extra_body={"seed": 7, "num_inference_steps": 8})
    except BadRequestError as error:
        sys.exit(f"refused, because of {error.param}: {error.message}")
    except APIConnectionError:
        sys.exit(f"there is no server at {url}; start one: fastvideo serve")
    while video.status in ("queued", "in_progress"):
        print(f"{video.status}: {video.progress}%")
        time.sleep(0.5)
        video = client.videos.retrieve(video.id)
    if video.error is not None:
        sys.exit(f"failed: {video.error.message}")
    for variant, file in (("video", "clip.mp4"), ("spritesheet", "clip.jpg")):
        client.videos.download_content(video.id, variant=variant).write_to_file(file)
        print(f"saved {file}")
