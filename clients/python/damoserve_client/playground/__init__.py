"""`damoserve playground`: a local web page that shows what the profiles find and which of them the router picks.

command      the command and its web server
page         the page of one browser tab: its controls and what they do
figures      what the page shows, as HTML
comparison   which boxes of two profiles are the same object
load         callers for a few seconds, and what they met

Only `command` and `page` need the extra `playground`.
"""
