"""Who may call, what, and how much: bearer tokens with rights and limits."""
