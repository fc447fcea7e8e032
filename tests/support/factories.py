"""Makes what tests need, by the product's own services wherever there is one."""

from __future__ import annotations

from typing import Any

import factory

from billing.provisioning import provision, sign_up
from billing.usage.models import UsageLine
from chat.models import Conversation, Message
from tenants.users.models import User
from tests.support.cast import PASSWORD, Workspace


class WorkspaceFactory(factory.Factory[Workspace]):
    """A workspace that has been through sign-up: schema, ledger, key, owner, all real. About 0.1 s each."""

    class Meta:
        model = Workspace

    name = factory.LazyAttribute(lambda made: made.slug.title())
    slug = factory.Sequence(lambda n: f"team-{n}")
    email = factory.LazyAttribute(lambda made: f"owner@{made.slug}.example")
    password = PASSWORD
    plan = "trial"
    provisioned = True

    @classmethod
    def _create(cls, model_class, *args, provisioned, **fields):
        account = sign_up(**fields)
        if provisioned:
            provision(account)
        return model_class(account)


class UserFactory(factory.django.DjangoModelFactory[User]):
    """A member of the workspace whose scope is entered."""

    class Meta:
        model = User
        skip_postgeneration_save = True

    email = factory.Sequence(lambda n: f"member-{n}@example.com")
    password = factory.django.Password(PASSWORD)


class ConversationFactory(factory.django.DjangoModelFactory[Conversation]):
    class Meta:
        model = Conversation

    owner = factory.SubFactory(UserFactory)
    title = factory.Sequence(lambda n: f"Conversation {n}")


class MessageFactory(factory.django.DjangoModelFactory[Message]):
    class Meta:
        model = Message

    conversation = factory.SubFactory(ConversationFactory)
    role = Message.Role.USER
    text = factory.Sequence(lambda n: f"Message {n}")


def said(conversation: Conversation, question: str, parent_id: int | None = None, **answer: Any) -> Message:
    """A question and its answer at the end of what is shown, or after another message; the answer."""
    parent_id = conversation.head_id if parent_id is None else parent_id
    asked = conversation.messages.create(role=Message.Role.USER, text=question, parent_id=parent_id)
    fields = {"text": "An answer.", "cost": 10_000, "outcome": "exact", "finish_reason": "stop"} | answer
    answered = conversation.messages.create(role=Message.Role.ASSISTANT, parent_id=asked.pk, **fields)
    conversation.head_id = answered.pk
    conversation.save()
    return answered


class UsageLineFactory(factory.django.DjangoModelFactory[UsageLine]):
    class Meta:
        model = UsageLine

    hold = factory.Faker("uuid4")
    reservation_id = factory.Sequence(lambda n: f"reservation-{n}")
    app = "chat"
    action = "test-model"
    model = "test-model"
    tokens_input = 10
    tokens_output = 20
    estimate = 100_000
    cost = 90_000
    outcome = UsageLine.Outcome.EXACT
    created_at = factory.Faker("date_time", tzinfo=None)
