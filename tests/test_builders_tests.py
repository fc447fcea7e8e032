"""Tests of a builder's own, beside ours."""

import tomllib
from pathlib import Path

import pytest
from django.db import connection
from django.test import TestCase, TransactionTestCase

from chat.calls import complete
from tenants.models import Tenant
from tenants.users.models import User

ROOT = Path(__file__).parent.parent


@pytest.mark.django_db
def test_a_mark_of_pytest_django_works_and_a_paid_call_in_it_says_what_to_do(workspace):
    assert connection.in_atomic_block
    with workspace.scope():
        User.objects.create(email="rolled-back@example.com")
        with pytest.raises(RuntimeError, match=r"tests/conftest.py"):
            complete([{"role": "user", "content": "hello"}])


class TestsOfDjangosOwn(TestCase):
    """They share one transaction: what the first leaves behind must not end it."""

    @classmethod
    def setUpTestData(cls):
        User.objects.create(email="of-all-of-them@example.com")

    def test_the_first_finds_what_the_class_has_made(self):
        assert User.objects.filter(email="of-all-of-them@example.com").exists()

    def test_the_second_finds_it_too(self):
        assert User.objects.filter(email="of-all-of-them@example.com").exists()


@pytest.mark.usefixtures("acme")
class TestsThatCommit(TransactionTestCase):
    """Begun after the cast was made; nobody's rows are gone when one has ended."""

    def test_the_first_of_two_leaves_the_cast_alone(self):
        assert Tenant.objects.filter(slug="acme").exists()

    def test_the_second_of_two_finds_it(self):
        assert Tenant.objects.filter(slug="acme").exists()


def test_no_test_stands_where_pytest_does_not_look_and_the_cast_is_not():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["root_packages"]
    found = [
        path for name in packages for pattern in ("tests.py", "test_*.py") for path in (ROOT / name).rglob(pattern)
    ]
    assert not found, f"Move them to tests/<app>/, where they are run and find `acme` and its like: {found}"


def test_a_member_with_a_second_step_is_signed_in_by_the_cast(workspace):
    carol = workspace.with_second_step(workspace.member("carol@x.example", "admin"))
    for _ in range(2):
        assert workspace.client(carol).get("/settings/members/").status_code == 200
