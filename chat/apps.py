"""The chat app: what is bought."""

from django.apps import AppConfig


class ChatConfig(AppConfig):
    name = "chat"
