"""`damoserve top`: the state of a running server at a terminal.

`scrape` reads the server's metrics, `reading` says what happened between two scrapes, `screen` draws that, and
`command` repeats it.
"""
