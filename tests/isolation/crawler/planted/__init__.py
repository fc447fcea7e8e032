"""Views with one bug each, of the kinds that builders write, and the same views without it: what the crawler must find.

Only tests reach them. `leaky` and `sound` have the same addresses.
"""
