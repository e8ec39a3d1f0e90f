"""`damoserve playground`: a local web page that shows what the profiles find and which of them the router picks.

command      the command and its web server
guard        what the web server refuses before it reads a body
page         the page of one browser tab: its controls and what they do
figures      what the page shows, as HTML
comparison   which boxes of two profiles are the same object
load         callers for a few seconds, and what they met

Only `command`, `guard` and `page` need the extra `playground`.
"""
