"""The embedded default model: small, real, served on loopback by a process of its own.

Owns its name and that process (`python -m chat.local_model`). Is reached by HTTP only, as any other model would
be; must not import a Django app. This file is imported for `NAME` alone and must stay cheap.
"""

# What the server calls itself. Without an alias its answers would tell the path of the model's file.
NAME = "smollm2-135m-instruct"
