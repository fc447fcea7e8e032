from django.urls import path

from billing import ask_page, delete_page, seat_pages, views

urlpatterns = [
    path("budget/", views.budget, name="budget"),
    path("budget/ask/", ask_page.ask, name="ask_owner"),
    path("settings/workspace/delete/", delete_page.delete, name="delete_workspace"),
    # Limits of seats and keys
    path("settings/members/<int:pk>/limit/", seat_pages.member_limit, name="member_limit"),
    path("settings/members/<int:pk>/limit/remove/", seat_pages.remove_member_limit, name="remove_member_limit"),
    path("settings/keys/<int:pk>/limit/", seat_pages.key_limit, name="key_limit"),
    path("settings/keys/<int:pk>/limit/remove/", seat_pages.remove_key_limit, name="remove_key_limit"),
]
