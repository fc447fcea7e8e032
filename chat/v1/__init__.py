"""The API that OpenAI's clients speak: bare ASGI in the plane's process, paid by the same engine as everything else.

app.py        the door: routes, body, who asks, CORS, headers
reading.py    a request's JSON, and the most that it can cost (pure)
buying.py     the request bought, for whoever asks
relaying.py   the answer on its way to the reader
refusals.py   our errors in OpenAI's shape (pure)
ways_out.py   what can be done about a refusal for money
"""
