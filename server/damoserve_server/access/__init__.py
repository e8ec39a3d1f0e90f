"""Who may call, what, and how much: TLS, bearer tokens with rights and limits, and limits of connections.

Files of certificates and tokens may be replaced while the server runs. Knows nothing of what is called.

tls          certificates of the server, and of clients for mutual TLS
tokens       the file of tokens, and who holds which
limits       rate and concurrency of a token
reloading    values from files, read again when these change
connections  how long connections live, and how much each may carry
settings     the settings of access
"""
