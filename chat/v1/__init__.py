"""The API that OpenAI's clients speak: bare ASGI in the plane's process, paid by the same engine as everything else.

app.py         the door: routes, body, headers         asking.py      who asks: a key, by tenants.resolve
reading.py     a request's JSON, and what it can cost   cors.py        which web pages may read an answer
answering.py   the request bought, or told again        relaying.py    the answer on its way to the reader
refusals.py    our errors in OpenAI's shape (pure)      ways_out.py    what can be done about a refusal for money
catalog.py     which models there are
"""
