from django.urls import path

from chat import background_pages, former, prompt_pages, views, wishes_pages

urlpatterns = [
    path("", views.home, name="home"),
    path("c/<int:pk>/", views.conversation, name="conversation"),
    path("c/<int:pk>/again/", views.again, name="ask_again"),
    path("c/<int:pk>/continue/", views.go_on, name="go_on"),
    path("c/<int:pk>/delete-turn/", views.delete_turn, name="delete_turn"),
    path("c/<int:pk>/settings/", wishes_pages.conversation, name="conversation_settings"),
    path("settings/workspace/chat/", wishes_pages.workspace, name="workspace_chat"),
    path("prompts/", prompt_pages.prompts, name="prompts"),
    path("prompts/<int:pk>/", prompt_pages.prompt, name="prompt"),
    path("prompts/<int:pk>/text/", prompt_pages.text, name="prompt_text"),
    path("prompts/<int:pk>/delete/", prompt_pages.delete, name="delete_prompt"),
    path("c/<int:pk>/summary/", background_pages.summary, name="summary"),
    path("settings/workspace/answers/", background_pages.goes_on, name="answers_go_on"),
    path("settings/members/<int:pk>/chats/", former.conversations, name="former_conversations"),
    path("settings/members/<int:pk>/chats/<int:conversation_pk>/", former.conversation, name="former_conversation"),
]
