"""A server of the database that is gone without a word: who waits for it is told in seconds."""

import pytest
from django.conf import settings

from billing.engine.engine import HEARTBEAT_SECONDS, SILENT_SECONDS
from config import settings_authority
from config.database import NOTICED_WHEN_DEAD
from tenants.connections import own_connection_params


@pytest.mark.parametrize(
    "options",
    [settings.DATABASES["default"]["OPTIONS"], settings_authority.DATABASES["default"]["OPTIONS"]],
    ids=["site", "authority"],
)
def test_a_server_that_is_gone_without_a_word_is_noticed(options):
    assert NOTICED_WHEN_DEAD.items() <= options.items()


def test_the_engines_own_connections_notice_it(app):
    """TCP asks after the other end in two hours: one that waited for an answer kept a place of the pool, its call's
    hold and its reader until then, though a failover was over within seconds.
    """
    assert NOTICED_WHEN_DEAD.items() <= own_connection_params().items()


def test_it_is_noticed_before_a_process_that_waits_is_taken_for_dead():
    idle, interval, count, unheard = (
        int(NOTICED_WHEN_DEAD[name])
        for name in ("keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout")
    )
    slowest = max(idle + interval * count, unheard / 1_000 + interval)
    assert HEARTBEAT_SECONDS + slowest <= SILENT_SECONDS
