"""Migrations of a release that is still to come: chat's own, and what a test adds. For settings.MIGRATION_MODULES."""

from pathlib import Path

from chat import migrations

__path__ = [*migrations.__path__, str(Path(__file__).parent / "chat")]
