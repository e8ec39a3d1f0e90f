"""Everything that an operator sets, and explanations of what is wrong in it.

The rooms below have the settings of their own subjects, which are groups here. Knows nothing of what is made of them.

settings          all settings, by option, environment and file
misconfiguration  turns what pydantic finds wrong into a line that says where it stands and what was probably meant
"""
