"""GhostTrack: do a language model's tracked internal hypotheses reveal when it hallucinates?"""

__version__ = "0.1.0"
