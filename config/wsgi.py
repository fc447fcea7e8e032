"""The WSGI application that gunicorn serves. Why sync and threads: README, "Why sync"."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.utils.module_loading import import_string

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

django = get_wsgi_application()
django.request_class = import_string(settings.WEB_REQUEST)


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Django, with chunked bodies made readable: it takes a request without Content-Length for an empty one."""
    if "chunked" in environ.get("HTTP_TRANSFER_ENCODING", "").lower():
        # One byte more than is allowed is enough to be refused as too large.
        body = environ["wsgi.input"].read(settings.DATA_UPLOAD_MAX_MEMORY_SIZE + 1)
        environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(body), str(len(body))
    return django(environ, start_response)
