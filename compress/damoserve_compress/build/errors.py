"""The errors that stop a build.

BuildError            the data do not suit the checkpoint, what a recipe needs is missing, or a profile would replace
│                     one of another checkpoint; nothing is written
└── RecipeFailed      one recipe gives no profile here; another may. Nothing is written
"""


class BuildError(RuntimeError):
    """A profile cannot be built as its recipe says."""


class RecipeFailed(BuildError):
    """A profile loses more than its recipe allows, or this processor does not compute as the recipe says."""
