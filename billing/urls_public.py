from django.urls import path

from billing import views

urlpatterns = [
    path("signup/", views.sign_up, name="sign_up"),
    path("signup/wait/", views.sign_up_wait, name="sign_up_wait"),
]
