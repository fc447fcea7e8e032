from django.urls import path

from chat import background_pages, file_views, former, manage, prompt_pages, shared, views, wishes_pages

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
    path("c/files/", file_views.add, name="add_file"),
    path("c/files/<int:pk>/", file_views.download, name="file"),
    path("c/files/<int:pk>/picture/", file_views.picture, name="picture"),
    path("c/files/<int:pk>/remove/", file_views.remove, name="remove_file"),
    path("settings/members/<int:pk>/chats/", former.conversations, name="former_conversations"),
    path("settings/members/<int:pk>/chats/<int:conversation_pk>/", former.conversation, name="former_conversation"),
    path("c/<int:pk>/rename/", manage.rename, name="rename_conversation"),
    path("c/<int:pk>/pin/", manage.pin, name="pin_conversation"),
    path("c/<int:pk>/delete/", manage.delete, name="delete_conversation"),
    path("c/<int:pk>/restore/", manage.restore, name="restore_conversation"),
    path("c/<int:pk>/export/", manage.export, name="export_conversation"),
    path("c/<int:pk>/share/", manage.share, name="share_conversation"),
    path("c/<int:pk>/unshare/", manage.unshare, name="unshare_conversation"),
    path("shared/<int:pk>/", shared.conversation, name="shared_conversation"),
    path("settings/workspace/titles/", manage.titles, name="workspace_titles"),
]
