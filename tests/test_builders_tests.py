"""Tests of a builder's own, beside ours."""

import pytest
from django.db import connection

from chat.calls import complete
from tenants.users.models import User


@pytest.mark.django_db
def test_a_mark_of_pytest_django_works_and_a_paid_call_in_it_says_what_to_do(workspace):
    assert connection.in_atomic_block
    with workspace.scope():
        User.objects.create(email="rolled-back@example.com")
        with pytest.raises(RuntimeError, match=r"tests/conftest.py"):
            complete([{"role": "user", "content": "hello"}])
