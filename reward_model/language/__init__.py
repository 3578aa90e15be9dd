"""The judge's prompts and answers as text."""
