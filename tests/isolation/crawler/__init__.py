"""The crawler: every address of every door is asked in every way, and nothing of the neighbour's may come back.

Two workspaces are filled with canaries, strings that nobody can guess. The neighbour uses its own workspace first, so
that caches are warm. Then everybody else asks every address of web and plane, with the workspace's own ids and with the
neighbour's, by every credential and under every spelling of the host. A canary of the neighbour's in an answer, a log
line, a mail, a job, a file or a cache entry is a finding; so is a row or a ledger of the neighbour's that has changed,
and an answer of 5xx.

    canaries.py   the strings, and finding them however they are written
    walk.py       the addresses: all patterns of the three urlconfs
    cases.py      how an address is filled: ids, bodies. An app of yours has its own in its `crawl_cases.py`
    planting.py   a row of each model, full of canaries
    room.py       one workspace: its people, their credentials, its rows
    spellings.py  the ways to name a workspace
    asking.py     one request, in this process
    watch.py      what a request leaves behind: logs, mails, jobs, files, cache entries, rows, ledgers
    crawl.py      which requests are made, and what is wrong with them

It finds what crosses between workspaces. Whether two members of one workspace see each other's rows is no part of it.
"""
