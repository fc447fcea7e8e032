from django.urls import path

from billing import views

urlpatterns = [path("budget/", views.budget, name="budget")]
