"""What a built profile is: its manifest, its recipe, the repository on disk, and how images go in and boxes come out.

Shared by the server (which serves profiles) and the compress tools (which build and measure them), so that both treat
an image in exactly the same way.
"""
