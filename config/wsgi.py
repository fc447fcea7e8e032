"""The WSGI application that gunicorn serves. Why sync and threads: README, "Why sync"."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

application = get_wsgi_application()
