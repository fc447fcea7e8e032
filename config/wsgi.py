"""The WSGI application that gunicorn serves. Why sync and threads: README, "Why sync"."""

from __future__ import annotations

import gc
import io
import os
from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.utils.module_loading import import_string

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

# What is loaded here stays: looking through it for garbage, again and again, is a tenth of the start.
gc.disable()
django = get_wsgi_application()
django.request_class = import_string(settings.WEB_REQUEST)
gc.enable()


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Django, with the whole body in memory before anybody answers.

    The server closes a connection whose body nobody has read to its end, while the front still passes it on: the front
    then says 503 where the answer was 401, 404 or 405. And Django takes a request without Content-Length for an empty
    one.
    """
    largest = settings.LARGER_BODIES.get(environ.get("PATH_INFO", ""), settings.DATA_UPLOAD_MAX_MEMORY_SIZE)
    length = environ.get("CONTENT_LENGTH") or "0"
    is_chunked = "chunked" in environ.get("HTTP_TRANSFER_ENCODING", "").lower()
    if is_chunked or (length.isdigit() and 0 < int(length) <= largest):
        # One byte more than is allowed is enough to be refused as too large.
        body = environ["wsgi.input"].read(largest + 1)
        environ["wsgi.input"] = io.BytesIO(body)
        if is_chunked:
            environ["CONTENT_LENGTH"] = str(len(body))
    return django(environ, start_response)
