"""The runtime plane: decide, reserve, commit, release, extend, events, balances, reservations.

A bare ASGI app on asyncio and a connection or two. No ORM, no threads, no state besides the connections: what is true
is in the database, and each operation is one call of one SQL function.
"""
