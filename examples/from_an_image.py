"""A video that starts from an image, and goes on, with the official OpenAI client (pip install openai).

    fastvideo serve --generator.model Wan-AI/Wan2.2-TI2V-5B-Diffusers
    python examples/from_an_image.py ship.png "the ship leaves the harbour" "it meets a storm"

The server's model has to start from an image. Another argument: the server's URL.
"""

import sys
import warnings
from pathlib import Path

from openai import APIConnectionError, BadRequestError, OpenAI

# the package warns that OpenAI's own videos come to an end, which is not about this server
warnings.filterwarnings("ignore", "The Sora API", DeprecationWarning)
image, prompt, then = sys.argv[1:4]
url = sys.argv[4] if len(sys.argv) > 4 else "http://127.0.0.1:8000"

with OpenAI(base_url=f"{url}/v1", api_key="none") as client:
    try:
        video = client.videos.create_and_poll(prompt=prompt, input_reference=Path(image))
        client.videos.download_content(video.id).write_to_file("clip.mp4")
        # a video that the server still has can be named as well: extra_body={"video": {"id": video.id}}
        longer = client.videos.extend(prompt=then, video=Path("clip.mp4"), seconds="4")
        longer = client.videos.poll(longer.id)
        client.videos.download_content(longer.id).write_to_file("longer.mp4")
    except BadRequestError as error:
        sys.exit(f"refused, because of {error.param}: {error.message}")
    except APIConnectionError:
        sys.exit(f"there is no server at {url}; start one: fastvideo serve")
    print(f"saved clip.mp4, {video.seconds} s of {video.size}, and longer.mp4, {longer.seconds} s")
