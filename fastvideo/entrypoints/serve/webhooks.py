"""Reports the end of jobs to the operator's URL, signed by Standard Webhooks (standardwebhooks.com), until they
arrive."""

import base64
import hashlib
import hmac
import threading
import time

import httpx

from fastvideo.entrypoints.serve.store import Store
from fastvideo.logger import init_logger

logger = init_logger(__name__)

TIMEOUT_SECONDS = 10.0
RETRY_SECONDS = (5, 30, 120, 600, 3600, 3 * 3600, 12 * 3600)
"""Before each try after the first; then a report is given up."""
LOOK_SECONDS = 0.5


def sign(secret: str, message_id: str, timestamp: int, body: str) -> str:
    """The `webhook-signature` of a call; `secret` is whsec_ and base64."""
    key = base64.b64decode(secret.removeprefix("whsec_") + "==")
    signed = hmac.new(key, f"{message_id}.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(signed).decode()}"


class Reporter(threading.Thread):
    """Makes the calls that the store says are owed."""

    def __init__(self, store: Store, url: str, secret: str) -> None:
        super().__init__(name="webhooks", daemon=True)
        self._store = store
        self._url = url
        self._secret = secret
        self._stop = threading.Event()

    def run(self) -> None:
        with httpx.Client(timeout=TIMEOUT_SECONDS, follow_redirects=False, trust_env=False) as client:
            while not self._stop.wait(LOOK_SECONDS):
                try:
                    for delivery in self._store.due_deliveries():
                        self._deliver(client, delivery["id"], delivery["body"], delivery["attempts"])
                except Exception as error:  # the database may be away for a while
                    logger.error("webhooks: %s", type(error).__name__)

    def _deliver(self, client: httpx.Client, message_id: str, body: str, attempts: int) -> None:
        now = int(time.time())
        headers = {
            "content-type": "application/json", "webhook-id": message_id, "webhook-timestamp": str(now),
            "webhook-signature": sign(self._secret, message_id, now, body),
        }  # fmt: skip
        try:
            said = client.post(self._url, content=body, headers=headers).status_code
            reason = "" if 200 <= said < 300 else f"status {said}"
        except httpx.HTTPError as error:
            reason = type(error).__name__
        if not reason:
            self._store.delivered(message_id)
        elif attempts < len(RETRY_SECONDS):
            self._store.retry_delivery(message_id, attempts + 1, now + RETRY_SECONDS[attempts])
            logger.warning("webhook %s: %s; again in %d s", message_id, reason, RETRY_SECONDS[attempts])
        else:
            self._store.delivered(message_id)
            logger.error("webhook %s: %s; given up after %d tries", message_id, reason, attempts + 1)

    def stop(self) -> None:
        """End, at latest when the call that is being made is over."""
        self._stop.set()
