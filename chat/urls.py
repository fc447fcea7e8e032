from django.urls import path

from chat import former, views

urlpatterns = [
    path("", views.home, name="home"),
    path("c/<int:pk>/", views.conversation, name="conversation"),
    path("settings/members/<int:pk>/chats/", former.conversations, name="former_conversations"),
    path("settings/members/<int:pk>/chats/<int:conversation_pk>/", former.conversation, name="former_conversation"),
]
