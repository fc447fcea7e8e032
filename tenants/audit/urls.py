"""The audit trail, on a tenant's host."""

from django.urls import path

from tenants.audit import pages

urlpatterns = [
    path("", pages.trail, name="trail"),
    path("csv", pages.trail_csv, name="trail_csv"),
]
