from django.urls import path

from billing import delete_page, views

urlpatterns = [
    path("budget/", views.budget, name="budget"),
    path("settings/workspace/delete/", delete_page.delete, name="delete_workspace"),
]
