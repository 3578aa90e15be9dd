"""What the judge is asked and what it answered, as text."""
