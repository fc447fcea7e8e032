from django.urls import path

from chat import former, views

urlpatterns = [
    path("", views.home, name="home"),
    path("c/<int:pk>/", views.conversation, name="conversation"),
    path("c/<int:pk>/again/", views.again, name="ask_again"),
    path("c/<int:pk>/continue/", views.go_on, name="go_on"),
    path("c/<int:pk>/delete-turn/", views.delete_turn, name="delete_turn"),
    path("settings/members/<int:pk>/chats/", former.conversations, name="former_conversations"),
    path("settings/members/<int:pk>/chats/<int:conversation_pk>/", former.conversation, name="former_conversation"),
]
