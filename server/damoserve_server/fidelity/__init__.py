"""Whether the profiles still find what their reference finds: answers are sampled and compared while nobody waits."""
